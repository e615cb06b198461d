"""What a node keeps of the soup on its own disk, and what it does not write again and again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.node.keeping import Keeping, is_kept, read_kept
from primordia.node.records import in_thread
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform, make_node
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextTemplate, Lifeform, Secret, Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus


def on(lifeform: Lifeform, node: str) -> Lifeform:
    return msgspec.structs.replace(lifeform, status=msgspec.structs.replace(lifeform.status, node=node, epoch=1))


def test_what_is_kept() -> None:
    assert is_kept(on(make_lifeform("a"), "n1"), "n1") and is_kept(make_lifeform("b"), "n1")
    assert not is_kept(on(make_lifeform("a"), "n2"), "n1")
    volume = Volume(metadata=ObjectMeta(name="v"), spec=VolumeSpec(size="1"), status=VolumeStatus(node="n2", replicas=("n3",)))
    assert [is_kept(volume, node) for node in ("n1", "n2", "n3")] == [False, True, True]
    context = Context(
        metadata=ObjectMeta(name="c"), spec=ContextSpec(node="n2", epoch=1, template=ContextTemplate(name="m", image="x"))
    )
    assert [is_kept(context, node) for node in ("n1", "n2")] == [False, True]
    assert is_kept(make_node("n9"), "n1")


async def test_files_follow_the_objects_and_phases_are_no_reason_to_write(tmp_path: Path) -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    registry, folder = Registry(store, clock), tmp_path / "objects"
    stale = folder / "secrets" / "gone.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    informers = Informers(registry)
    keeping = Keeping(folder, informers, clock, "n1", in_thread)
    tasks = [asyncio.create_task(informers.run()), asyncio.create_task(keeping.run())]

    async def until(*names: str) -> dict[str, object]:
        async with asyncio.timeout(30):
            while True:
                found, problems = read_kept(folder)
                assert not problems or stale.exists()
                if sorted(each.metadata.name for each in found) == sorted(names) and not stale.exists():
                    return {each.metadata.name: each for each in found}
                await asyncio.sleep(0.05)

    try:
        await registry.create(Secret(metadata=ObjectMeta(name="word", namespace="default"), data={"is": "bXVt"}))
        made = await registry.create(on(make_lifeform("here"), "n1"))
        await registry.create(on(make_lifeform("there"), "n2"))
        found = await until("word", "here")
        assert [path.stat().st_mode & 0o777 for path in (folder / "secrets").glob("*.json")] == [0o600]
        kept = found["here"]
        assert isinstance(kept, Lifeform)
        assert (kept.metadata.uid, kept.spec, kept.status.epoch) == (made.metadata.uid, made.spec, 1)
        (path,) = (folder / "lifeforms").glob("*.json")
        written = path.stat().st_mtime_ns

        def running(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, phase="Running"))

        await registry.mutate(Lifeform, "here", "default", running, status=True)
        await asyncio.sleep(1.5)
        assert path.stat().st_mtime_ns == written

        def gone(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, node="n2", epoch=2))

        await registry.mutate(Lifeform, "here", "default", gone, status=True)
        await until("word")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await store.close()
