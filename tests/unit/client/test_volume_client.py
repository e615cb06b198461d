"""Volumes' content over real TLS: the client's calls, the relay to the owner's node, the command line, and who may ask."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from primordia.api.hosts import VolumeHosts
from primordia.cli.main import main as cli
from primordia.client import AsyncClient
from primordia.client.config import save
from primordia.drivers.contexts_remote import peer
from primordia.drivers.contexts_remote.contexts import Peers
from primordia.drivers.contexts_remote.failures import NodeUnreachableError
from primordia.drivers.contexts_remote.peer import Peer
from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.kit import pki
from primordia.kit.clock import SystemClock
from primordia.kit.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PrimordiaError,
    TemporaryError,
)
from primordia.ports.data import VolumeService
from primordia.registry.informer import Informer
from primordia.testing.api import TestApi, connected, raw_session, running_api
from primordia.testing.boxes import ready_node
from primordia.testing.cuts import SIZE, CutWorld, cut_world
from primordia.testing.volumes import BLOCK, put
from primordia.wire.data import INTERNAL_VOLUMES, ScrubbedCopy, ScrubResult, SyncRequest, SyncResult
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, Volume
from primordia.wire.volumes import PoolSummary, VolumeSpec, VolumeStatus

NS = "default"


class Setting:
    """A node's volumes, and an API in front of them."""

    def __init__(self, world: CutWorld, api: TestApi, client: AsyncClient) -> None:
        self.world, self.api, self.client = world, api, client


@pytest.fixture(params=["own node", "another node"])
async def setting(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Setting]:
    clock, relayed = SystemClock(), request.param == "another node"
    async with (
        asyncio.timeout(120),
        cut_world(MemoryVolumes(tmp_path), clock, tmp_path) as world,
        running_api(tmp_path, world.registry.store, relayed=relayed) as api,
        connected(api.admin) as client,
    ):
        nodes = api.informers.of(Node)
        api.server.add_volumes(VolumeHosts(world.service, lambda node: world.service, nodes))
        if not relayed:
            yield Setting(world, api, client)
            return
        runner = api.server._runner
        assert runner is not None
        credentials = (tmp_path / "ca.crt", tmp_path / "n2.crt", tmp_path / "n2.key")
        peers = Peers(pki.client_context(*credentials), runner.addresses[0][1], clock)
        unused: Any = None
        api.entry.add_volumes(VolumeHosts(unused, lambda node: peers.volumes(node, "127.0.0.1"), nodes))
        try:
            yield Setting(world, api, client)
        finally:
            await peers.close()


async def with_room(setting: Setting) -> None:
    """Node n1 has a pool."""
    node = ready_node("n1")
    status = msgspec.structs.replace(node.status, pool=PoolSummary(total_bytes=1 << 30, free_bytes=1 << 30))
    await setting.world.registry.create(msgspec.structs.replace(node, status=status))
    await setting.api.informers.refresh(Node)


async def test_snapshots_are_cut_listed_named_and_restored(setting: Setting) -> None:
    client, world = setting.client, setting.world
    owned = await world.volume("a")
    disk = await world.pool.disk(owned.uid)
    await put(disk, 0, b"a" * BLOCK)
    first = await client.snapshot("a", checkpoint="before")
    assert (first.snapshot.number, first.snapshot.checkpoint, first.snapshot.changed_bytes) == (1, "before", BLOCK)
    await put(disk, 0, b"b" * BLOCK)
    assert (await client.snapshot("a", quiesce=True)).quiesced
    assert [(each.number, each.checkpoint) for each in await client.snapshots("a")] == [(1, "before"), (2, "")]
    done = await client.restore("a", "before")
    assert (done.number, done.epoch, done.source.number) == (3, 2, 1)
    assert (await world.pool.disk(owned.uid)).read_bytes()[:1] == b"a"
    clone = await client.clone("a", "b", source="2")
    assert (await world.pool.disk(clone.uid)).read_bytes()[:1] == b"b"


async def test_what_is_wrong_is_told_as_it_is(setting: Setting) -> None:
    client, world = setting.client, setting.world
    owned = await world.volume("a")
    for call, kind in (
        (client.snapshot("absent"), NotFoundError),
        (client.restore("a", "absent"), NotFoundError),
        (client.restore("a", ""), PrimordiaError),
        (client.snapshot("a", checkpoint="12"), PrimordiaError),
        (client.snapshot("a", checkpoint="../x"), PrimordiaError),
        (client.clone("a", "Not a name"), PrimordiaError),
        (client.clone("a", "a"), AlreadyExistsError),
        (client.sync("a", timeout_s=-1), PrimordiaError),
        (client.sync("a"), PrimordiaError),
        (client.scrub("a"), PrimordiaError),
    ):
        with pytest.raises(kind):
            await call
    assert len(await world.pool.snapshots(owned.uid)) == 0
    volume = await world.registry.get(Volume, "a", NS)
    nowhere = msgspec.structs.replace(volume.status, node="")
    await world.registry.mutate(Volume, "a", NS, lambda old: msgspec.structs.replace(old, status=nowhere), status=True)
    with pytest.raises(TemporaryError, match="no node yet"):
        await client.snapshots("a")


async def test_syncs_and_scrubs_reach_who_does_them(setting: Setting) -> None:
    async def sync(owned: Any, timeout_s: float) -> SyncResult:
        return SyncResult(number=7, epoch=1, copies=("n2",), at=f"{timeout_s:g}")

    async def scrub(owned: Any) -> ScrubResult:
        return ScrubResult(copies=(ScrubbedCopy(node="n1", snapshots=3),))

    await setting.world.volume("a")
    setting.world.service.sync_with, setting.world.service.scrub_with = sync, scrub
    assert await setting.client.sync("a", timeout_s=9) == SyncResult(number=7, epoch=1, copies=("n2",), at="9")
    assert (await setting.client.scrub("a")).copies[0].snapshots == 3


async def test_a_sync_finds_the_owner_also_where_the_cache_is_wrong(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the engine where the cache is right; where it is not, who is asked says so."""

    async def sync(owned: Any, timeout_s: float) -> SyncResult:
        return SyncResult(number=7, epoch=1, copies=("n2",), at="")

    class Elsewhere:
        async def sync(self, namespace: str, name: str, asked: SyncRequest) -> SyncResult:
            raise refusals[asked.timeout_seconds]

    refusals: dict[float, Exception] = {
        1: ConflictError("It is another's.", reason="NotOwner"),
        2: NotFoundError("It is not here."),
        3: NodeUnreachableError("It is away."),
        4: ConflictError("It is being restored.", reason="Restoring"),
    }
    await setting.world.volume("a")
    setting.world.service.sync_with = sync
    api, asked, reads, owner = setting.api, list[str](), list[str](), "n9"
    right, wrong = cast(VolumeService, setting.world.service), cast(VolumeService, Elsewhere())

    class Cache:
        def get(self, name: str, namespace: str) -> Volume:
            return Volume(
                metadata=ObjectMeta(name=name, namespace=namespace),
                spec=VolumeSpec(size="1Mi"),
                status=VolumeStatus(node=owner),
            )

    def on_node(node: str) -> VolumeService:
        asked.append(node)
        return wrong if node == "n9" else right

    async def get(kind: Any, name: str, namespace: str = "") -> Any:
        reads.append(name)
        return await read(kind, name, namespace)

    read = api.registry.get
    monkeypatch.setattr(api.registry, "get", get)
    api.entry.add_volumes(VolumeHosts(right, on_node, api.informers.of(Node), cast(Informer[Volume], Cache())))
    for timeout_s in (1, 2, 3):
        assert (await setting.client.sync("a", timeout_s=timeout_s)).number == 7
    assert asked == ["n9", "n1"] * 3
    assert reads == ["a"] * 3
    with pytest.raises(PrimordiaError, match="being restored"):
        await setting.client.sync("a", timeout_s=4)
    owner = "n1"
    assert (await setting.client.sync("a", timeout_s=5)).number == 7
    assert asked[-2:] == ["n9", "n1"]
    assert reads == ["a"] * 3


@pytest.mark.parametrize("setting", ["another node"], indirect=True)
async def test_the_connection_for_syncs_is_kept_and_made_anew(setting: Setting) -> None:
    async def sync(owned: Any, timeout_s: float) -> SyncResult:
        return SyncResult(number=7, epoch=1, copies=("n2",), at="")

    runner = setting.api.server._runner
    assert runner is not None and runner.server is not None
    await setting.world.volume("a")
    setting.world.service.sync_with = sync
    for _ in range(2):
        for _ in range(2):  # the first may still meet the connection that broke, and be asked over one that is not kept
            await setting.client.sync("a")
        async with asyncio.timeout(30):
            while len(runner.server.connections) > 1:  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
        (kept,) = runner.server.connections
        await setting.client.sync("a")
        assert runner.server.connections == [kept]
        assert kept.transport is not None
        kept.transport.abort()


@pytest.mark.parametrize("setting", ["another node"], indirect=True)
async def test_a_node_that_is_gone_is_noticed_on_a_connection_that_was_kept(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sync(owned: Any, timeout_s: float) -> SyncResult:
        if timeout_s == 60:
            await asyncio.Event().wait()
        return SyncResult(number=7, epoch=1, copies=("n2",), at="")

    async def answers(_: Peer) -> bool:
        return alive.pop()

    monkeypatch.setattr(peer, "_DOUBT_S", 0.05)
    monkeypatch.setattr(Peer, "answers", answers)
    await setting.world.volume("a")
    setting.world.service.sync_with = sync
    await setting.client.sync("a")
    alive = [False]
    with pytest.raises(TemporaryError, match="does not answer"):
        await setting.client.sync("a", timeout_s=60)
    assert not alive


@pytest.mark.parametrize("name", ["disk.img", "disk.img.gz", "disk.img.zst"])
async def test_an_image_goes_into_a_file_and_back(setting: Setting, tmp_path: Path, name: str) -> None:
    client, world = setting.client, setting.world
    await with_room(setting)
    owned = await world.volume("a", size_bytes=8 * SIZE)
    rng, disk = random.Random(3), await world.pool.disk(owned.uid)
    for _ in range(30):
        await put(disk, rng.randrange(8 * SIZE // BLOCK) * BLOCK, rng.randbytes(BLOCK))
    steps: list[tuple[int, int]] = []
    file = tmp_path / name
    done = await client.export("a", file, told=lambda at, of: steps.append((at, of)))
    assert done.root and steps and steps[-1][1] == 8 * SIZE
    original = disk.read_bytes()
    assert _unpacked(file) == original
    if name == "disk.img":
        assert file.stat().st_blocks * 512 < 4 * SIZE
    made = await client.import_volume(file, "b", size_bytes=9 * SIZE)
    assert (made.root, made.node) == (done.root, "n1")
    assert (await world.pool.disk(made.uid)).read_bytes() == original + bytes(SIZE)
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")] == []
    with pytest.raises(AlreadyExistsError):
        await client.import_volume(file, "b")


def _unpacked(file: Path) -> bytes:
    program = {".gz": ["gzip", "-dc"], ".zst": ["zstd", "-dcq"]}.get(file.suffix, ["cat"])
    try:
        return subprocess.run([*program, str(file)], capture_output=True, check=True, timeout=30).stdout
    except FileNotFoundError:
        pytest.skip(f"no {program[0]} here")


async def test_a_file_that_is_no_image_is_refused(setting: Setting, tmp_path: Path) -> None:
    await with_room(setting)
    for name, content in (("empty.img", b""), ("bad.gz", b"no gzip"), ("bad.zst", b"no zstd")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidError):
            await setting.client.import_volume(tmp_path / name, "b")
    (tmp_path / "large.img").write_bytes(bytes(10) + b"x" + bytes(2 * SIZE))
    with pytest.raises(PrimordiaError, match="is to have"):
        await setting.client.import_volume(tmp_path / "large.img", "b", size_bytes=SIZE)
    assert await setting.world.pool.list() == ()


async def test_an_image_cut_off_in_its_middle_leaves_no_file(setting: Setting, tmp_path: Path) -> None:
    owned = await setting.world.volume("a", size_bytes=4 * SIZE)
    await put(await setting.world.pool.disk(owned.uid), 0, random.Random(1).randbytes(4 * SIZE))
    read = setting.world.pool.read

    async def failing(volume: str, number: int, ranges: Any) -> Any:
        pieces = await read(volume, number, ranges)
        return [*pieces[:1], *(None for _ in pieces[1:])]

    setting.world.pool.read = failing  # type: ignore[method-assign]
    with pytest.raises(PrimordiaError):
        await setting.client.export("a", tmp_path / "disk.img")
    assert not [each.name for each in tmp_path.iterdir() if "disk.img" in each.name]


async def test_only_nodes_use_the_paths_between_nodes_and_no_node_any_other(setting: Setting) -> None:
    await setting.world.volume("a")
    inner = f"{setting.api.url}{INTERNAL_VOLUMES}/default/a/snapshots"
    outer = f"{setting.api.url}/apis/primordia.dev/v1alpha1/namespaces/default/volumes/a/snapshots"
    for config, url, codes in (
        (setting.api.admin, inner, {403}),
        (setting.api.anonymous, outer, {401}),
        (setting.api.nobody, outer, {403}),
        (setting.api.node, outer, {403}),
        (setting.api.admin, outer, {200}),
    ):
        async with raw_session(config) as session, session.get(url) as answer:
            assert answer.status in codes, (url, answer.status)
    async with raw_session(setting.api.admin) as session:
        for path, code in (("volumes/a/export", 405), ("volumes/a/exec", 404), ("lifeforms/a/snapshots", 404)):
            url = f"{setting.api.url}/apis/primordia.dev/v1alpha1/namespaces/default/{path}"
            async with session.post(url, data=b"{}") as refused:
                assert refused.status == code, path
        async with session.post(outer, data=b'{"checkpoint": 5}') as bad:
            assert bad.status == 400


async def test_orphans_are_listed_and_become_volumes_of_their_own(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owned = await setting.world.volume("a")
    await with_room(setting)
    pool, config = setting.world.pool, tmp_path / "config"
    save(config, setting.api.admin)

    async def run(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli, ["volume", *words, "--client-config", str(config)])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert await run("ls", "--orphans") == (0, "There are no orphans.\n", "")
    for letter in (b"a", b"b"):
        await put(await pool.disk(owned.uid), 0, letter * BLOCK)
        await pool.cut(owned.uid, epoch=1)
    await pool.quarantine(owned.uid, 2, tail=True)
    await pool.create("nobodys", SIZE)
    await pool.create("fork-x", SIZE)
    tail, stray = await setting.client.orphans("n1")
    assert (tail.namespace, tail.name, tail.node, tail.uid) == (NS, "a", "n1", owned.uid)
    assert tail.snapshot is not None
    assert (tail.snapshot.number, tail.snapshot.epoch, tail.size_bytes) == (2, 1, SIZE)
    assert (stray.uid, stray.name, stray.snapshot) == ("nobodys", "", None)
    code, out, _ = await run("ls", "--orphans")
    head, first, second = (line.split() for line in out.splitlines())
    assert (code, head[:4]) == (0, ["NAMESPACE", "VOLUME", "NODE", "NUMBER"])
    assert first[:5] == [NS, "a", "n1", "2", "1"] and second[1] == "nobodys"
    assert (await run("ls", "--orphans", "-o", "name"))[1] == "n1/2\n"
    assert [each["uid"] for each in json.loads((await run("ls", "--orphans", "-o", "json"))[1])] == [owned.uid, "nobodys"]

    code, out, _ = await run("clone", "a", "b", "--orphan", "n1/2")
    assert (code, "volume/b cloned on n1" in out) == (0, True)
    made = await setting.world.registry.get(Volume, "b", NS)
    assert (await pool.disk(made.metadata.uid)).read_bytes()[:BLOCK] == b"b" * BLOCK
    assert (made.status.node, made.status.phase, made.spec.lifeform) == ("n1", "Available", "")
    assert len(await setting.client.orphans("n1")) == 2, "it stays until the volume is destroyed"
    for words, why in ((("n1/7",), "put aside"), (("n1",), "NODE/NUMBER"), (("n1/2", "--from", "1"), "together")):
        code, _, err = await run("clone", "a", "c", "--orphan", *words)
        assert code != 0 and why in err and "Traceback" not in err
    with pytest.raises(NotFoundError):
        await setting.client.orphans("nowhere")


async def test_the_command_line(setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owned = await setting.world.volume("a")
    await with_room(setting)
    config = tmp_path / "config"
    save(config, setting.api.admin)
    await put(await setting.world.pool.disk(owned.uid), 0, b"a" * BLOCK)

    async def run(*words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli, ["volume", *words, "--client-config", str(config)])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = await run("checkpoint", "a", "good", "--quiesce")
    assert (code, "snapshot 1, kept as good" in out, "stood still" in out) == (0, True, True)
    await put(await setting.world.pool.disk(owned.uid), 0, b"b" * BLOCK)
    assert "snapshot 2" in (await run("snapshot", "a"))[1]
    code, out, _ = await run("snapshots", "a")
    assert code == 0 and out.splitlines()[0].split()[:2] == ["NUMBER", "EPOCH"] and "good" in out
    code, out, _ = await run("snapshots", "a", "-o", "json")
    assert [each["number"] for each in json.loads(out)] == [1, 2]
    code, out, _ = await run("restore", "a", "--to", "good", "--yes", "-q")
    assert (code, "number 3 in epoch 2" in out) == (0, True)
    assert "cloned on n1" in (await run("clone", "a", "b", "--from", "2"))[1]
    assert "verified" in (await run("export", "a", str(tmp_path / "a.img.gz"), "-q"))[1]
    code, out, _ = await run("import", str(tmp_path / "a.img.gz"), "c", "--size", "2Mi", "-q")
    assert (code, "made on n1" in out) == (0, True)
    code, _, err = await run("restore", "a", "--to", "none", "--yes", "-q")
    assert code != 0 and "no snapshot 'none'" in err and "Traceback" not in err
    code, _, err = await run("import", str(tmp_path / "a.img.gz"), "d", "--size", "many", "-q")
    assert code != 0 and "--size" in err
