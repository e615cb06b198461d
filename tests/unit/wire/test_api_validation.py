"""The rules of each kind: every problem, by the path of its field."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from primordia.wire.problems import InvalidResourceError
from primordia.wire.resources import BY_KIND, Lifeform, Resource, Secret
from primordia.wire.structure import convert
from primordia.wire.validation import check, fold_string_data, problems_of


def _make(kind: str, name: str = "x", **fields: Any) -> Resource:
    cls = BY_KIND[kind]
    meta = {"name": name, **({"namespace": "default"} if cls.NAMESPACED else {}), **fields.pop("metadata", {})}
    return convert(cls, {"apiVersion": cls.API_VERSION, "kind": kind, "metadata": meta, **fields})[0]


def _lifeform(context: dict[str, Any] | None = None, **spec: Any) -> Resource:
    return _make("Lifeform", spec={"contexts": [{"name": "a", "image": "redis", **(context or {})}], **spec})


def _context(**spec: Any) -> Resource:
    base = {"lifeform": "l", "lifeformUid": "u", "node": "n", "epoch": 1, "template": {"name": "a", "image": "i"}}
    return _make("Context", spec=base | spec)


def _fields(obj: Resource, old: Resource | None = None) -> list[str]:
    return [each.field for each in problems_of(obj, old)]


def test_a_whole_manifest_is_accepted() -> None:
    context = {
        "command": ["redis-server", ""],
        "args": ["--dir", "/data"],
        "env": [{"name": "A", "value": "b c"}],
        "workingDir": "/srv",
        "user": "redis:redis",
        "resources": {"cpu": "250m", "memory": "80Mi"},
        "ports": [{"name": "redis", "containerPort": 6379, "publish": 16379}, {"containerPort": 80}],
        "readinessProbe": {"tcpSocket": {"port": 6379}},
        "secrets": [{"name": "s", "mountPath": "/run/secrets"}],
    }
    spec = {
        "nodeSelector": {"topology.primordia.dev/rack": "r2"},
        "colocateWith": {"matchLabels": {"app": "billing"}},
        "network": {"egress": True, "allowFrom": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "web"}}}]},
    }
    assert problems_of(_lifeform(context, **spec)) == ()


@pytest.mark.parametrize(
    ("context", "field"),
    [
        ({"name": "A"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "a.b"}, "name"),
        ({"image": ""}, "image"),
        ({"image": "a b"}, "image"),
        ({"command": []}, "command"),
        ({"command": [""]}, "command[0]"),
        ({"command": ["a\0b"]}, "command[0]"),
        ({"args": ["x", "\0"]}, "args[1]"),
        ({"args": ["x"] * 1001}, "args"),
        ({"args": ["x" * 200_000]}, "args"),
        ({"env": [{"name": "A=B"}]}, "env[0].name"),
        ({"env": [{"name": ""}]}, "env[0].name"),
        ({"env": [{"name": "A"}, {"name": "A"}]}, "env[1].name"),
        ({"env": [{"name": "A", "value": "\0"}]}, "env[0].value"),
        ({"workingDir": "srv"}, "workingDir"),
        ({"workingDir": "/srv/../etc"}, "workingDir"),
        ({"user": "Root!"}, "user"),
        ({"resources": {"memory": "12Q"}}, "resources.memory"),
        ({"resources": {"memory": "79Mi"}}, "resources.memory"),
        ({"resources": {"memory": "2Ti"}}, "resources.memory"),
        ({"resources": {"memory": "64Mi\n"}}, "resources.memory"),
        ({"resources": {"cpu": "0"}}, "resources.cpu"),
        ({"resources": {"cpu": "-1"}}, "resources.cpu"),
        ({"resources": {"cpu": "2k"}}, "resources.cpu"),
        ({"ports": [{"containerPort": 0}]}, "ports[0].containerPort"),
        ({"ports": [{"containerPort": 65536}]}, "ports[0].containerPort"),
        ({"ports": [{"containerPort": 10**400}]}, "ports[0].containerPort"),
        ({"ports": [{"containerPort": 80}, {"containerPort": 80}]}, "ports[1].containerPort"),
        ({"ports": [{"containerPort": 80, "publish": 5}, {"containerPort": 81, "publish": 5}]}, "ports[1].publish"),
        ({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]}, "ports[1].name"),
        ({"ports": [{"containerPort": 80, "protocol": "UDP"}]}, "ports[0].protocol"),
        ({"ports": [{"containerPort": 80, "publish": -1}]}, "ports[0].publish"),
        ({"readinessProbe": {}}, "readinessProbe"),
        ({"readinessProbe": {"tcpSocket": {"port": 1}, "exec": {"command": ["x"]}}}, "readinessProbe"),
        ({"readinessProbe": {"tcpSocket": {"port": 0}}}, "readinessProbe.tcpSocket.port"),
        ({"readinessProbe": {"httpGet": {"port": 1, "path": "x"}}}, "readinessProbe.httpGet.path"),
        ({"readinessProbe": {"exec": {"command": []}}}, "readinessProbe.exec.command"),
        ({"readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 0}}, "readinessProbe.periodSeconds"),
        ({"readinessProbe": {"tcpSocket": {"port": 1}, "failureThreshold": 0}}, "readinessProbe.failureThreshold"),
        ({"secrets": [{"name": "S", "mountPath": "/a"}]}, "secrets[0].name"),
        ({"secrets": [{"name": "s", "mountPath": "a"}]}, "secrets[0].mountPath"),
        ({"secrets": [{"name": "s", "mountPath": "/proc/x"}]}, "secrets[0].mountPath"),
        ({"secrets": [{"name": "s", "mountPath": "/a/"}]}, "secrets[0].mountPath"),
        ({"secrets": [{"name": "s", "mountPath": "/a"}, {"name": "t", "mountPath": "/a"}]}, "secrets[1].mountPath"),
        ({"data": {"size": "1Mi"}}, "data.size"),
        ({"data": {"size": "32Ti"}}, "data.size"),
        ({"data": {"size": "much"}}, "data.size"),
        ({"data": {"size": "200Mi", "filesystem": "xfs"}}, "data.size"),
        ({"data": {"size": "1Gi", "mountPath": "data"}}, "data.mountPath"),
        ({"data": {"size": "1Gi", "mountPath": "/"}}, "data.mountPath"),
        ({"data": {"size": "1Gi", "mountPath": "/usr"}}, "data.mountPath"),
        ({"data": {"size": "1Gi", "mountPath": "/dev/shm"}}, "data.mountPath"),
        ({"data": {"size": "1Gi", "mountPath": "/run/x"}}, "data.mountPath"),
        ({"data": {"size": "1Gi", "mountPath": "/a"}, "secrets": [{"name": "s", "mountPath": "/a/b"}]}, "data.mountPath"),
        ({"data": {"size": "1Gi", "snapshots": {"interval": "1"}}}, "data.snapshots.interval"),
        ({"data": {"size": "1Gi", "snapshots": {"interval": "10ms"}}}, "data.snapshots.interval"),
        ({"data": {"size": "1Gi", "snapshots": {"last": 0}}}, "data.snapshots.last"),
    ],
)
def test_contexts(context: dict[str, Any], field: str) -> None:
    assert _fields(_lifeform(context)) == [f"spec.contexts[0].{field}"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"contexts": []}, "spec.contexts"),
        ({"contexts": [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}]}, "spec.contexts[1].name"),
        ({"contexts": [{"name": f"a{i}", "image": "x"} for i in range(33)]}, "spec.contexts"),
        ({"nodeSelector": {"a b": "c"}}, "spec.nodeSelector"),
        ({"nodeSelector": {"a": "c d"}}, 'spec.nodeSelector["a"]'),
        ({"colocateWith": {}}, "spec.colocateWith.matchLabels"),
        (
            {"network": {"allowFrom": [{"podSelector": {"matchLabels": {"/": ""}}}]}},
            "spec.network.allowFrom[0].podSelector.matchLabels",
        ),
        ({"terminationGracePeriodSeconds": -1}, "spec.terminationGracePeriodSeconds"),
        ({"replication": {"layout": {"mirror": -1}}}, "spec.replication.layout.mirror"),
        ({"replication": {"acks": 0}}, "spec.replication.acks"),
        ({"replication": {"layout": {"mirror": 1}, "acks": 2}}, "spec.replication.acks"),
        ({"replication": {"interval": "soon"}}, "spec.replication.interval"),
        ({"replication": {"bandwidth": "1"}}, "spec.replication.bandwidth"),
        ({"recovery": {"priority": 1001}}, "spec.recovery.priority"),
    ],
)
def test_lifeforms(spec: dict[str, Any], field: str) -> None:
    assert _fields(_lifeform(None, **spec)) == [field]


def test_one_port_published_by_two_contexts() -> None:
    ports = [{"containerPort": 80, "publish": 8080}]
    contexts = [{"name": "a", "image": "x", "ports": ports}, {"name": "b", "image": "x", "ports": ports}]
    assert _fields(_lifeform(None, contexts=contexts)) == ["spec.contexts[1].ports[0].publish"]


def test_the_sentence_names_field_and_value() -> None:
    with pytest.raises(InvalidResourceError) as caught:
        check(_lifeform({"resources": {"memory": "12Q"}}))
    assert str(caught.value) == (
        'Lifeform "x" is invalid: spec.contexts[0].resources.memory: "12Q" is not a quantity such as 250m, 128Mi or 1Gi.'
    )


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ({"name": "Shop"}, "metadata.name"),
        ({"name": "-a"}, "metadata.name"),
        ({"name": ""}, "metadata.name"),
        ({"name": "", "generateName": "Shop-"}, "metadata.generateName"),
        ({"namespace": "a/b"}, "metadata.namespace"),
        ({"namespace": ""}, "metadata.namespace"),
        ({"labels": {"a/b/c": "x"}}, "metadata.labels"),
        ({"labels": {"a": "-"}}, 'metadata.labels["a"]'),
        ({"labels": {f"l{i}": "" for i in range(201)}}, "metadata.labels"),
        ({"annotations": {"": "x"}}, "metadata.annotations"),
        ({"annotations": {"a": "x" * 300_000}}, "metadata.annotations"),
        ({"finalizers": ["a b"]}, "metadata.finalizers[0]"),
        ({"ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": ""}]}, "metadata.ownerReferences[0].uid"),
    ],
)
def test_metadata(meta: dict[str, Any], field: str) -> None:
    obj = _make("Lifeform", metadata=meta, spec={"contexts": [{"name": "a", "image": "x"}]})
    assert _fields(obj) == [field]


def test_generated_names_and_cluster_kinds() -> None:
    spec = {"contexts": [{"name": "a", "image": "x"}]}
    assert _fields(_make("Lifeform", metadata={"name": "", "generateName": "shop-"}, spec=spec)) == []
    assert _fields(_make("Node", metadata={"namespace": "default"})) == ["metadata.namespace"]
    assert _fields(_make("Soup", "soup")) == []
    assert _fields(_make("Soup", "broth")) == ["metadata.name"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec"),
        ({"debian": {"packages": ["redis"]}, "oci": {"reference": "redis"}}, "spec"),
        ({"debian": {"packages": ["--force"]}}, "spec.debian.packages[0]"),
        ({"debian": {"packages": ["a b"]}}, "spec.debian.packages[0]"),
        ({"oci": {"reference": ""}}, "spec.oci.reference"),
        ({"oci": {"reference": "Redis:7"}}, "spec.oci.reference"),
        ({"oci": {"reference": "oci:rel/path"}}, "spec.oci.reference"),
        ({"oci": {"reference": "r"}, "config": {"env": [{"name": "="}]}}, "spec.config.env[0].name"),
    ],
)
def test_images(spec: dict[str, Any], field: str) -> None:
    assert _fields(_make("Image", spec=spec)) == [field]


@pytest.mark.parametrize(
    "reference",
    ["redis", "redis:7.2", "docker.io/library/redis:7", "localhost:5000/a/b-c", f"r@sha256:{'a' * 64}", "oci:/srv/layout:tag"],
)
def test_references(reference: str) -> None:
    assert _fields(_make("Image", spec={"oci": {"reference": reference}})) == []


def test_secrets() -> None:
    assert _fields(_make("Secret", data={"a": "!", "../b": ""}, stringData={"": "x"})) == ['data["a"]', "data", "stringData"]
    assert _fields(_make("Secret", stringData={"a": "x" * 600_000})) == ["data"]
    secret = _make("Secret", data={"a": "eA==", "b": "eA=="}, stringData={"b": "ü"})
    assert isinstance(secret, Secret)
    folded = fold_string_data(secret)
    assert (folded.string_data, folded.data) == ({}, {"a": "eA==", "b": base64.b64encode("ü".encode()).decode()})


def _template(**spec: Any) -> Resource:
    return _make("Template", spec={"image": "python", **spec})


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"warmUp": {"python": "import json"}, "warm": {"min": 2, "max": 8}},
        {"warmUp": {"python": "x"}, "lifecycle": {"postFork": {"exec": {"command": ["/bin/reseed"]}}}},
        {"warmUp": {"command": ["/bin/warm", "up"]}, "env": [{"name": "A", "value": "b"}], "user": "1000:1000"},
        {"workingDir": "/srv", "resources": {"cpu": "2", "memory": "256Mi"}, "warm": {"min": 2}},
    ],
)
def test_templates_that_are_accepted(spec: dict[str, Any]) -> None:
    assert problems_of(_template(**spec)) == ()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"image": ""}, "spec.image"),
        ({"image": "a b"}, "spec.image"),
        ({"warmUp": {}}, "spec.warmUp"),
        ({"warmUp": {"python": "x", "command": ["y"]}}, "spec.warmUp"),
        ({"warmUp": {"command": []}}, "spec.warmUp.command"),
        ({"warmUp": {"command": ["a\0b"]}}, "spec.warmUp.command[0]"),
        ({"warmUp": {"python": "a\0b"}}, "spec.warmUp.python"),
        ({"lifecycle": {"postFork": {"exec": {"command": []}}}}, "spec.lifecycle.postFork.exec.command"),
        ({"warmUp": {"python": "x" * 70_000}}, "spec.warmUp.python"),
        ({"warm": {"min": -1}}, "spec.warm.min"),
        ({"warm": {"max": 10**6}}, "spec.warm.max"),
        ({"warm": {"min": 3, "max": 2}}, "spec.warm.max"),
        ({"resources": {"memory": "1Mi"}}, "spec.resources.memory"),
        ({"resources": {"cpu": "0"}}, "spec.resources.cpu"),
        ({"env": [{"name": "="}]}, "spec.env[0].name"),
        ({"user": "No Body"}, "spec.user"),
        ({"workingDir": "srv"}, "spec.workingDir"),
    ],
)
def test_templates(spec: dict[str, Any], field: str) -> None:
    assert _fields(_template(**spec)) == [field]


def test_a_templates_name_becomes_part_of_others() -> None:
    assert _fields(_make("Template", "a.b", spec={"image": "x"})) == ["metadata.name"]


def test_contexts_of_no_lifeform() -> None:
    alone = {"lifeform": "", "lifeformUid": ""}
    assert _fields(_context(**alone)) == ["spec.lifeform", "spec.lifeformUid"]
    assert _fields(_context(**alone, fromTemplate="py", expiresAt="2026-01-31T12:00:00Z")) == []
    assert _fields(_context(**alone, parent="web.main", parentUid="u", depth=1, lifetime="keep")) == []
    assert _fields(_context(**alone, parent="web.main")) == ["spec.parentUid"]
    assert _fields(_context(**alone, fromTemplate="A")) == ["spec.fromTemplate"]
    for moment in ("soon", "2026-01-31", "2026-01-31T12:00:00", "9" * 100):
        assert _fields(_context(expiresAt=moment)) == ["spec.expiresAt"]


def test_events() -> None:
    assert _fields(_make("Event", involvedObject={"namespace": "other"}, type="Bad")) == ["involvedObject.namespace", "type"]


def test_what_must_not_change() -> None:
    assert _fields(_context(node="m"), _context()) == ["spec.node"]
    assert _fields(_context(node="m", epoch=2), _context()) == [], "in a new epoch its lifeform may be elsewhere"
    assert _fields(_context(node="m"), _context(node="")) == []
    assert _fields(_make("Soup", "soup", spec={"podCIDR": "10.0.0.0/8"}), _make("Soup", "soup")) == ["spec.podCIDR"]
    assert _fields(_make("Secret", type="b"), _make("Secret", type="a")) == ["type"]


def test_all_problems_come_at_once() -> None:
    obj = _lifeform({"name": "A", "image": "", "ports": [{"containerPort": 0}]}, recovery={"priority": -1001})
    assert isinstance(obj, Lifeform)
    renamed = msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, name="B"))
    assert len(_fields(renamed)) == 5
