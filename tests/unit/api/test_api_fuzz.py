"""Thousands of mutated manifests and odd requests: every answer is below 500, every refusal a Status with a sentence.

What was stored in the course of it is readable afterwards.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primordia.testing.api import TestApi, raw_session, running_api
from primordia.wire.kinds import path_of
from primordia.wire.resources import BY_KIND, KINDS

DOCUMENTS = 4000
DEADLINE_S = 240

LIFEFORM: dict[str, Any] = {
    "apiVersion": "primordia.dev/v1alpha1",
    "kind": "Lifeform",
    "metadata": {"name": "shop", "namespace": "default", "labels": {"app": "shop"}, "finalizers": [], "ownerReferences": []},
    "spec": {
        "operatingMode": "Running",
        "nodeSelector": {"topology.primordia.dev/rack": "r2"},
        "colocateWith": {"matchLabels": {"app": "billing"}},
        "contexts": [
            {
                "name": "redis",
                "image": "redis",
                "command": ["redis-server"],
                "args": ["--dir", "/data"],
                "env": [{"name": "A", "value": "b"}],
                "workingDir": "/srv",
                "user": "redis",
                "tty": False,
                "resources": {"cpu": "1", "memory": "128Mi"},
                "ports": [{"name": "redis", "containerPort": 6379, "publish": 16379}],
                "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1.5, "failureThreshold": 3},
                "secrets": [{"name": "s", "mountPath": "/run/secrets"}],
            }
        ],
        "restartPolicy": "Always",
        "network": {"egress": True, "allowFrom": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "web"}}}]},
        "terminationGracePeriodSeconds": 10,
    },
    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "contexts": [{"name": "redis"}]},
}
SEEDS: dict[str, dict[str, Any]] = {
    "Lifeform": LIFEFORM,
    "Secret": {"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "Yg=="}, "stringData": {"c": "d"}, "type": "Opaque"},
    "Image": {
        "kind": "Image",
        "metadata": {"name": "redis"},
        "spec": {
            "debian": {"packages": ["redis-server"]},
            "config": {"cmd": ["redis-server"], "env": [{"name": "A", "value": "b"}]},
        },
    },
    "Template": {
        "kind": "Template",
        "metadata": {"name": "py"},
        "spec": {
            "image": "python",
            "warmUp": {"python": "import json"},
            "warm": {"min": 1, "max": 4},
            "resources": {"cpu": "1", "memory": "128Mi"},
            "env": [{"name": "A", "value": "b"}],
            "user": "nobody",
            "workingDir": "/srv",
        },
        "status": {"phase": "Ready", "nodes": [{"node": "n1", "warm": 2}]},
    },
    "Node": {
        "kind": "Node",
        "metadata": {"name": "n1"},
        "spec": {"unschedulable": False, "podCIDR": "10.0.0.0/24"},
        "status": {},
    },
    "Soup": {"kind": "Soup", "metadata": {"name": "soup"}, "spec": {"podCIDR": "10.128.0.0/9", "nodes": 1}},
    "Context": {
        "kind": "Context",
        "metadata": {"name": "shop.redis", "namespace": "default"},
        "spec": {
            "lifeform": "shop",
            "lifeformUid": "u",
            "node": "n1",
            "epoch": 1,
            "template": LIFEFORM["spec"]["contexts"][0],
            "wanted": "Running",
        },
    },
    "Event": {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Lifeform", "name": "shop"},
        "reason": "Started",
        "message": "x",
        "count": 1,
        "type": "Normal",
    },
}
NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 65536, 2**31, 2**63, 2**64, 10**300, 1.5, -0.0, 1e308, "", " ", "x" * 300, "a/b", "../..",
    "\u202e", "💥", "ü", "yes", "12Q", "-5Mi", "0", "1e9Gi", "٣Mi", "NaN", [], {}, [[]], {"a": {"b": {}}}, [None], ["x"] * 50,
    "x" * 70_000, {"": ""}, {"a b": 1}, "10.0.0.0/99", "=", "${HOME}", "%s%n", "'; drop", "<x>", "\n", "a\nb", "--flag",
]  # fmt: skip
QUERIES = [
    {}, {}, {}, {}, {"dryRun": "All"}, {"fieldValidation": "Warn"}, {"fieldValidation": "Ignore"}, {"fieldValidation": "Odd"},
    {"dryRun": "x"}, {"limit": "x"}, {"labelSelector": "a in ("}, {"fieldSelector": "x"}, {"watch": "perhaps"},
    {"resourceVersion": "x"}, {"resourceVersion": "99999999999"}, {"includeObject": "x"}, {"propagationPolicy": "Orphan"},
    {"fieldManager": "\u0000"}, {"pretty": "true"}, {"limit": "1"}, {"timeoutSeconds": "1"},
]  # fmt: skip
TYPES = [
    "application/json", "application/json", "application/json", "application/yaml", "application/merge-patch+json",
    "application/json-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml", "", "x",
]  # fmt: skip
ACCEPTS = ["application/json", "*/*", "application/json;as=Table;v=v1;g=meta.k8s.io", "text/html", "a;b;c,,;", ""]


def mutate(value: Any, rng: random.Random) -> Any:
    """The value with one thing in it changed."""
    places = list(_places(value))
    path = rng.choice(places)
    result = copy.deepcopy(value)
    if not path:
        return rng.choice(NASTY) if rng.random() < 0.1 else result
    parent = result
    for step in path[:-1]:
        parent = parent[step]
    last = path[-1]
    match rng.randrange(6):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["x", "", "kind", "name", "spec", str(last).upper(), f"{last}s", "a" * 500])] = rng.choice(NASTY)
        case 2 if isinstance(parent, list):
            parent.append(copy.deepcopy(rng.choice(parent)))
        case 3:
            parent[last] = mutate(parent[last], rng) if isinstance(parent[last], dict | list) else rng.choice(NASTY)
        case _:
            parent[last] = copy.deepcopy(rng.choice(NASTY))
    return result


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def encode(document: Any, kind: str, rng: random.Random) -> bytes:
    """The document as text: mostly JSON, at times YAML, or with a few bytes spoiled."""
    text = yaml.safe_dump(document) if kind == "application/yaml" else json.dumps(document, ensure_ascii=rng.random() < 0.5)
    body = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.1 and body:
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def patches(document: Any, rng: random.Random) -> Any:
    """A JSON patch, more or less."""
    pointer = rng.choice(
        ["", "/", "/spec", "/spec/contexts/0/image", "/spec/contexts/-", "/metadata/labels/a~1b", "x", 5, "/a/b/c"]
    )
    operations = ["add", "remove", "replace", "move", "copy", "test", "grow"]
    return [
        {
            "op": rng.choice(operations),
            "path": pointer,
            "from": rng.choice(["/spec", "/status", pointer]),
            "value": rng.choice(NASTY),
        }
        for _ in range(rng.randrange(4))
    ]


async def _send(api: TestApi, session: Any, rng: random.Random) -> tuple[str, int]:
    kind = rng.choice([*SEEDS, "Lifeform", "Lifeform"])
    document: Any = SEEDS[kind]
    if rng.random() < 0.5:
        document = {**document, "metadata": {**document["metadata"], "name": f"m{rng.randrange(30)}"}}
    for _ in range(rng.choice([0, 1, 1, 1, 2, 5])):
        document = mutate(document, rng)
    method = rng.choice(["POST", "POST", "POST", "PUT", "PATCH", "PATCH", "GET", "DELETE"])
    named = method in ("PUT", "PATCH") or (method in ("GET", "DELETE") and rng.random() < 0.7)
    sub = "status" if named and kind not in ("Secret", "Event") and method != "DELETE" and rng.random() < 0.2 else ""
    name = (
        document["metadata"].get("name") if isinstance(document, dict) and isinstance(document.get("metadata"), dict) else "x"
    )
    path = path_of(BY_KIND[kind], "default", str(name)[:300] or "x" if named else "", sub)
    media = (
        rng.choice(TYPES) if rng.random() < 0.3 else "application/merge-patch+json" if method == "PATCH" else "application/json"
    )
    body = encode(patches(document, rng) if media == "application/json-patch+json" else document, media, rng)
    headers = {"Content-Type": media, "Accept": rng.choice(ACCEPTS) if rng.random() < 0.2 else "*/*"}
    url = api.url + path
    sent = body if method != "GET" else None
    async with session.request(method, url, params=rng.choice(QUERIES), data=sent, headers=headers) as answer:
        content = await answer.read()
        where = f"{method} {path} {headers} {body[:2000]!r} -> {answer.status} {content[:2000]!r}"
        assert answer.status < 500, where
        if answer.status >= 400:
            status = msgspec.json.decode(content)
            assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", answer.status), where
            assert status["message"], where
            assert status["reason"], where
        return method, answer.status


async def test_mutated_manifests_never_break_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(20260101)
    outcomes: Counter[tuple[str, int]] = Counter()
    async with asyncio.timeout(DEADLINE_S), running_api(tmp_path) as api, raw_session(api.node) as session:
        for _ in range(DOCUMENTS):
            outcomes[await _send(api, session, rng)] += 1
        stored = 0
        for kind in KINDS:
            page = await api.registry.list(kind)
            assert page.undecodable == ()
            stored += len(page.items)
            async with session.get(api.url + path_of(kind)) as answer:
                assert answer.status == 200
                assert len(msgspec.json.decode(await answer.read())["items"]) == len(page.items)
    assert stored, "no mutation was harmless: the fuzz has lost its way"
    assert outcomes["POST", 201] > DOCUMENTS / 100
    assert outcomes["POST", 422] > DOCUMENTS / 20
    assert outcomes["PATCH", 200]
    assert outcomes["PUT", 200]
    assert "failed in a way" not in caplog.text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["kind", "metadata", "spec", "contexts", "name", "x"]), inner)
    ),
    max_leaves=25,
)


@given(st.lists(_JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=64), min_size=20, max_size=40))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_body_at_all(tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]) -> None:
    async def send() -> None:
        async with asyncio.timeout(60), running_api(tmp_path_factory.mktemp("api")) as api, raw_session(api.node) as session:
            for kind in KINDS[:4]:
                for body in bodies:
                    headers = {"Content-Type": "application/json" if len(body) % 2 else "application/yaml"}
                    async with session.post(api.url + path_of(kind, "default"), data=body, headers=headers) as answer:
                        assert 400 <= answer.status < 500, body
                        assert (await answer.json())["kind"] == "Status"

    asyncio.run(send())
