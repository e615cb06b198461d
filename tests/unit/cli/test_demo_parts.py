"""The demo's judge: a write counts when it was acknowledged, and what was lost is found. And how its figures stand."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primordia.cli import demo_writer
from primordia.cli.demo_data import caught_up, flip, healed, manifest_with, pools_everywhere
from primordia.cli.demo_stage import figures_text, free_port, with_config
from primordia.cli.demo_story import MANIFEST
from primordia.cli.demo_writer import Writer
from primordia.kit.errors import PermanentError
from primordia.wire.data import ScrubbedCopy, ScrubResult
from primordia.wire.documents import parse_yaml
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, Node, NodeStatus, Volume
from primordia.wire.validation import check
from primordia.wire.volumes import LastSync, PoolSummary, VolumeCopy, VolumeSpec, VolumeStatus


class RedisError(Exception):
    """As the library's own."""


def library(hosts: dict[str, set[int]], *, breaks_after: dict[str, int]) -> Any:
    """A Redis library with one set for each host; a host's connection breaks after so many writes, the write not done."""

    class Redis:
        def __init__(self, host: str, **_: object) -> None:
            self.host = host

        async def sadd(self, key: str, value: int) -> None:
            if len(hosts[self.host]) >= breaks_after.get(self.host, 1 << 30):
                raise RedisError("the connection broke")
            hosts[self.host].add(value)

        async def smembers(self, key: str) -> set[bytes]:
            return {str(each).encode() for each in hosts[self.host]}

        async def aclose(self) -> None:
            pass

    return types.SimpleNamespace(Redis=Redis, RedisError=RedisError)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_writer, "_PAUSE_S", 0.0)


async def test_a_broken_connection_is_left_for_the_next_address_and_nothing_is_lost() -> None:
    one: set[int] = set()
    writer = Writer(library({"a": one, "b": one}, breaks_after={"a": 3}), ["a", "b"], 1)
    async with writer.writing():
        await writer.more(20)
    assert writer.moves == 1
    assert writer.acknowledged >= 20
    assert await writer.lost() == 0


async def test_what_was_acknowledged_and_is_not_there_is_told() -> None:
    store: set[int] = set()
    writer = Writer(library({"a": store}, breaks_after={}), ["a"], 1)
    async with writer.writing():
        await writer.more(10)
    store -= {2, 5}
    assert await writer.lost() == 2


async def test_a_failing_story_ends_the_writer() -> None:
    writer = Writer(library({"a": set()}, breaks_after={"a": 0}), ["a"], 1)
    with pytest.raises(ExceptionGroup):
        async with writer.writing():
            raise PermanentError("the story failed")
    assert writer.acknowledged == 0


def test_figures_stand_in_two_columns() -> None:
    assert figures_text([("all of it", "17.0 s"), ("leaks", "0")]).splitlines()[1:] == [
        "all of it   17.0 s",
        "leaks            0",
    ]


def test_the_configuration_is_named_before_what_belongs_to_the_guest(tmp_path: Any) -> None:
    config = tmp_path / "demo"
    assert with_config(["exec", "a", "--", "ls"], config) == ["exec", "a", "--client-config", str(config), "--", "ls"]
    assert with_config(["get", "lf"], None) == ["get", "lf"]


def test_a_taken_port_is_passed_over() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(["127.0.0.1"], port) > port


@pytest.mark.parametrize("data", [True, False])
def test_the_manifest_is_one_that_the_server_takes(data: bool) -> None:
    text = manifest_with(MANIFEST, data=data)
    (document,) = parse_yaml(text.replace("REDIS_PORT", "16379").replace("EXPORTER_PORT", "19121"))
    document["metadata"]["namespace"] = "default"
    lifeform = msgspec.convert(document, Lifeform)
    check(lifeform)
    redis, exporter = lifeform.spec.contexts
    assert (redis.name, exporter.name) == ("redis", "exporter")
    assert (redis.data is not None, exporter.data is None, lifeform.spec.replication is not None) == (data, True, data)
    assert "DATA" not in text and "REPLICATION" not in text


def test_words_are_flipped_where_they_are_and_nothing_else_is(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192) + b"an order paid for" + bytes(4096))
    before = disk.read_bytes()
    assert flip(disk, b"paid") == (8192 + 9, 4)
    after = disk.read_bytes()
    assert [at for at in range(len(before)) if before[at] != after[at]] == [8201, 8202, 8203, 8204]
    assert flip(disk, b"\x8f\x9e\x96\x9b") == (8201, 4)
    assert disk.read_bytes() == before


def test_where_the_words_are_not_the_first_data_is_flipped(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(range(64)))
    offset, length = flip(disk, b"paid")
    assert (offset, length) == (0, 16)
    assert disk.read_bytes() == bytes(each ^ 0xFF for each in range(16)) + bytes(range(16, 64))


def scrubbed(**n3: Any) -> ScrubResult:
    return ScrubResult(copies=(ScrubbedCopy(node="n1", snapshots=3), ScrubbedCopy(node="n3", snapshots=3, **n3)))


def test_only_a_damage_that_was_found_and_healed_counts() -> None:
    assert healed(scrubbed(damaged=(7,), healed=(7,)), "n3", 7)
    assert not healed(scrubbed(), "n3", 7)
    assert not healed(scrubbed(damaged=(7,)), "n3", 7)
    assert not healed(scrubbed(damaged=(6,), healed=(6,)), "n3", 7)
    assert not healed(scrubbed(damaged=(7,), healed=(7,), message="it is still being healed"), "n3", 7)
    assert not healed(scrubbed(damaged=(7,), healed=(7,)), "n1", 7)


def volume(*copies: tuple[str, int]) -> Volume:
    status = VolumeStatus(
        replicas=("n1", "n2"),
        last_sync=LastSync(epoch=1, number=7),
        copies=tuple(VolumeCopy(node=node, number=number, state="InSync") for node, number in copies),
    )
    return Volume(metadata=ObjectMeta(name="cache.redis"), spec=VolumeSpec(size="64Mi"), status=status)


def test_a_volume_is_shown_once_its_status_is_as_new_as_its_sync() -> None:
    assert caught_up(volume(("n1", 7), ("n2", 8)))
    assert not caught_up(volume(("n1", 7), ("n2", 6)))
    assert not caught_up(volume(("n1", 7)))
    assert not caught_up(volume())


def test_data_is_shown_where_each_node_has_a_pool() -> None:
    without = Node(metadata=ObjectMeta(name="n1"))
    having = Node(metadata=ObjectMeta(name="n2"), status=NodeStatus(pool=PoolSummary(total_bytes=1 << 30)))
    assert pools_everywhere([having, having])
    assert not pools_everywhere([having, without])
    assert not pools_everywhere([])
