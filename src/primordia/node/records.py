"""The durable record of each context: what this node runs, so that the next daemon, or the next boot, knows it too.

A record is on the disk, whole, before the step it speaks of is taken: "starting" before the VMM starts, "stopped" before
the guest is told. One that cannot be read is moved aside with all of its folder, never deleted and never believed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import msgspec

from primordia.domain.contexts import Because, Run
from primordia.kit.errors import CapacityError, InvalidError
from primordia.kit.files import fsync_dir, quarantine, write_atomic
from primordia.kit.paths import NodePaths
from primordia.kit.tasks import to_the_end
from primordia.ports.guest import Program
from primordia.wire.resources import ContextSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


class Offload(Protocol):
    """Runs work that blocks beside the event loop."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


Memory = Literal["", "keeping", "kept", "not kept", "resumed", "lost"]
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILE = "record.json"


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One start. Times in `_s` are boot-time seconds of the boot `boot_id`; those in `_at` are for people.

    `machine` is what its microVM is called, where that is not the context's uid, and `slot` the address that its VMM's user
    is named by, where that is not the context's. `frozen` names the folder of the image that it is a fork of. `memory` is what
    became of its memory when it was suspended, `memory_said` the same in words: being kept, kept or not, gone on from or lost.
    """

    number: int
    fingerprint: str
    phase: Literal["starting", "running", "ended", "stopped"]
    because: str
    boot_id: str
    next_because: str = ""
    started_s: float = 0.0
    started_at: str = ""
    boot_ms: float = 0.0
    image_digest: str = ""
    machine: str = ""
    slot: str = ""
    frozen: str = ""
    started_from: str = ""
    confirmed: tuple[str, ...] = ()
    program: Program = Program(())
    exit_code: int | None = None
    ends: int = 0
    ended_s: float = 0.0
    ended_at: str = ""
    end_reason: str = ""
    end_message: str = ""
    memory: Memory = ""
    memory_said: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A context on this node. `spec` is what its last run was started from.

    Of a fork, `root` is the uid of the lifeform or box that it and its parents came from, and `expires_s` the boot-time second
    at which it ends, 0 for none.
    """

    version: int = 1
    uid: str
    namespace: str
    name: str
    spec: ContextSpec
    address: str = ""
    restarts: int = 0
    root: str = ""
    expires_s: float = 0.0
    run: RunRecord | None = None

    @property
    def is_fork(self) -> bool:
        """Whether it is a box, or the child of a running context."""
        return not self.spec.lifeform

    @property
    def group(self) -> str:
        """Those who know each other by name and may talk: the lifeform, or it alone."""
        return self.spec.lifeform_uid or self.uid

    @property
    def machine(self) -> str:
        """What its microVM is called."""
        return self.run.machine if self.run is not None and self.run.machine else self.uid


def to_run(record: RunRecord | None, boot_id: str) -> Run | None:
    """The run as the decision takes it."""
    if record is None:
        return None
    return Run(
        fingerprint=record.fingerprint,
        phase=record.phase,
        because=cast("Because", record.because),
        next_because=cast("Because", record.next_because) if record.next_because else None,
        exit_code=record.exit_code,
        ends=record.ends,
        ended_s=record.ended_s,
        same_boot=record.boot_id == boot_id,
        has_main=bool(record.program.argv),
    )


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work beside the event loop. A thread cannot be cancelled: whoever is, goes when it has ended, so that what
    he cleans up stays clean."""
    return await to_the_end(asyncio.to_thread(work))


class Records:
    """Records below the node's state folder. `offload` runs what blocks (fsync)."""

    def __init__(self, paths: NodePaths, offload: Callable[[Callable[[], None]], Awaitable[None]] = in_thread) -> None:
        self._paths = paths
        self._offload = offload

    def folder(self, uid: str) -> Path:
        """The context's folder. Raises InvalidError for a uid that is none: it becomes a path."""
        if not _UID.fullmatch(uid):
            raise InvalidError("metadata.uid", f"{uid[:64]!r} is not a uid")
        return self._paths.context_state(uid)

    def uids(self) -> set[str]:
        """Every context that has a folder here."""
        root = self._paths.context_state("x").parent
        return {entry.name for entry in root.iterdir() if _UID.fullmatch(entry.name)} if root.is_dir() else set()

    def load_all(self) -> list[Record]:
        """All records, in order of uid; unreadable ones are moved aside."""
        found = [self._load(uid) for uid in sorted(self.uids())]
        return [record for record in found if record is not None]

    async def save(self, record: Record) -> None:
        """Make the record durable. Raises CapacityError when the disk is full."""
        try:
            await self._offload(lambda: self._write(record))
        except OSError as error:
            raise _full(record, error) from error

    def save_for_this_boot(self, record: Record) -> None:
        """Write the record so that the next daemon finds it, if not the next boot: a fork does not outlive the boot either.

        It costs no wait for the disk. Raises CapacityError when that is full.
        """
        try:
            self._write(record, durable=False)
        except OSError as error:
            raise _full(record, error) from error

    async def remove(self, uid: str) -> None:
        """Delete the context's folder with all in it; harmless when it is gone."""
        folder = self.folder(uid)
        await self._offload(lambda: _remove_tree(folder))

    def _load(self, uid: str) -> Record | None:
        path = self.folder(uid) / _FILE
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
            if record.uid != uid or record.version != 1:
                raise msgspec.ValidationError(f"it says uid {record.uid}, version {record.version}")
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.error("the record of context %s is unreadable and was moved to %s: %s", uid, quarantine(path.parent), error)
            return None
        return record

    def _write(self, record: Record, *, durable: bool = True) -> None:
        folder = self.folder(record.uid)
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o711, exist_ok=True)
            folder.chmod(0o711)
            if durable:
                fsync_dir(folder.parent)
        write_atomic(folder / _FILE, msgspec.json.encode(record), durable=durable)


def _full(record: Record, error: OSError) -> CapacityError:
    return CapacityError(
        f"The record of {record.namespace}/{record.name} cannot be written: {error.strerror}.",
        remedy="Free space on the disk of the node's state folder.",
        reason="DiskPressure",
    )


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
        fsync_dir(folder.parent)
