"""A node's pool as its owner hands it over, or why there is none; what the node's object says of it."""

from __future__ import annotations

from dataclasses import dataclass

from primordia.domain.conditions import Verdict
from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError, UnsupportedError
from primordia.kit.paths import NodePaths
from primordia.kit.units import human_bytes
from primordia.node.status import StatusWriter
from primordia.node.volumes.disks import Disks, Format, Repair
from primordia.node.volumes.growing import tell_guest
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.ports.volumes import PoolStatus, Volumes
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.volumes import PoolSummary

_GRAIN_BYTES = 16 << 20
"""The node's object shows figures of this grain: what moves all the time would be written all the time."""


@dataclass(frozen=True)
class Pool:
    """`volumes` is open; None where there is no pool, for `why_not`. `make_filesystem` formats new disks."""

    volumes: Volumes | None
    make_filesystem: Format
    why_not: str = ""
    repair: Repair | None = None

    def keeper(
        self,
        registry: Registry,
        informers: Informers,
        writer: StatusWriter,
        clock: Clock,
        events: EventRecorder,
        node: str,
        paths: NodePaths,
    ) -> VolumeKeeper | None:
        """The keeper of its volumes."""
        if self.volumes is None:
            return None
        disks = Disks(
            self.volumes,
            registry,
            node,
            make_filesystem=self.make_filesystem,
            grow_guest=tell_guest,
            intents=paths.intents,
            repair=self.repair,
        )
        return VolumeKeeper(disks, informers, writer, clock, node, events)


async def _no_filesystem(disk: object, kind: str, label: str) -> None:
    raise UnsupportedError(f"Nothing here makes {kind} file systems.")


NO_POOL = Pool(None, _no_filesystem, "It was started without one.")


async def summary_of(keeper: VolumeKeeper | None, why_not: str) -> tuple[PoolSummary, Verdict]:
    """What the node's object says of its pool, and the condition PoolReady."""
    if keeper is None:
        return PoolSummary(problems=(why_not,)), Verdict(
            "PoolReady", "False", "NoPool", f"Lifeforms with data do not run here: {why_not}"
        )
    try:
        status = await keeper.pool.pool()
    except PrimordiaError as error:
        return PoolSummary(problems=(str(error),)), Verdict("PoolReady", "False", error.reason, str(error))
    return _summary(status), _verdict(status)


def _summary(status: PoolStatus) -> PoolSummary:
    return PoolSummary(
        total_bytes=status.total_bytes,
        used_bytes=min(status.total_bytes, -(-status.used_bytes // _GRAIN_BYTES) * _GRAIN_BYTES),
        free_bytes=status.free_bytes // _GRAIN_BYTES * _GRAIN_BYTES,
        reserve_bytes=status.reserve_bytes,
        problems=status.problems,
    )


def _verdict(status: PoolStatus) -> Verdict:
    if status.problems:
        return Verdict("PoolReady", "False", "PoolTroubled", " ".join(status.problems))
    if not status.room_bytes:
        return Verdict(
            "PoolReady",
            "False",
            "PoolFull",
            f"{human_bytes(status.free_bytes)} of {human_bytes(status.total_bytes)} are free, and "
            f"{human_bytes(status.reserve_bytes)} are kept for the disks in use. Nothing new is begun: {_REMEDY}",
        )
    return Verdict("PoolReady", "True", "PoolHasRoom")


_REMEDY = "delete snapshots or volumes, or enlarge the pool."
