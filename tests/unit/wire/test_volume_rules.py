"""Volumes and a lifeform's data: what is accepted, what may change, and how a volume looks in a list."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from primordia.wire.kinds import find_kind
from primordia.wire.resources import BY_KIND, Resource, Volume
from primordia.wire.structure import convert
from primordia.wire.tables import table
from primordia.wire.validation import problems_of


def _volume(status: dict[str, Any] | None = None, **spec: Any) -> Resource:
    plain = {"kind": "Volume", "metadata": {"name": "shop.redis", "namespace": "default"}, "status": status or {}}
    return convert(Volume, plain | {"spec": {"size": "1Gi"} | spec})[0]


def _lifeform(data: dict[str, Any] | None, **spec: Any) -> Resource:
    contexts = [{"name": "redis", "image": "redis", "data": data}, {"name": "db", "image": "x", "data": {"size": "64Mi"}}]
    plain = {"kind": "Lifeform", "metadata": {"name": "shop", "namespace": "default"}, "spec": {"contexts": contexts} | spec}
    return convert(BY_KIND["Lifeform"], plain)[0]


def _fields(obj: Resource, old: Resource | None = None) -> list[str]:
    return [each.field for each in problems_of(obj, old)]


def test_the_words_for_it() -> None:
    assert {find_kind(word) for word in ("volume", "volumes", "vol", "Volume", "volumes.primordia.dev")} == {Volume}


def test_what_is_accepted() -> None:
    replication = {"layout": {"mirror": 2}, "spread": "segment", "acks": 2, "interval": "500ms", "bandwidth": "10Mi"}
    snapshots = {"interval": "5s", "last": 3, "hourly": 0, "daily": 0, "quiesce": True}
    assert _fields(_volume(replication=replication, snapshots=snapshots, lifeform="shop", context="redis")) == []
    data = {"size": "1Gi", "mountPath": "/var/lib/redis", "filesystem": "xfs", "snapshots": snapshots}
    assert _fields(_lifeform(data, replication=replication)) == []
    assert _fields(_volume(replication={"layout": {"mirror": 0}})) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"size": "1"}, "spec.size"),
        ({"lifeform": "A"}, "spec.lifeform"),
        ({"context": "redis"}, "spec.lifeform"),
        ({"replication": {"acks": 99}}, "spec.replication.acks"),
        ({"snapshots": {"daily": -1}}, "spec.snapshots.daily"),
    ],
)
def test_volumes(spec: dict[str, Any], field: str) -> None:
    assert _fields(_volume(**spec)) == [field]


def test_a_volume_only_grows() -> None:
    assert _fields(_volume(size="2Gi"), _volume(size="1Gi")) == []
    assert _fields(_volume(size="1Gi"), _volume(size="1024Mi")) == []
    assert _fields(_volume(size="512Mi"), _volume(size="1Gi")) == ["spec.size"]
    assert _fields(_volume(filesystem="xfs"), _volume()) == ["spec.filesystem"]


def test_data_of_a_lifeform_only_grows_and_stays_where_it_is() -> None:
    old = _lifeform({"size": "1Gi"})
    assert _fields(_lifeform({"size": "2Gi", "snapshots": {"interval": "9s"}}), old) == []
    assert _fields(_lifeform(None), old) == [], "the volume stays; only the context is without it"
    field = "spec.contexts[0].data"
    assert _fields(_lifeform({"size": "64Mi"}), old) == [f"{field}.size"]
    assert _fields(_lifeform({"size": "1Gi", "mountPath": "/else"}), old) == [f"{field}.mountPath"]
    assert _fields(_lifeform({"size": "1Gi", "filesystem": "xfs"}), old) == [f"{field}.filesystem"]
    (problem,) = problems_of(_lifeform({"size": "64Mi"}), old)
    assert str(problem) == f"{field}.size: cannot shrink from 1Gi to 64Mi: a volume only grows"


def test_a_volumes_row() -> None:
    copies = [{"node": "n2", "state": "InSync"}, {"node": "n3", "state": "Behind", "lagSeconds": 2.5}]
    conditions = [{"type": "Protected", "status": "False", "reason": "Degraded"}]
    copies.append({"node": "n4", "state": "Seeding"})
    status = {"phase": "Bound", "node": "n1", "replicas": ["n2", "n3", "n4"], "copies": copies, "conditions": conditions}
    plain = table(Volume, [_volume(status | {"usedBytes": 2**20}, lifeform="shop")], datetime.datetime.now(datetime.UTC))
    cells = dict(zip((column["name"] for column in plain["columnDefinitions"]), plain["rows"][0]["cells"], strict=True))
    shown = {name: cells[name] for name in ("Phase", "Size", "Used", "Node", "Copies", "Lag", "Protection", "Lifeform")}
    assert shown == {
        "Phase": "Bound",
        "Size": "1Gi",
        "Used": "1.0 MiB",
        "Node": "n1",
        "Copies": "2/3",
        "Lag": "2.5s",
        "Protection": "Degraded",
        "Lifeform": "shop",
    }
