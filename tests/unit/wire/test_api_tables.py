"""Tables, OpenAPI and exec frames: what people and kubectl read."""

from __future__ import annotations

import datetime
import json
from typing import Any

import msgspec
import pytest

from primordia.wire import openapi
from primordia.wire.kinds import find_kind, kind_of_manifest, path_of
from primordia.wire.meta import Condition, ObjectMeta, Status
from primordia.wire.resources import (
    KINDS,
    Context,
    ContextSummary,
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    LifeformStatus,
    Node,
    NodeCapacity,
    NodeSpec,
    NodeStatus,
    Port,
    Template,
)
from primordia.wire.streams import end_of, exit_code_of
from primordia.wire.structure import convert
from primordia.wire.tables import columns_of, table

NOW = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def _cells(obj: Any) -> dict[str, Any]:
    document = table(type(obj), [obj], NOW)
    return {c["name"]: cell for c, cell in zip(document["columnDefinitions"], document["rows"][0]["cells"], strict=True)}


def test_a_lifeforms_row() -> None:
    ports = (Port(container_port=6379, publish=16379), Port(container_port=80))
    spec = LifeformSpec(contexts=(ContextTemplate(name="a", image="redis", ports=ports), ContextTemplate(name="b", image="x")))
    status = LifeformStatus(
        phase="Running",
        node="n1",
        epoch=3,
        contexts=(ContextSummary(name="a", ready=True, restarts=2), ContextSummary(name="b")),
    )
    meta = ObjectMeta(name="shop", creation_timestamp="2026-01-01T11:55:00Z")
    cells = _cells(Lifeform(metadata=meta, spec=spec, status=status))
    assert cells == {
        "Name": "shop",
        "Phase": "Running",
        "Ready": "1/2",
        "Node": "n1",
        "Epoch": 3,
        "Restarts": 2,
        "Age": "5m",
        "Ports": "16379->6379",
        "Images": "redis,x",
        "Rack": "<none>",
        "Segment": "<none>",
    }
    going = msgspec.structs.replace(meta, deletion_timestamp="2026-01-01T11:55:00Z")
    assert _cells(Lifeform(metadata=going, spec=spec, status=status))["Phase"] == "Terminating"


def test_a_nodes_row() -> None:
    status = NodeStatus(
        capacity=NodeCapacity(cpu="4", memory="8Gi"),
        allocated=NodeCapacity(cpu="1500m", memory="1Gi", contexts=2),
        conditions=(Condition(type="Ready", status="True"),),
    )
    labels = {"topology.primordia.dev/rack": "r1"}
    cells = _cells(Node(metadata=ObjectMeta(name="n", labels=labels), spec=NodeSpec(unschedulable=True), status=status))
    assert (cells["Status"], cells["CPU"], cells["Memory"]) == ("Ready,SchedulingDisabled", "1.5/4", "1.0 GiB/8.0 GiB")
    assert (cells["Rack"], cells["Segment"], cells["Age"]) == ("r1", "<none>", "<unknown>")


def test_a_forks_row() -> None:
    spec: dict[str, Any] = {"node": "n1", "epoch": 1, "template": {"name": "main", "image": "x"}}
    spec |= {"parent": "web.main", "parentUid": "u", "depth": 1, "expiresAt": "2026-01-01T12:10:00Z"}
    plain = {"kind": "Context", "metadata": {"name": "f"}, "spec": spec, "status": {"phase": "Running", "startedFrom": "cold"}}
    cells = _cells(convert(Context, plain)[0])
    assert (cells["Parent"], cells["Expires"], cells["Started"], cells["Template"]) == ("web.main", "10m", "cold", "<none>")
    assert [c.name for c in columns_of(Context) if not c.priority][-2:] == ["Parent", "Age"]


def test_a_templates_row() -> None:
    nodes = [{"node": "n1", "warm": 3, "sizeBytes": 2**20}, {"node": "n2", "warm": 1, "sizeBytes": 2**21}]
    spec = {"image": "python", "warmUp": {"python": "import json\nimport re"}, "warm": {"min": 2}}
    plain = {"kind": "Template", "metadata": {"name": "py"}, "spec": spec, "status": {"phase": "Ready", "nodes": nodes}}
    cells = _cells(convert(Template, plain)[0])
    assert (cells["Warm"], cells["Nodes"], cells["Size"]) == ("4 (2:2)", 2, "2.0 MiB")
    assert cells["Warm Up"] == "python: import json import re"


_LEAST: dict[str, Any] = {
    "Lifeform": {"spec": {"contexts": []}},
    "Context": {"spec": {"lifeform": "", "lifeformUid": "", "node": "", "epoch": 0, "template": {"name": "", "image": ""}}},
    "Template": {"spec": {"image": ""}},
    "Volume": {"spec": {"size": ""}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_row_even_when_nothing_is_known(kind: Any) -> None:
    plain = {"kind": kind.KIND, "metadata": {"name": "x", "creationTimestamp": "garbage"}, **_LEAST.get(kind.KIND, {})}
    obj = convert(kind, plain)[0]
    document = json.loads(msgspec.json.encode(table(kind, [obj], NOW, include="Object")))
    (row,) = document["rows"]
    assert len(row["cells"]) == len(columns_of(kind)) == len(document["columnDefinitions"])
    assert row["object"]["metadata"]["name"] == "x"
    assert "object" not in table(kind, [obj], NOW, include="None")["rows"][0]


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_openapi_describes_every_kind_and_resolves(version: str) -> None:
    for path, kinds in openapi.group_versions().items():
        document: Any = openapi.v3(path) if version == "v3" else openapi.v2()
        assert document is not None
        schemas = document["components"]["schemas"] if version == "v3" else document["definitions"]
        root = "#/components/schemas/" if version == "v3" else "#/definitions/"
        references = {each.removeprefix(root) for each in _references(document)}
        assert references <= set(schemas)
        for kind in kinds:
            schema = schemas[f"dev.primordia.v1alpha1.{kind.KIND}"]
            assert schema["x-kubernetes-group-version-kind"][0]["kind"] == kind.KIND
            assert schema["description"]
    assert openapi.v3("apis/nonesuch/v1") is None


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [each for item in value for each in _references(item)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if "$ref" in value else []
    assert not own or len(value) == 1, "OpenAPI ignores what stands beside a reference"
    assert "anyOf" not in value
    return own + [each for item in value.values() for each in _references(item)]


def test_openapi_tells_of_claims_and_forks() -> None:
    document: Any = openapi.v3("apis/primordia.dev/v1alpha1")
    place = "/apis/primordia.dev/v1alpha1/namespaces/{namespace}"
    claim = document["paths"][f"{place}/boxes"]["post"]
    assert claim["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(".BoxRequest")
    assert f"{place}/contexts/{{name}}/fork" in openapi.v2()["paths"]
    assert document["components"]["schemas"]["dev.primordia.v1alpha1.BoxRequest"]["required"] == ["template"]
    assert "boxes" not in str(openapi.v3("api/v1"))


def test_openapi_tells_what_docstrings_say() -> None:
    document: Any = openapi.v3("apis/primordia.dev/v1alpha1")
    port = document["components"]["schemas"]["dev.primordia.v1alpha1.Port"]
    assert "every node's address" in port["properties"]["publish"]["description"]
    assert port["required"] == ["containerPort"]


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_exit_codes_survive_the_wire(code: int) -> None:
    status = msgspec.json.decode(msgspec.json.encode(end_of(code)), type=Status)
    assert exit_code_of(status) == code
    assert status.status == ("Success" if code == 0 else "Failure")


def test_a_status_without_an_exit_code_has_none() -> None:
    assert exit_code_of(Status(reason="ServiceUnavailable")) is None
    assert exit_code_of(end_of(127, "cannot be started")) == 127


def test_kinds_by_word() -> None:
    assert {find_kind(word) for word in ("lf", "kbl", "Lifeform", "LIFEFORMS", "lifeforms.primordia.dev")} == {Lifeform}
    with pytest.raises(Exception, match="Did you mean 'lifeform'"):
        find_kind("lifefrom")
    with pytest.raises(Exception, match="no `kind`"):
        kind_of_manifest({"apiVersion": "v1"})
    with pytest.raises(Exception, match="Did you mean 'Lifeform'"):
        kind_of_manifest({"kind": "Liveform"})
    assert path_of(Lifeform, "a b", "x/y", "log") == "/apis/primordia.dev/v1alpha1/namespaces/a%20b/lifeforms/x%2Fy/log"
    assert path_of(Node, "default", "n") == "/apis/primordia.dev/v1alpha1/nodes/n"
