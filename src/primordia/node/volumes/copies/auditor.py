"""Reads snapshots back, those written here and those held here, and puts aside what is not as it was written.

A snapshot's blocks are shared with its neighbours: where one is damaged, the others are looked at too before anything is
built upon them. What is put aside is kept, never shown; the newest is healed by the next delta from the owner, which begins
at the newest good one, or by a new whole from any good copy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from primordia.domain import ranges as spans
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Manifest
from primordia.kit.clock import Clock
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.metrics import Metrics
from primordia.ports.volumes import Volumes
from primordia.wire.data import ScrubbedCopy

log = logging.getLogger(__name__)

_PAUSE_S = 60.0
_AGAIN_S = 24 * 3600.0
"""A snapshot that was good is read again after this time."""
_RATE = 16 << 20


@dataclass(frozen=True)
class Damage:
    """What was found and put aside. `bytes` counts what differs."""

    uid: str
    number: int
    bytes: int


class Auditor:
    """One node's. `found` is told of each damage. `rate` is the bytes a second that it reads in the background."""

    def __init__(
        self, pool: Volumes, clock: Clock, metrics: Metrics, *, found: Callable[[Damage], None], rate: float = _RATE
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._found = found
        self._bucket = TokenBucket(rate)
        self._good_s: dict[tuple[str, int, str], float] = {}
        self._read = metrics.counter("primordia_audit_bytes_total", "Bytes of snapshots that were read back.")
        self._damaged = metrics.counter("primordia_audit_damaged_total", "Snapshots that were put aside as damaged.")

    async def run(self) -> None:
        """Go round for ever."""
        while True:
            try:
                await self.round()
            except PrimordiaError as error:
                log.warning("the audit pauses: %s", error)
            await self._clock.sleep(_PAUSE_S)

    async def round(self) -> None:
        """Look at every volume once: its newest snapshot, and those that were not read for a day."""
        seen = set()
        for info in await self._pool.list():
            for manifest in reversed(await self._snapshots(info.name)):
                key = (info.name, manifest.number, manifest.root)
                seen.add(key)
                good_s = self._good_s.get(key)
                if good_s is not None and self._clock.boottime() - good_s < _AGAIN_S:
                    continue
                wait_s = self._bucket.spend(manifest.size_bytes, self._clock.boottime())
                if await self._is_bad(info.name, manifest.number):
                    await self.scrub(info.name)
                    break
                self._good_s[key] = self._clock.boottime()
                await self._clock.sleep(wait_s)
        self._good_s = {key: at for key, at in self._good_s.items() if key in seen}

    async def scrub(self, uid: str) -> ScrubbedCopy:
        """Read all of one volume's snapshots back now. Damaged ones are put aside, and named in the answer."""
        damaged: list[int] = []
        snapshots = await self._snapshots(uid)
        for manifest in snapshots:
            if await self._is_bad(uid, manifest.number):
                damaged.append(manifest.number)
            else:
                self._good_s[(uid, manifest.number, manifest.root)] = self._clock.boottime()
        read = sum(each.size_bytes for each in snapshots)
        return ScrubbedCopy(node="", snapshots=len(snapshots), read_bytes=read, damaged=tuple(damaged))

    async def _snapshots(self, uid: str) -> tuple[Manifest, ...]:
        try:
            return await self._pool.snapshots(uid)
        except NotFoundError:
            return ()

    async def _is_bad(self, uid: str, number: int) -> bool:
        """Whether the snapshot was damaged; it is put aside then."""
        try:
            bad = await self._pool.verify(uid, number)
            size = next((each.size_bytes for each in await self._pool.snapshots(uid) if each.number == number), 0)
            self._read.add(by=size)
            if not bad:
                return False
            await self._pool.quarantine(uid, number)
        except NotFoundError:  # removed meanwhile
            return False
        self._damaged.add()
        damage = Damage(uid, number, spans.total(bad))
        log.warning("snapshot %d of volume %s is damaged in %d bytes, and put aside", number, uid, damage.bytes)
        self._found(damage)
        return True
