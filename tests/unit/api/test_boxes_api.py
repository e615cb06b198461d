"""Claims and forks over the API: validation, who is asked, what the relay carries, who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from primordia.kit.errors import CapacityError, NotFoundError, TemporaryError, UnsupportedError
from primordia.ports.forks import ClaimRequest, ForkRequest
from primordia.ports.guest import Program
from primordia.testing.api import TestApi, raw_session, running_api
from primordia.wire.boxes import INTERNAL_CLAIMS
from primordia.wire.kinds import path_of
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextTemplate, Lifeform, LifeformSpec, Node
from primordia.wire.streams import internal_path

DEADLINE_S = 60
BOXES = "/apis/primordia.dev/v1alpha1/namespaces/default/boxes"


@pytest.fixture(params=["own node", "another node"])
async def api(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[TestApi]:
    relayed = request.param == "another node"
    async with asyncio.timeout(2 * DEADLINE_S), running_api(tmp_path, relayed=relayed) as running:
        yield running


@pytest.fixture
async def session(api: TestApi) -> AsyncIterator[aiohttp.ClientSession]:
    async with raw_session(api.admin) as session:
        yield session


def fork_path(name: str, kind: type[Lifeform] | type[Context] = Context) -> str:
    return path_of(kind, "default", name, "fork")


async def post(api: TestApi, session: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with session.post(api.url + path, data=data) as answer:
        return answer.status, msgspec.json.decode(await answer.read())


# ---------------------------------------------------------------- claims


async def test_a_claim_answers_the_box(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.template()
    api.forks.warm = 1
    asked = {"template": "py", "ttlSeconds": 60, "labels": {"a": "b"}, "egress": True}
    code, answer = await post(api, session, BOXES, asked)
    assert (code, answer["warm"], answer["confirmedMs"]) == (201, True, 1.5)
    box = answer["context"]
    stored = await api.registry.get(Context, box["metadata"]["name"], "default")
    assert (stored.metadata.uid, stored.spec.from_template) == (box["metadata"]["uid"], "py")
    assert box["spec"]["expiresAt"] and box["status"]["startedFrom"] == "warm"
    assert api.forks.claims == [ClaimRequest("default", "py", ttl_s=60, labels={"a": "b"}, egress=True)]
    code, answer = await post(api, session, BOXES, {"template": "py", "name": "mine"})
    assert (code, answer.get("warm", False), answer["context"]["metadata"]["name"]) == (201, False, "mine")
    code, answer = await post(api, session, BOXES, {"template": "py", "name": "mine"})
    assert (code, answer["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({}, 400, "template"),
        (b"nonsense", 400, "body"),
        (b"", 400, "body"),
        ([], 400, "body"),
        ({"template": "py", "extra": 1}, 400, "extra"),
        ({"template": "py", "ttlSeconds": "soon"}, 400, "ttlSeconds"),
        ({"template": "P Y"}, 422, "template"),
        ({"template": "py", "ttlSeconds": -1}, 422, "ttlSeconds"),
        ({"template": "py", "name": "A"}, 422, "name"),
        ({"template": "py", "labels": {"=": "x"}}, 422, "labels"),
        ({"template": "nope"}, 404, "Template nope does not exist"),
    ],
)
async def test_bad_claims(api: TestApi, session: aiohttp.ClientSession, body: Any, code: int, said: str) -> None:
    await api.template()
    seen, answer = await post(api, session, BOXES, body)
    assert (seen, answer["kind"]) == (code, "Status")
    assert said in answer["message"]
    assert api.forks.claims == []


async def test_where_nobody_can(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.template()
    api.forks.refusals.append(CapacityError("Node n1 has room for 0 more forks."))
    code, answer = await post(api, session, BOXES, {"template": "py"})
    assert (code, answer["reason"]) == (422, "InsufficientCapacity")
    api.forks.refusals.append(TemporaryError("The fork did not confirm."))
    assert (await post(api, session, BOXES, {"template": "py"}))[0] == 503
    node = path_of(Node, name="n1")
    async with session.patch(
        api.url + node, data=b'{"spec":{"unschedulable":true}}', headers={"Content-Type": "application/merge-patch+json"}
    ) as answered:
        assert answered.status == 200
    async with asyncio.timeout(DEADLINE_S):
        while True:  # the servers learn of it from the store
            code, answer = await post(api, session, BOXES, {"template": "py"})
            if code == 503:
                break
            await asyncio.sleep(0.05)
    assert "No node takes boxes" in answer["message"]


# ---------------------------------------------------------------- forks


async def test_children_each_with_an_outcome(api: TestApi, session: aiohttp.ClientSession) -> None:
    parent = await api.lifeform()
    api.forks.room = 2
    asked = {"count": 3, "ttlSeconds": 5, "lifetime": "keep", "inheritSecrets": True, "command": ["sh", "-c", "x"]}
    asked |= {"env": [{"name": "A", "value": "1=2"}], "workingDir": "/srv", "user": "nobody"}
    code, report = await post(api, session, fork_path("shop.main"), asked)
    assert (code, report["pauseMs"], report["copiedBytes"]) == (200, 2.5, 4096)
    good, also_good, bad = report["children"]
    assert good["name"] != also_good["name"]
    assert (bad["reason"], bad["message"]) == ("InsufficientCapacity", "There is no room for another fork.")
    assert "name" not in bad
    child = await api.registry.get(Context, good["name"], "default")
    assert (child.spec.parent, child.spec.parent_uid, child.spec.depth) == ("shop.main", parent.metadata.uid, 1)
    program = Program(("sh", "-c", "x"), (("A", "1=2"),), "/srv", "nobody")
    assert api.forks.forks == [(parent.metadata.uid, ForkRequest(3, 5, "keep", True, program))]
    # A fork can be forked, and a lifeform's name means its only context.
    assert (await post(api, session, fork_path(good["name"]), {}))[0] == 200
    assert (await post(api, session, fork_path("shop", Lifeform), b""))[0] == 200
    assert api.forks.forks[-1] == (parent.metadata.uid, ForkRequest())


async def test_one_of_several_contexts_must_be_named(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.lifeform()
    both = tuple(ContextTemplate(name=name, image="x") for name in ("main", "side"))
    await api.registry.create(Lifeform(metadata=ObjectMeta(name="pair", namespace="default"), spec=LifeformSpec(contexts=both)))
    code, answer = await post(api, session, fork_path("pair", Lifeform), {})
    assert code == 400
    assert answer["message"].endswith("has 2 contexts. Name one of them: pair/main, pair/side.")
    assert (await post(api, session, fork_path("pair", Lifeform) + "?container=side", {}))[0] == 503


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"count": 0}, 422, "count"),
        ({"count": 10**6}, 422, "count"),
        ({"count": "many"}, 400, "count"),
        ({"lifetime": "forever"}, 400, "lifetime"),
        ({"ttlSeconds": 1e300}, 422, "ttlSeconds"),
        ({"command": [""]}, 422, "command"),
        ({"env": [{"name": "A"}]}, 422, "command"),
        ({"command": ["x"], "env": [{"name": "="}]}, 422, "env[0].name"),
        ({"command": ["x"], "user": "No Body", "workingDir": "a"}, 422, "workingDir"),
    ],
)
async def test_bad_forks(api: TestApi, session: aiohttp.ClientSession, body: Any, code: int, said: str) -> None:
    await api.lifeform()
    seen, answer = await post(api, session, fork_path("shop.main"), body)
    assert seen == code
    assert said in answer["message"]
    assert api.forks.forks == []


async def test_forks_that_cannot_be(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.lifeform()
    assert (await post(api, session, fork_path("nope"), {}))[0] == 404
    assert (await post(api, session, fork_path("nope", Lifeform), {}))[0] == 404
    for error, code in (
        (CapacityError("Too deep."), 422),
        (NotFoundError("It does not run here."), 404),
        (UnsupportedError("This VMM cannot fork."), 422),
        (TemporaryError("The disk is full."), 503),
    ):
        api.forks.refusals.append(error)
        seen, answer = await post(api, session, fork_path("shop.main"), {})
        assert (seen, error.message in answer["message"]) == (code, True)


@pytest.mark.parametrize("path", [BOXES, fork_path("shop.main")])
async def test_who_leaves_gives_up_what_it_asked_for(api: TestApi, session: aiohttp.ClientSession, path: str) -> None:
    await api.template()
    await api.lifeform()
    api.forks.go_on.clear()
    asking = asyncio.create_task(post(api, session, path, {"template": "py"} if path == BOXES else {}))
    async with asyncio.timeout(DEADLINE_S):
        await api.forks.waiting.wait()
        asking.cancel()
        await api.forks.given_up.wait()
    assert [each.metadata.name for each in (await api.registry.list(Context)).items] == ["shop.main"]


# ---------------------------------------------------------------- who may


async def test_paths_between_nodes_are_for_nodes_alone(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.template()
    uid = (await api.lifeform()).metadata.uid
    inner = {"namespace": "default", "template": "py"}
    assert (await post(api, session, INTERNAL_CLAIMS, inner))[0] == 403
    assert (await post(api, session, internal_path(uid, "fork"), {}))[0] == 403
    async with raw_session(api.node) as other:
        assert (await post(api, other, INTERNAL_CLAIMS, inner))[0] == 201
        assert (await post(api, other, internal_path(uid, "fork"), {}))[0] == 200
        assert (await post(api, other, BOXES, {"template": "py"}))[0] == 403
        assert (await post(api, other, fork_path("shop.main"), {}))[0] == 403
    async with session.get(api.url + BOXES) as answer:
        assert answer.status == 405


async def test_users_remove_boxes_and_no_lifeforms_contexts(api: TestApi, session: aiohttp.ClientSession) -> None:
    await api.template()
    await api.lifeform()
    box = (await post(api, session, BOXES, {"template": "py", "name": "mine"}))[1]["context"]
    contexts = api.url + path_of(Context, "default")
    async with session.delete(f"{contexts}/shop.main") as answer:
        assert answer.status == 403
        assert "Lifeform shop" in (await answer.json())["message"]
    async with session.delete(contexts) as answer:
        assert answer.status == 403
    async with session.delete(f"{contexts}/mine", json={"preconditions": {"uid": "other"}}) as answer:
        assert answer.status == 409
    async with session.delete(f"{contexts}/mine", json={"preconditions": {"uid": box["metadata"]["uid"]}}) as answer:
        assert answer.status == 200
    assert [each.metadata.name for each in (await api.registry.list(Context)).items] == ["shop.main"]
    async with session.delete(f"{contexts}?labelSelector=primordia.dev/template") as answer:
        assert answer.status == 200
