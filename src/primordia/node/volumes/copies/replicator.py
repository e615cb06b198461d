"""The copies of the volumes that this node writes: a sender for each, what retention must leave them, and their status.

Invariant: a copy counts as holding a snapshot only when the node itself has said so, of that very content, in this process.
Statuses are written when something of interest changes, and now and then where a copy is behind; never for each snapshot, and
not before each copy has been heard of: a daemon that has just begun knows nothing of copies that may be well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from primordia.domain.copying import Site, enough, nearest, state_of
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Lag, Manifest, lag_of
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.kit.units import parse_duration_s
from primordia.node.volumes.copies.directory import Directory
from primordia.node.volumes.copies.outgoing import Outgoing
from primordia.node.volumes.copies.pace import bandwidth_of
from primordia.node.volumes.copies.receiver import Reach
from primordia.node.volumes.copies.sender import CopySender
from primordia.node.volumes.cutting import Cutter
from primordia.node.volumes.keeper import VolumeKeeper
from primordia.node.volumes.owned import OwnedVolume
from primordia.wire.copies import Seed
from primordia.wire.volumes import Replication, VolumeCopy

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_TELL_BEHIND_S = 10.0
_HEARD_WITHIN_S = 10.0
"""A copy that was asked for the first time answers, or is known not to, sooner than that."""


@dataclass
class _Copies:
    """One volume's, since `begun_s`. `told` is what its status was last told, at `told_s`."""

    owned: OwnedVolume
    begun_s: float
    senders: dict[str, CopySender] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    told: tuple[VolumeCopy, ...] | None = None
    told_s: float = 0.0


class Replicator:
    """One node's. `run` does the work; what others ask is answered as it is known."""

    def __init__(
        self, keeper: VolumeKeeper, cutter: Cutter, directory: Directory, outgoing: Outgoing, *, reach: Reach, clock: Clock
    ) -> None:
        self._keeper = keeper
        self._cutter = cutter
        self._directory = directory
        self._outgoing = outgoing
        self._reach = reach
        self._clock = clock
        self._copies: dict[str, _Copies] = {}
        self._tasks = TaskSet("senders")
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._news: dict[str, asyncio.Event] = {}
        self._running = False

    # ------------------------------------------------------------ what others ask

    def needed(self, uid: str) -> frozenset[int]:
        """The snapshots that copies rely on: retention leaves them."""
        copies = self._copies.get(uid)
        if copies is None:
            return frozenset()
        needed = [each.needed or frozenset() for each in copies.senders.values()]
        return frozenset().union(*needed)

    def nodes(self, uid: str) -> tuple[str, ...]:
        """The nodes that are to hold copies."""
        copies = self._copies.get(uid)
        return tuple(sorted(copies.senders)) if copies is not None else ()

    def acknowledged(self, uid: str, number: int) -> tuple[str, ...]:
        """The nodes, each on a rack of its own and none on the owner's, that have this snapshot or a newer one durably."""
        copies = self._copies.get(uid)
        known = {node: each.acknowledged for node, each in copies.senders.items()} if copies is not None else {}
        here = self._directory.site(self._directory.node)
        return enough(known, {node: self._directory.site(node) for node in known}, here, number)

    async def until(self, uid: str, number: int, acks: int) -> tuple[str, ...]:
        """Wait until `acks` copies have the snapshot; their nodes. It may take for ever."""
        while True:
            news = self._news.setdefault(uid, asyncio.Event())
            news.clear()
            found = self.acknowledged(uid, number)
            if len(found) >= max(1, acks):
                return found
            self.hurry(uid)
            await news.wait()

    async def until_on(self, uid: str, number: int, node: str) -> None:
        """Wait until that node says that it has the snapshot durably: what it said before we asked may be so no more.

        It may take for ever.
        """
        asked: tuple[CopySender, int] | None = None
        while True:
            news = self._news.setdefault(uid, asyncio.Event())
            news.clear()
            copies = self._copies.get(uid)
            sender = copies.senders.get(node) if copies is not None else None
            if sender is None:
                self.hurry(uid)
            else:
                if asked is None or asked[0] is not sender:
                    asked = sender, sender.asked
                has_said = sender.answered > asked[1]
                if has_said and sender.acknowledged >= number:
                    return
                sender.wake(urgent=True, ask=not has_said)
            await news.wait()

    def hurry(self, uid: str, *, ask: bool = False) -> None:
        """Somebody waits for the copies; `ask`: have them say again what they hold."""
        copies = self._copies.get(uid)
        for sender in copies.senders.values() if copies is not None else ():
            sender.wake(urgent=True, ask=ask)

    def missing(self, uid: str, number: int) -> str:
        """Which copies have not got the snapshot, and why, as the end of a sentence."""
        copies = self._copies.get(uid)
        late = [each for each in copies.senders.values() if each.acknowledged < number] if copies is not None else []
        if copies is None or not copies.senders:
            return "it has no copies on other racks"
        return "; ".join(self._why(each) for each in sorted(late, key=lambda each: each.node)) or "too few racks have one"

    def _why(self, sender: CopySender) -> str:
        _, rack = self._directory.site(sender.node)
        return f"node {sender.node} (rack {rack or 'unknown'}) {sender.failure or 'has not acknowledged it'}"

    # ------------------------------------------------------------ the work

    async def run(self) -> None:
        """Send, and tell how the copies are, until cancelled."""
        self._running = True
        self._keeper.subscribe(self._on_volume)
        try:
            while True:
                self._wake.clear()
                await self._tell_all()
                await self._clock.sleep(_LOOK_S)
                await wait_event(self._clock, self._wake, _TELL_BEHIND_S)
        finally:
            self._running = False
            await self._tasks.close()

    def _on_volume(self, uid: str) -> None:
        owned, copies = self._keeper.owned.get(uid), self._copies.get(uid)
        if copies is not None and copies.owned is not owned:
            self._leave(uid, copies)
            copies = None
        if owned is None or not owned.here or not self._running:
            return
        if copies is None:
            copies = self._copies[uid] = _Copies(owned, self._clock.boottime())
            owned.on_cut.append(lambda _: self._on_cut(uid))
        wanted = {node for node in owned.volume.status.replicas if node != self._directory.node}
        if owned.volume.metadata.deletion_timestamp is not None:
            wanted = set()
        for node in sorted(set(copies.senders) - wanted):
            copies.tasks.pop(node).cancel()
            del copies.senders[node]
        for node in sorted(wanted - set(copies.senders)):
            self._begin(copies, node)
        for sender in copies.senders.values():
            _configure(sender, owned)
        self._touched(uid)

    def _leave(self, uid: str, copies: _Copies) -> None:
        for task in copies.tasks.values():
            task.cancel()
        del self._copies[uid]

    def _begin(self, copies: _Copies, node: str) -> None:
        uid = copies.owned.uid
        sender = CopySender(
            uid,
            node,
            pool=self._keeper.pool,
            outgoing=self._outgoing,
            peer=lambda: self._reach(node),
            choose=lambda owner: self._source_for(uid, node, owner),
            news=lambda: self._touched(uid),
            clock=self._clock,
        )
        sender.renew = lambda epoch: self._renew(copies.owned, epoch)
        copies.senders[node] = sender
        copies.tasks[node] = self._tasks.start(sender.run(), name=f"{uid}-{node}")

    def _on_cut(self, uid: str) -> None:
        copies = self._copies.get(uid)
        for sender in copies.senders.values() if copies is not None else ():
            sender.wake()
        self._touched(uid, tell=False)

    def _touched(self, uid: str, *, tell: bool = True) -> None:
        if uid in self._news:
            self._news[uid].set()
        self._changed.add(uid)
        if tell:
            self._wake.set()

    async def _renew(self, owned: OwnedVolume, epoch: int) -> None:
        """Cut an unchanged disk in its present epoch, if nothing has been and that is at least the one asked for."""
        async with owned.lock:
            newest = (await self._keeper.pool.snapshots(owned.uid))[-1]
            if owned.here and newest.epoch < epoch <= owned.epoch:
                await self._cutter.take_held(owned, always=True)

    def _source_for(self, uid: str, node: str, owner: Sequence[Manifest]) -> Seed:
        """The nearest node with a content that we have too, and the others that have the same."""
        copies, own = self._copies[uid], self._directory.node
        roots = {each.number: each.root for each in owner}
        has = {other: each.acknowledged for other, each in copies.senders.items() if other != node and not each.unreachable}
        has = {other: number for other, number in has.items() if number in roots} | {own: owner[-1].number}
        order = nearest({other: self._directory.site(other) for other in has}, self._directory.site(node), own)
        number = has[order[0]]
        # The owner has every one of its own.
        sources = tuple(other for other in order if has[other] == number or other == own)
        return Seed(number=number, root=roots[number], sources=sources)

    # ------------------------------------------------------------ the status

    async def _tell_all(self) -> None:
        now_s = self._clock.boottime()
        for uid, copies in list(self._copies.items()):
            behind = any(each.state != "InSync" for each in copies.told or ())
            if uid not in self._changed and not behind:
                continue
            if now_s - copies.begun_s < _HEARD_WITHIN_S and not all(each.is_heard for each in copies.senders.values()):
                self._changed.add(uid)  # what was told of its copies, by an earlier daemon perhaps, stays until more is known
                continue
            self._changed.discard(uid)
            try:
                told = await self._statuses(copies)
            except PrimordiaError as error:
                log.debug("volume %s: %s", uid, error)
                continue
            if _differs(copies.told, told) or (told != copies.told and now_s - copies.told_s >= _TELL_BEHIND_S):
                copies.told, copies.told_s = told, now_s
                self._keeper.tell(uid, copies=told)
            elif told != copies.told:
                self._changed.add(uid)  # when its time has come

    async def _statuses(self, copies: _Copies) -> tuple[VolumeCopy, ...]:
        owner = await self._keeper.pool.snapshots(copies.owned.uid)
        interval_s = _interval_s(copies.owned)
        now_s = self._clock.wall().timestamp()
        return tuple(
            _copy(sender, self._directory.site(node), lag_of(owner, sender.acknowledged, now_s, interval_s), interval_s)
            for node, sender in sorted(copies.senders.items())
        )


def _copy(sender: CopySender, site: Site, lag: Lag, interval_s: float) -> VolumeCopy:
    state = state_of(sender.acknowledged, lag, interval_s, sender.unreachable, sender.failure)
    return VolumeCopy(
        node=sender.node,
        segment=site[0],
        rack=site[1],
        epoch=sender.epoch,
        number=sender.acknowledged,
        lag_snapshots=lag.snapshots,
        lag_bytes=lag.bytes,
        lag_seconds=round(lag.seconds, 1),
        state=state,
        message=sender.failure or (sender.progress if state == "Seeding" else ""),
    )


def _differs(old: tuple[VolumeCopy, ...] | None, new: tuple[VolumeCopy, ...]) -> bool:
    """Whether it is worth a write at once: who holds copies, how they are, and whether they have all there is."""

    def gist(copies: tuple[VolumeCopy, ...]) -> list[tuple[str, str, str]]:
        return [(each.node, each.state, each.message if each.state != "Seeding" else "") for each in copies]

    return old is None or gist(old) != gist(new)


def _interval_s(owned: OwnedVolume) -> float:
    try:
        return parse_duration_s(owned.volume.spec.snapshots.interval)
    except ValueError:
        return 1.0


def _configure(sender: CopySender, owned: OwnedVolume) -> None:
    """The pace that the volume asks for; words that cannot be read are no limit, and were refused when they were written."""
    wanted, rate = owned.volume.spec.replication or Replication(), bandwidth_of(owned.volume)
    try:
        sender.interval_s = parse_duration_s(wanted.interval) if wanted.interval else 0.0
    except ValueError:
        return
    if sender.limit.rate != rate:
        sender.limit = TokenBucket(rate)
