"""A scrub on demand: the owner and every holder read back all they have, what is damaged is put aside and brought again."""

from __future__ import annotations

import asyncio

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.node.volumes.copies.auditor import Auditor
from primordia.node.volumes.copies.receiver import Reach
from primordia.node.volumes.copies.replicator import Replicator
from primordia.node.volumes.owned import OwnedVolume
from primordia.node.volumes.syncs import Cuts
from primordia.wire.data import ScrubbedCopy, ScrubResult

_HEAL_S = 15.0
_LOOK_S = 0.2


class Scrubber:
    """One node's, for the volumes that it writes."""

    def __init__(self, auditor: Auditor, replicator: Replicator, cuts: Cuts, reach: Reach, clock: Clock, node: str) -> None:
        self._auditor = auditor
        self._replicator = replicator
        self._cuts = cuts
        self._reach = reach
        self._clock = clock
        self._node = node

    async def scrub(self, owned: OwnedVolume) -> ScrubResult:
        """See the data port's `scrub`."""
        nodes = self._replicator.nodes(owned.uid)
        own, *others = await asyncio.gather(self._own(owned), *(self._other(owned.uid, node) for node in nodes))
        if any(each.damaged for each in others):
            self._replicator.hurry(owned.uid, ask=True)
            others = list(await asyncio.gather(*(self._healed(owned.uid, each) for each in others)))
        return ScrubResult(copies=(own, *others))

    async def _own(self, owned: OwnedVolume) -> ScrubbedCopy:
        found = msgspec.structs.replace(await self._auditor.scrub(owned.uid), node=self._node)
        if not found.damaged:
            return found
        fresh = await self._cuts.cut(owned)
        words = f"snapshot {fresh.number} was cut from the disk in their place; its copies keep the others' content"
        return msgspec.structs.replace(found, message=words)

    async def _other(self, uid: str, node: str) -> ScrubbedCopy:
        try:
            return msgspec.structs.replace(await self._reach(node).scrub(uid), node=node)
        except PrimordiaError as error:
            return ScrubbedCopy(node=node, message=str(error))

    async def _healed(self, uid: str, copy: ScrubbedCopy) -> ScrubbedCopy:
        """Wait a while for what was put aside to come again: the newest does, and what is older is no more."""
        if not copy.damaged:
            return copy
        end_s = self._clock.boottime() + _HEAL_S
        held: set[int] = set()
        while self._clock.boottime() < end_s:
            try:
                held = {each.number for each in (await self._reach(copy.node).holding(uid)).snapshots}
            except PrimordiaError:
                held = set()
            if held and max(held) >= max(copy.damaged):
                break
            await self._clock.sleep(_LOOK_S)
        healed = tuple(each for each in copy.damaged if each in held)
        message = "" if held and max(held) >= max(copy.damaged) else "it is still being healed"
        return msgspec.structs.replace(copy, healed=healed, message=message)
