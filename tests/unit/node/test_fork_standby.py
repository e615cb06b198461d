"""Who holds a copy of a lifeform's data has its template before it is needed: the first start there is a fork."""

from __future__ import annotations

from pathlib import Path

from primordia.node.settings import NodeSettings
from primordia.testing.data import Disks, lifeform_with_data
from primordia.testing.node import NodeWorld
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus


async def a_copy_here(world: NodeWorld, *replicas: str) -> None:
    """The lifeform `far` is of another node, and its volume's copies are on these."""
    await world.sure.create(lifeform_with_data("far", node_selector={"primordia.dev/node": "n2"}))
    status = VolumeStatus(phase="Bound", node="n2", epoch=1, owner_since=1, replicas=replicas, size_bytes=1 << 20)
    spec = VolumeSpec(size="1Mi", lifeform="far", context="main")
    await world.sure.create(Volume(metadata=ObjectMeta(name="far.main", namespace="default"), spec=spec, status=status))


def first_start(tmp_path: Path, *replicas: str, waiting: int = 0) -> str:
    """How a lifeform of the same shape then comes to be on the node that is n1, where so many forks wait. It has its data."""
    said: list[str] = []

    async def main() -> None:
        world = NodeWorld(tmp_path, settings=NodeSettings(plain_warm=waiting))
        disks = Disks(world)
        try:
            await world.start()
            await world.clock.sleep(10)
            await a_copy_here(world, *replicas)
            await world.clock.sleep(60)
            assert await world.sure.get(Lifeform, "far", "default")
            await world.sure.create(lifeform_with_data("near"))

            async def ready() -> bool:
                contexts = await world.contexts()
                return "near.main" in contexts and contexts["near.main"].status.ready

            await world.until(ready, what="near is ready")
            said.append((await world.context("near.main")).status.started_from)
            volume = (await world.sure.get(Volume, "near.main", "default")).metadata.uid
            assert [len(users) for uid, users in disks.open_by().items() if uid.startswith(volume)] == [1]
        finally:
            await world.close()

    run_virtual(main())
    return said[0]


def test_a_holder_of_its_data_has_the_template_and_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "holder").mkdir()
    (tmp_path / "stranger").mkdir()
    assert first_start(tmp_path / "holder", "n1") == "cold"
    assert first_start(tmp_path / "stranger", "n3") == "boot"


def test_a_fork_waits_where_copies_are_and_takes_its_data_when_it_is_wanted(tmp_path: Path) -> None:
    assert first_start(tmp_path, "n1", waiting=1) == "warm"
