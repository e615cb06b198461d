"""The server over HTTPS, whole: what a client of Kubernetes expects of objects, lists and watches."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from primordia.api.services import Limits
from primordia.client import AsyncClient
from primordia.client.tls import context_of
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.testing.api import TestApi, connected, running_api
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, Node, NodeSpec, Secret

ROOT = "/apis/primordia.dev/v1alpha1"
HERE = f"{ROOT}/namespaces/default/lifeforms"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
DEADLINE_S = 30


class Http:
    """Plain requests, to see codes and bodies as they are."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        headers = options.pop("headers", {})
        if body is not None and not isinstance(body, bytes):
            body = msgspec.json.encode(body)
            headers = {"Content-Type": "application/json", **headers}
        async with self.session.request(method, self.url + path, data=body, headers=headers, **options) as answer:
            content = await answer.read()
            try:
                return answer.status, msgspec.json.decode(content)
            except msgspec.DecodeError:
                return answer.status, content.decode()

    @contextlib.asynccontextmanager
    async def lines(self, path: str, **options: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async with self.session.get(self.url + path, **options) as answer:
            assert answer.status == 200, await answer.text()

            async def read() -> AsyncIterator[dict[str, Any]]:
                async for line in answer.content:
                    yield json.loads(line)

            yield read()


@contextlib.asynccontextmanager
async def http(api: TestApi, who: str = "admin") -> AsyncIterator[Http]:
    connector = aiohttp.TCPConnector(ssl=context_of(getattr(api, who)))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Http(session, api.url)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with asyncio.timeout(4 * DEADLINE_S), running_api(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(api: TestApi) -> AsyncIterator[Http]:
    async with http(api) as client:
        yield client


def manifest(name: str = "shop", **changes: Any) -> dict[str, Any]:
    context = {"name": "redis", "image": "redis", **changes.pop("context", {})}
    meta = {"name": name, **changes.pop("metadata", {})}
    spec = {"contexts": [context], **changes}
    return {"apiVersion": "primordia.dev/v1alpha1", "kind": "Lifeform", "metadata": meta, "spec": spec}


# ---------------------------------------------------------------- who


async def test_without_a_certificate_only_health_answers(api: TestApi) -> None:
    async with http(api, "anonymous") as client:
        for path in ("/healthz", "/livez", "/readyz"):
            assert await client("GET", path) == (200, "ok")
        for path in (HERE, "/apis", "/metrics", "/version", "/nonesuch", "/api/v1/namespaces"):
            code, status = await client("GET", path)
            assert (code, status["kind"], status["reason"]) == (401, "Status", "Unauthorized")
            assert "certificate" in status["message"]


async def test_an_unknown_role_is_forbidden(api: TestApi) -> None:
    async with http(api, "nobody") as client:
        code, status = await client("GET", HERE)
        assert (code, status["reason"]) == (403, "Forbidden")
        assert "eve" in status["message"]


async def test_users_cordon_nodes_but_do_not_write_them(api: TestApi, admin: Http) -> None:
    await api.registry.create(Node(metadata=ObjectMeta(name="n1"), spec=NodeSpec(pod_cidr="10.1.0.0/24")))
    path = f"{ROOT}/nodes/n1"
    merge = {"Content-Type": "application/merge-patch+json"}
    code, node = await admin(
        "PATCH", path, {"spec": {"unschedulable": True}, "metadata": {"labels": {"a": "b"}}}, headers=merge
    )
    assert (code, node["spec"]["unschedulable"]) == (200, True)
    code, status = await admin("PATCH", path, {"spec": {"podCIDR": "10.9.0.0/24"}}, headers=merge)
    assert (code, status["reason"]) in ((403, "Forbidden"), (422, "Invalid"))
    code, status = await admin("POST", f"{ROOT}/nodes", {"kind": "Node", "metadata": {"name": "n2"}})
    assert (code, status["reason"]) == (403, "Forbidden")
    async with http(api, "node") as daemon:
        assert (await daemon("POST", f"{ROOT}/nodes", {"kind": "Node", "metadata": {"name": "n2"}}))[0] == 201


# ---------------------------------------------------------------- one object


async def test_the_life_of_an_object(admin: Http) -> None:
    code, made = await admin("POST", HERE, manifest())
    assert code == 201
    meta = made["metadata"]
    assert (meta["namespace"], meta["generation"], made["status"]) == ("default", 1, {"phase": "Pending"})
    assert meta["uid"]
    assert meta["creationTimestamp"]
    assert await admin("GET", f"{HERE}/shop") == (200, made)
    code, status = await admin("POST", HERE, manifest())
    assert (code, status["reason"], "default/shop exists" in status["message"]) == (409, "AlreadyExists", True)

    changed = made | {"spec": {"contexts": [{"name": "redis", "image": "other"}], "operatingMode": "Running"}}
    code, after = await admin("PUT", f"{HERE}/shop", changed)
    assert (code, after["metadata"]["generation"]) == (200, 2)
    code, status = await admin("PUT", f"{HERE}/shop", changed)
    assert (code, status["reason"]) == (409, "Conflict")
    assert after["metadata"]["resourceVersion"] in status["message"]

    code, gone = await admin("DELETE", f"{HERE}/shop")
    assert (code, gone["status"], gone["details"]["uid"]) == (200, "Success", meta["uid"])
    code, status = await admin("GET", f"{HERE}/shop")
    assert (code, status["message"]) == (404, "Lifeform default/shop does not exist.")
    assert (await admin("DELETE", f"{HERE}/shop"))[0] == 404


async def test_writing_the_same_again_changes_nothing(admin: Http) -> None:
    _, made = await admin("POST", HERE, manifest())
    _, again = await admin("PUT", f"{HERE}/shop", made)
    assert again == made
    _, again = await admin("PATCH", f"{HERE}/shop", {}, headers={"Content-Type": "application/merge-patch+json"})
    assert again == made


async def test_generated_names_and_what_the_server_owns(admin: Http) -> None:
    meta = {"generateName": "shop-", "name": "", "uid": "mine", "generation": 9, "creationTimestamp": "2000-01-01T00:00:00Z"}
    code, made = await admin("POST", HERE, manifest(metadata=meta) | {"status": {"phase": "Running"}})
    assert code == 201
    assert made["metadata"]["name"].startswith("shop-")
    assert made["metadata"]["uid"] != "mine"
    assert made["metadata"]["generation"] == 1
    assert not made["metadata"]["creationTimestamp"].startswith("2000")
    assert made["status"] == {"phase": "Pending"}
    code, status = await admin("POST", HERE, manifest(metadata={"resourceVersion": "5"}))
    assert (code, status["reason"]) == (400, "BadRequest")


@pytest.mark.parametrize("meta", [{"name": "other"}, {"namespace": "other"}])
async def test_body_and_path_agree(admin: Http, meta: dict[str, str]) -> None:
    await admin("POST", HERE, manifest())
    code, status = await admin("PUT", f"{HERE}/shop", manifest(metadata=meta))
    assert (code, status["reason"]) == (400, "BadRequest")


async def test_status_is_written_apart(api: TestApi, admin: Http) -> None:
    _, made = await admin("POST", HERE, manifest())
    status = {"phase": "Running", "node": "n1"}
    _, after = await admin("PUT", f"{HERE}/shop/status", made | {"status": status, "spec": {"contexts": []}})
    assert (after["status"], after["spec"], after["metadata"]["generation"]) == (status, made["spec"], 1)
    _, after = await admin("PUT", f"{HERE}/shop", after | {"status": {"phase": "Failed"}})
    assert after["status"] == status
    merge = {"Content-Type": "application/merge-patch+json"}
    _, after = await admin(
        "PATCH", f"{HERE}/shop/status", {"status": {"epoch": 2}, "spec": {"restartPolicy": "Never"}}, headers=merge
    )
    assert (after["status"]["epoch"], after["spec"]) == (2, made["spec"])


async def test_patches(admin: Http) -> None:
    await admin("POST", HERE, manifest())
    merge = {"Content-Type": "application/merge-patch+json"}
    _, after = await admin("PATCH", f"{HERE}/shop", {"metadata": {"labels": {"a": "b"}}}, headers=merge)
    assert after["metadata"]["labels"] == {"a": "b"}
    operations = [
        {"op": "replace", "path": "/spec/contexts/0/image", "value": "x"},
        {"op": "remove", "path": "/metadata/labels/a"},
    ]
    _, after = await admin("PATCH", f"{HERE}/shop", operations, headers={"Content-Type": "application/json-patch+json"})
    assert (after["spec"]["contexts"][0]["image"], after["metadata"].get("labels")) == ("x", None)
    code, status = await admin("PATCH", f"{HERE}/shop", {"spec": {"contexts": [{"name": "A"}]}}, headers=merge)
    assert code == 422
    assert {each["field"] for each in status["details"]["causes"]} == {"spec.contexts[0].image"}
    code, status = await admin("PATCH", f"{HERE}/shop", {"metadata": {"resourceVersion": "1"}}, headers=merge)
    assert (code, status["reason"]) == (409, "Conflict")
    for kind in ("application/strategic-merge-patch+json", "application/apply-patch+yaml"):
        code, status = await admin("PATCH", f"{HERE}/shop", {}, headers={"Content-Type": kind})
        assert (code, status["reason"]) == (415, "UnsupportedMediaType")
        assert "merge-patch+json" in status["message"]


async def test_dry_run_stores_nothing(admin: Http) -> None:
    code, made = await admin("POST", f"{HERE}?dryRun=All", manifest())
    assert (code, bool(made["metadata"]["uid"])) == (201, True)
    assert (await admin("GET", f"{HERE}/shop"))[0] == 404
    await admin("POST", HERE, manifest())
    assert (await admin("POST", f"{HERE}?dryRun=All", manifest()))[0] == 409
    _, before = await admin("GET", f"{HERE}/shop")
    merge = {"Content-Type": "application/merge-patch+json"}
    _, after = await admin("PATCH", f"{HERE}/shop?dryRun=All", {"spec": {"operatingMode": "Suspended"}}, headers=merge)
    assert (after["spec"]["operatingMode"], after["metadata"]["generation"]) == ("Suspended", 2)
    assert (await admin("DELETE", f"{HERE}/shop", {"dryRun": ["All"]}))[0] == 200
    assert await admin("GET", f"{HERE}/shop") == (200, before)


async def test_unknown_fields_by_field_validation(admin: Http) -> None:
    body = manifest(replcas=3)
    code, status = await admin("POST", HERE, body)
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.replcas")
    async with admin.session.post(f"{admin.url}{HERE}?fieldValidation=Warn", json=body) as answer:
        assert answer.status == 201
        assert "spec.replcas" in answer.headers["Warning"]
    async with admin.session.post(f"{admin.url}{HERE}?fieldValidation=Ignore", json=manifest("b", replcas=3)) as answer:
        assert answer.status == 201
        assert "Warning" not in answer.headers


async def test_yaml_bodies(admin: Http) -> None:
    text = b"apiVersion: primordia.dev/v1alpha1\nkind: Lifeform\nmetadata: {name: y}\nspec: {contexts: [{name: a, image: x}]}\n"
    yaml = {"Content-Type": "application/yaml"}
    assert (await admin("POST", HERE, text, headers=yaml))[0] == 201
    code, status = await admin("POST", HERE, text + b"---\n" + text, headers=yaml)
    assert (code, "2 YAML documents" in status["message"]) == (400, True)


async def test_sizes_and_depths_are_bounded(admin: Http) -> None:
    large = io.BytesIO(b'{"kind":"' + b"x" * (1024 * 1024) + b'"}')
    async with admin.session.post(admin.url + HERE, data=large) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (413, "RequestEntityTooLarge")

    async def long() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with admin.session.post(admin.url + HERE, data=long()) as answer:
        assert answer.status == 413
    code, status = await admin("POST", HERE, b"[" * 500_000)
    assert (code, status["reason"]) == (400, "BadRequest")
    deep = manifest(recovery={"a": json.loads("[" * 70 + "]" * 70)})
    code, status = await admin("POST", HERE, deep)
    assert code in (400, 422)


async def test_a_published_port_is_one_lifeforms(admin: Http) -> None:
    port = {"ports": [{"containerPort": 6379, "publish": 16379}]}
    assert (await admin("POST", HERE, manifest("a", context=port)))[0] == 201
    code, status = await admin("POST", HERE, manifest("b", context=port))
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.contexts[0].ports[0].publish")
    assert "Lifeform default/a" in status["message"]
    await admin("POST", HERE, manifest("c"))
    code, _ = await admin("PUT", f"{HERE}/c", manifest("c", context=port))
    assert code == 422
    assert (await admin("DELETE", f"{HERE}/a"))[0] == 200
    assert (await admin("POST", f"{HERE}?dryRun=All", manifest("b", context=port)))[0] == 201
    assert (await admin("POST", HERE, manifest("b", context=port)))[0] == 201
    code, status = await admin("POST", f"{HERE}?dryRun=All", manifest("d", context=port))
    assert (code, "Lifeform default/b" in status["message"]) == (422, True)


async def test_finalizers_hold_an_object(admin: Http) -> None:
    await admin("POST", HERE, manifest(metadata={"finalizers": ["example.org/x"]}))
    options = {"propagationPolicy": "Background", "kind": "DeleteOptions", "apiVersion": "v1"}
    code, marked = await admin("DELETE", f"{HERE}/shop", options)
    assert (code, marked["kind"], bool(marked["metadata"]["deletionTimestamp"])) == (200, "Lifeform", True)
    merge = {"Content-Type": "application/merge-patch+json"}
    assert (await admin("PATCH", f"{HERE}/shop", {"metadata": {"finalizers": None}}, headers=merge))[0] == 200
    assert (await admin("GET", f"{HERE}/shop"))[0] == 404


async def test_preconditions_of_a_delete(admin: Http) -> None:
    _, made = await admin("POST", HERE, manifest())
    for bad in ({"uid": "other"}, {"resourceVersion": "1"}):
        code, status = await admin("DELETE", f"{HERE}/shop", {"preconditions": bad})
        assert (code, status["reason"]) == (409, "Conflict")
    assert (await admin("DELETE", f"{HERE}/shop", {"preconditions": {"uid": made["metadata"]["uid"]}}))[0] == 200


async def test_secrets_are_folded(api: TestApi, admin: Http) -> None:
    body = {"kind": "Secret", "apiVersion": "primordia.dev/v1alpha1", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    code, made = await admin("POST", f"{ROOT}/namespaces/default/secrets", body)
    assert (code, made["data"], "stringData" in made) == (201, {"a": "Yg=="}, False)
    stored = await api.registry.get(Secret, "s", "default")
    assert stored.string_data == {}
    merge = {"Content-Type": "application/merge-patch+json"}
    _, after = await admin("PATCH", f"{ROOT}/namespaces/default/secrets/s", {"stringData": {"c": "d"}}, headers=merge)
    assert after["data"] == {"a": "Yg==", "c": "ZA=="}


async def test_methods_and_media_types_that_do_not_fit(admin: Http) -> None:
    for method, path in (("PUT", HERE), ("POST", f"{ROOT}/lifeforms"), ("POST", f"{HERE}/x"), ("DELETE", f"{HERE}/x/status")):
        code, status = await admin(method, path)
        assert (code, status["reason"]) == (405, "MethodNotAllowed")
    assert (await admin("GET", HERE, headers={"Accept": "application/vnd.kubernetes.protobuf"}))[0] == 406
    assert (await admin("POST", HERE, manifest(), headers={"Accept": "text/html"}))[0] == 406
    assert (await admin("POST", f"{HERE}?includeObject=Some", manifest()))[0] == 400
    assert (await admin("GET", f"{HERE}/shop"))[0] == 404, "what was refused was done all the same"
    assert (await admin("POST", HERE, b"x", headers={"Content-Type": "image/png"}))[0] == 415
    assert (await admin("POST", HERE, b"{", headers={"Content-Type": "application/json"}))[0] == 400
    assert (await admin("GET", f"{ROOT}/nonesuch"))[0] == 404


# ---------------------------------------------------------------- lists


async def test_lists_select_and_page(api: TestApi, admin: Http) -> None:
    for index in range(25):
        labels = {"parity": "odd" if index % 2 else "even"}
        code, _ = await admin("POST", HERE, manifest(f"l{index:02}", metadata={"labels": labels}))
        assert code == 201
    await admin("POST", HERE.replace("default", "other"), manifest("z"))
    _, every = await admin("GET", f"{ROOT}/lifeforms")
    assert (every["kind"], len(every["items"])) == ("LifeformList", 26)
    _, here = await admin("GET", HERE)
    names = [each["metadata"]["name"] for each in here["items"]]
    assert names == [f"l{index:02}" for index in range(25)]
    _, odd = await admin("GET", f"{HERE}?labelSelector=parity%3Dodd&fieldSelector=status.phase%3DPending")
    assert [each["metadata"]["name"] for each in odd["items"]] == names[1::2]
    _, one = await admin("GET", f"{HERE}?fieldSelector=metadata.name%3Dl03")
    assert [each["metadata"]["name"] for each in one["items"]] == ["l03"]
    assert (await admin("GET", f"{HERE}?fieldSelector=spec.x%3D1"))[0] == 400

    for selector in ("", "&labelSelector=parity%3Deven"):
        gathered: list[str] = []
        token, first = "", ""
        while True:
            _, page = await admin("GET", f"{HERE}?limit=4{selector}&continue={token}")
            first = first or page["metadata"]["resourceVersion"]
            assert page["metadata"]["resourceVersion"] == first
            gathered += [each["metadata"]["name"] for each in page["items"]]
            if len(gathered) == 4:  # what changes meanwhile does not touch the pages to come
                await admin("DELETE", f"{HERE}/l20")
            token = page["metadata"].get("continue", "")
            if not token:
                break
        assert gathered == (names[::2] if selector else names)
        await admin("POST", HERE, manifest("l20", metadata={"labels": {"parity": "even"}}))


async def test_remaining_items_are_counted(admin: Http) -> None:
    for index in range(5):
        await admin("POST", HERE, manifest(f"l{index}"))
    _, page = await admin("GET", f"{HERE}?limit=2")
    assert page["metadata"]["remainingItemCount"] == 3


async def test_lists_of_a_revision(admin: Http) -> None:
    _, made = await admin("POST", HERE, manifest("a"))
    await admin("POST", HERE, manifest("b"))
    version = made["metadata"]["resourceVersion"]
    _, old = await admin("GET", f"{HERE}?resourceVersion={version}&resourceVersionMatch=Exact")
    assert [each["metadata"]["name"] for each in old["items"]] == ["a"]
    _, new = await admin("GET", f"{HERE}?resourceVersion={version}")
    assert len(new["items"]) == 2
    code, status = await admin("GET", f"{HERE}?resourceVersion=999999")
    assert (code, status["reason"]) == (410, "Expired")


async def test_a_compacted_list_is_gone(api: TestApi, admin: Http) -> None:
    for index in range(4):
        await admin("POST", HERE, manifest(f"l{index}"))
    _, page = await admin("GET", f"{HERE}?limit=2")
    await admin("POST", HERE, manifest("more"))
    now = (await api.store.status()).revision
    await api.store.compact(now)
    code, status = await admin("GET", f"{HERE}?limit=2&continue={page['metadata']['continue']}")
    assert (code, status["reason"]) == (410, "Expired")


async def test_delete_collection(admin: Http) -> None:
    for index in range(4):
        await admin("POST", HERE, manifest(f"l{index}", metadata={"labels": {"n": str(index % 2)}}))
    assert (await admin("DELETE", f"{HERE}?labelSelector=n%3D1"))[1]["message"] == "2 lifeforms deleted."
    _, left = await admin("GET", HERE)
    assert [each["metadata"]["name"] for each in left["items"]] == ["l0", "l2"]


async def test_tables(admin: Http) -> None:
    await admin("POST", HERE, manifest())
    accept = {"Accept": TABLE}
    _, table = await admin("GET", HERE, headers=accept)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    columns = [column["name"] for column in table["columnDefinitions"] if not column["priority"]]
    assert columns == ["Name", "Phase", "Ready", "Node", "Epoch", "Restarts", "Age"]
    assert table["rows"][0]["cells"][:3] == ["shop", "Pending", "0/1"]
    assert table["rows"][0]["object"]["metadata"]["name"] == "shop"
    assert table["metadata"]["resourceVersion"]
    _, one = await admin("GET", f"{HERE}/shop?includeObject=Object", headers=accept)
    assert one["rows"][0]["object"]["spec"]["contexts"][0]["name"] == "redis"


async def test_namespaces_are_those_with_something_in_them(admin: Http) -> None:
    for name in ("b", "a-b", "a"):
        await admin("POST", HERE.replace("default", name), manifest())
    _, found = await admin("GET", "/api/v1/namespaces")
    assert [each["metadata"]["name"] for each in found["items"]] == ["a", "a-b", "b", "default"]
    assert (await admin("GET", "/api/v1/namespaces/any"))[1]["kind"] == "Namespace"
    assert (await admin("POST", "/api/v1/namespaces", {}))[0] == 405


async def test_discovery(admin: Http) -> None:
    _, groups = await admin("GET", "/apis")
    assert groups["groups"][0]["preferredVersion"]["groupVersion"] == "primordia.dev/v1alpha1"
    _, listed = await admin("GET", ROOT)
    names = {each["name"] for each in listed["resources"]}
    assert {"lifeforms", "lifeforms/status", "lifeforms/exec", "contexts/log", "nodes", "secrets"} <= names
    assert "secrets/status" not in names
    assert {each["name"] for each in (await admin("GET", "/api/v1"))[1]["resources"]} == {
        "events",
        "events/status",
        "namespaces",
    } - {"events/status"}
    for path in ("/", "/api", "/apis/primordia.dev", "/version", "/openapi/v2", "/openapi/v3", "/openapi/v3/api/v1"):
        assert (await admin("GET", path))[0] == 200
    assert (await admin("POST", "/version"))[0] == 405


async def test_metrics_count_requests(api: TestApi, admin: Http) -> None:
    await admin("GET", HERE)
    await admin("GET", f"{HERE}/nope")
    code, text = await admin("GET", "/metrics")
    assert code == 200
    assert 'primordia_api_requests_total{verb="GET",resource="lifeforms",code="404"} 1' in text
    assert 'primordia_api_request_duration_seconds_count{verb="GET",resource="lifeforms"} 2' in text


# ---------------------------------------------------------------- watches


async def _next(lines: AsyncIterator[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    async with asyncio.timeout(DEADLINE_S):
        event = await anext(lines)
    return event["type"], event["object"]


async def test_a_watch_goes_on_from_a_list(admin: Http) -> None:
    await admin("POST", HERE, manifest("a"))
    _, listed = await admin("GET", HERE)
    version = listed["metadata"]["resourceVersion"]
    await admin("POST", HERE, manifest("b"))
    async with admin.lines(f"{HERE}?watch=true&resourceVersion={version}") as lines:
        kind, obj = await _next(lines)
        assert (kind, obj["metadata"]["name"]) == ("ADDED", "b")
        _, after = await admin("PUT", f"{HERE}/a", manifest("a", operatingMode="Suspended"))
        kind, obj = await _next(lines)
        assert (kind, obj) == ("MODIFIED", after)
        await admin("DELETE", f"{HERE}/a")
        kind, obj = await _next(lines)
        assert (kind, obj["metadata"]["name"]) == ("DELETED", "a")
        assert int(obj["metadata"]["resourceVersion"]) > int(after["metadata"]["resourceVersion"])


async def test_a_watch_without_a_version_tells_what_is_there(admin: Http) -> None:
    await admin("POST", HERE, manifest("a"))
    options = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    async with admin.lines(f"{HERE}?{options}") as lines:
        assert (await _next(lines))[1]["metadata"]["name"] == "a"
        kind, mark = await _next(lines)
        assert (kind, mark["metadata"]["annotations"]) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})
        await admin("POST", HERE, manifest("b"))
        assert (await _next(lines))[1]["metadata"]["name"] == "b"


async def test_selected_objects_come_and_go(admin: Http) -> None:
    await admin("POST", HERE, manifest("a"))
    _, listed = await admin("GET", HERE)
    query = f"watch=1&resourceVersion={listed['metadata']['resourceVersion']}&labelSelector=x"
    async with admin.lines(f"{HERE}?{query}") as lines:
        await admin("PUT", f"{HERE}/a", manifest("a", metadata={"labels": {"x": "1"}}))
        assert (await _next(lines))[0] == "ADDED"
        await admin("PUT", f"{HERE}/a", manifest("a", metadata={"labels": {"x": "2"}}))
        assert (await _next(lines))[0] == "MODIFIED"
        await admin("PUT", f"{HERE}/a", manifest("a"))
        assert (await _next(lines))[0] == "DELETED"
        await admin("DELETE", f"{HERE}/a")
        await admin("POST", HERE, manifest("b", metadata={"labels": {"x": "1"}}))
        assert (await _next(lines))[1]["metadata"]["name"] == "b"


async def test_whoever_watches_one_object_hears_of_no_other(admin: Http) -> None:
    _, listed = await admin("GET", HERE)
    query = f"watch=1&resourceVersion={listed['metadata']['resourceVersion']}&fieldSelector=metadata.name=b"
    async with admin.lines(f"{HERE}?{query}") as lines:
        for name in ("a", "ba", "b"):
            await admin("POST", HERE, manifest(name))
        kind, obj = await _next(lines)
        assert (kind, obj["metadata"]["name"]) == ("ADDED", "b")
        for name in ("ba", "b"):
            await admin("DELETE", f"{HERE}/{name}")
        kind, obj = await _next(lines)
        assert (kind, obj["metadata"]["name"]) == ("DELETED", "b")


async def test_tables_are_watched_with_columns_once(admin: Http) -> None:
    await admin("POST", HERE, manifest("a"))
    async with admin.lines(f"{HERE}?watch=1", headers={"Accept": TABLE}) as lines:
        _, first = await _next(lines)
        assert (first["kind"], bool(first["columnDefinitions"]), first["rows"][0]["cells"][0]) == ("Table", True, "a")
        await admin("POST", HERE, manifest("b"))
        _, second = await _next(lines)
        assert (second["columnDefinitions"], second["rows"][0]["cells"][0]) == (None, "b")


async def test_a_compacted_watch_is_told_so(api: TestApi, admin: Http) -> None:
    for name in ("a", "b", "c"):
        await admin("POST", HERE, manifest(name))
    await api.store.compact((await api.store.status()).revision)
    for version in ("2", "999999"):
        async with admin.lines(f"{HERE}?watch=1&resourceVersion={version}") as lines:
            kind, status = await _next(lines)
            assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
            with pytest.raises(StopAsyncIteration):
                await _next(lines)


async def test_a_watch_ends_with_its_time(admin: Http) -> None:
    async with admin.lines(f"{HERE}?watch=1&timeoutSeconds=1") as lines:
        with pytest.raises(StopAsyncIteration):
            await _next(lines)


async def test_bookmarks_move_the_version_on(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=Limits(bookmark_s=0)) as api, http(api) as admin:
        await admin("POST", HERE, manifest("a"))
        query = "watch=1&allowWatchBookmarks=1&labelSelector=never"
        async with admin.lines(f"{HERE}?{query}") as lines:
            first = (await _next(lines))[1]["metadata"]["resourceVersion"]
            _, made = await admin("POST", HERE, manifest("b"))
            kind, mark = await _next(lines)
            assert kind == "BOOKMARK"
            assert int(first) < int(mark["metadata"]["resourceVersion"]) >= int(made["metadata"]["resourceVersion"])


async def test_a_slow_watcher_is_dropped_and_costs_nothing(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=Limits(watch_bytes=20_000)) as api, http(api) as admin:
        note = {"annotations": {"note": "x" * 100_000}}
        _, made = await admin("POST", HERE, manifest("a", metadata=note))
        version = made["metadata"]["resourceVersion"]
        async with admin.session.get(f"{admin.url}{HERE}?watch=1&resourceVersion={version}") as slow:
            for index in range(120):  # 12 MB: more than all socket buffers on the way
                note["annotations"]["n"] = str(index)
                assert (await admin("PUT", f"{HERE}/a", manifest("a", metadata=note)))[0] == 200
            with pytest.raises(aiohttp.ClientError):
                async with asyncio.timeout(DEADLINE_S):
                    await slow.content.read()


async def test_stop_ends_watches(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api, http(api) as admin, admin.lines(f"{HERE}?watch=1") as lines:
        async with asyncio.timeout(DEADLINE_S):
            await api.server.stop()
        with contextlib.suppress(aiohttp.ClientError):
            assert [line async for line in lines] == []


# ---------------------------------------------------------------- faults


async def test_a_store_that_is_away_is_a_503_with_a_remedy(tmp_path: Path) -> None:
    store = MemoryStore(SystemClock())
    async with running_api(tmp_path, store) as api, http(api) as admin:
        await admin("POST", HERE, manifest())
        await store.close()
        for method, path in (("GET", f"{HERE}/shop"), ("GET", HERE), ("POST", HERE), ("DELETE", f"{HERE}/shop")):
            code, status = await admin(method, path, manifest("b") if method == "POST" else None)
            assert (code, status["reason"]) == (503, "ServiceUnavailable")
        assert (await admin("GET", "/livez"))[0] == 200


async def test_two_writers_lose_no_update(api: TestApi) -> None:
    async with connected(api.admin) as one, connected(api.admin) as two:
        await one.create_manifest(manifest())

        async def add(client: AsyncClient, key: str) -> None:
            for index in range(20):
                await client.patch(Lifeform, "shop", {"metadata": {"labels": {f"{key}{index}": "x"}}})

        async with asyncio.TaskGroup() as group:
            group.create_task(add(one, "a"))
            group.create_task(add(two, "b"))
        assert len((await one.get(Lifeform, "shop")).metadata.labels) == 40
