"""Lifeforms with data in a NodeWorld: a pool in memory, whose disks are files, and a formatter that is watched."""

from __future__ import annotations

from pathlib import Path

from primordia.drivers.volumes_memory import MemoryVolumes
from primordia.node.volumes.pool import Pool
from primordia.testing.node import NodeWorld
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec, Resources
from primordia.wire.volumes import Data, SnapshotPolicy

MIB = 1 << 20
_MARK = b"a file system"
_USER_AT = 4096


class Disks:
    """What becomes of a world's data disks. `formatted` counts, by label."""

    def __init__(self, world: NodeWorld, *, total_bytes: int = 64 * MIB) -> None:
        self.folder = world.root / "pool"
        self.folder.mkdir(exist_ok=True)
        self.volumes = MemoryVolumes(self.folder, total_bytes=total_bytes)
        self.formatted: list[str] = []
        self.repaired: list[str] = []
        self._world = world
        world.pool = Pool(self.volumes, self._format, repair=self._repair)

    async def _format(self, disk: Path, kind: str, label: str) -> None:
        assert self.content(disk) == b"", "a disk with somebody's data was formatted"

        async def make() -> None:
            with disk.open("r+b") as file:
                file.write(_MARK + kind.encode())
            self.formatted.append(label)

        await self._world.knife.through(make)

    async def _repair(self, disk: Path, kind: str) -> None:
        self.repaired.append(kind)

    def write(self, disk: Path, data: bytes) -> None:
        """What a guest's program writes. Fails unless there is a file system."""
        with disk.open("r+b") as file:
            assert file.read(len(_MARK)) == _MARK, "the disk has no file system"
            file.seek(_USER_AT)
            file.write(data)

    def content(self, disk: Path) -> bytes:
        """What it has written."""
        with disk.open("rb") as file:
            file.seek(_USER_AT)
            return file.read(64).rstrip(b"\0")

    def open_by(self) -> dict[str, list[str]]:
        """Which living microVMs have each data disk open."""
        found: dict[str, list[str]] = {}
        for uid, vm in self._world.vms.items():
            for drive in vm.spec.drives:
                if drive.id == "data" and drive.path.parent == self.folder and not vm.ended.done():
                    found.setdefault(drive.path.name, []).append(uid)
        return found

    def disk_of(self, machine: str) -> Path:
        """The data disk of a microVM."""
        return next(drive.path for drive in self._world.vms[machine].spec.drives if drive.id == "data")


def lifeform_with_data(name: str, size: str = "1Mi", **more: object) -> Lifeform:
    """One context, `main`. No snapshot is cut by the clock."""
    data = Data(size=size, mount_path="/var/data", snapshots=SnapshotPolicy(interval="1h"))
    context = ContextTemplate(name="main", image="busybox", command=("serve",), data=data, resources=Resources(cpu="100m"))
    spec = LifeformSpec(contexts=(context,), **more)  # type: ignore[arg-type]
    return Lifeform(metadata=ObjectMeta(name=name, namespace="default"), spec=spec)
