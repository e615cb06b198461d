"""The paths that machines join by: who may ask what, and how often."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.api.joining import JoinApi, JoinPlace
from primordia.client import AsyncClient
from primordia.client.config import ClientConfig
from primordia.client.errors import NotAllowedError
from primordia.kit import pki
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.testing.api import TestApi, connected, running_api
from primordia.wire import joining as wire
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Soup


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with running_api(tmp_path) as running:
        authority = tmp_path / "authority"
        authority.mkdir()
        running.ca.write(authority / "ca.crt", authority / "ca.key")
        pki.make_ca("engine").write(authority / "engine-ca.crt", authority / "engine-ca.key")
        place = JoinPlace(
            soup="test",
            node="n1",
            url=running.url,
            soup_pod_cidr="10.128.0.0/9",
            domain="soup.internal",
            ca=authority / "ca.crt",
            authority_dir=authority,
            endpoints=lambda: ("https://10.9.0.1:2379",),
            timings={"ttl_s": 8.0},
        )
        running.server.add_area(wire.PREFIX, JoinApi(running.registry, place))
        await running.registry.create(Soup(metadata=ObjectMeta(name="soup")))
        yield running


async def post(config: ClientConfig, path: str, message: object) -> bytes:
    async with connected(config) as client:
        return await client.transport.request("POST", path, body=msgspec.json.encode(message))


async def new_token(api: TestApi) -> wire.JoinToken:
    content = await post(api.admin, wire.TOKENS, wire.TokenRequest())
    return wire.JoinToken.parse(msgspec.json.decode(content, type=wire.TokenAnswer).token)


def request(token: wire.JoinToken, **changes: str) -> wire.JoinRequest:
    made = [pki.request_certificate("n2").certificate.decode() for _ in range(2)]
    fields = {"name": "n2", "rack": "r2", "segment": "s1", "address": "10.9.0.2", "request": made[0], "engine_request": made[1]}
    return wire.JoinRequest(**{"token_id": token.id, "secret": token.secret, **fields, **changes})


async def test_a_machine_without_a_certificate_gets_one_by_token(api: TestApi) -> None:
    token = await new_token(api)
    async with connected(api.anonymous) as client:
        known = msgspec.json.decode(await client.transport.request("GET", wire.AUTHORITY), type=wire.Authority)
    assert pki.fingerprint(known.ca.encode()) == f"sha256:{token.fingerprint}"
    answer = msgspec.json.decode(await post(api.anonymous, wire.NODES, request(token)), type=wire.JoinAnswer)
    assert answer.timings == {"ttl_s": 8.0}, "all nodes need the same"
    assert (answer.index, answer.pod_cidr, answer.endpoints) == (2, "10.128.32.0/19", ("https://10.9.0.1:2379",))


async def test_tokens_are_for_administrators(api: TestApi) -> None:
    for config, words in ((api.anonymous, "not known"), (api.node, "no administrator"), (api.nobody, "no role")):
        with pytest.raises(NotAllowedError, match=words):
            await post(config, wire.TOKENS, wire.TokenRequest())
    for wrong in (wire.TokenRequest(ttl_seconds=1), wire.TokenRequest(uses=0), wire.TokenRequest(ttl_seconds=10**9)):
        with pytest.raises(PermanentError, match=r"ttlSeconds|uses"):
            await post(api.admin, wire.TOKENS, wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "N2"},
        {"rack": ""},
        {"segment": "a/b"},
        {"address": "127.0.0.1"},
        {"address": "x"},
        {"request": "x"},
        {"engine_request": "x"},
    ],
)
async def test_what_makes_no_sense_is_refused_and_uses_nothing_up(api: TestApi, changes: dict[str, str]) -> None:
    token = await new_token(api)
    with pytest.raises(PermanentError):
        await post(api.anonymous, wire.NODES, request(token, **changes))
    await post(api.anonymous, wire.NODES, request(token))


async def test_who_guesses_has_to_wait(api: TestApi) -> None:
    token = await new_token(api)
    for _ in range(10):
        with pytest.raises(NotAllowedError, match="not one of this soup"):
            await post(api.anonymous, wire.NODES, request(token, secret="0" * 40))
    with pytest.raises(TemporaryError, match="failed too often"):
        await post(api.anonymous, wire.NODES, request(token))


async def test_a_node_may_leave_and_not_send_another_away(api: TestApi) -> None:
    async with connected(api.node) as client:
        with pytest.raises(NotAllowedError, match="cannot send node n2 away"):
            await leave(client, "n2")
        await leave(client, "n1")
    async with connected(api.admin) as client:
        await leave(client, "n2")


async def leave(client: AsyncClient, name: str) -> None:
    await client.transport.request("DELETE", f"{wire.NODES}/{name}")
