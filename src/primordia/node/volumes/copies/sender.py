"""Keeps one copy of one volume up to date: asks what it holds, sends what is missing, and again when there is more.

Invariants: deltas of a volume go to a copy one after the other; what was acknowledged is known to be there by number and
content; whatever goes wrong, the next round begins with asking again, so nothing has to be undone. A round that is cut off
at any point leaves the copy as it was, or one snapshot further.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from primordia.domain import ranges as spans
from primordia.domain.copying import Begun, Held, Send, empty_delta, held_number, next_send, relied_on
from primordia.domain.rate import TokenBucket
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import ConflictError, PrimordiaError, TemporaryError
from primordia.node.volumes.copies.outgoing import Outgoing
from primordia.ports.copies import CopyPeer
from primordia.ports.volumes import Volumes
from primordia.wire.copies import Current, HeldSnapshot, Holding, Seed, Unfinished

log = logging.getLogger(__name__)

PUSHED_WHOLE_BYTES = 8 << 20
"""A whole content of at most so many bytes is pushed: fetching it would only cost a round trip."""
_ASK_AGAIN_S = 15.0
_SEEDING_S, _SEEDING_PAUSE_S = 0.5, 0.05
"""How long a copy that fetches may take to answer how far it is, which it does at once when it has ended; and for how long it
is not asked after that."""
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_UNREACHABLE = "NodeUnreachable"

Choose = Callable[[Sequence[Manifest]], Seed]
"""The snapshot and the sources for one who has nothing."""


class CopySender:
    """One {volume, copy}'s. `choose` gives where a whole is fetched from, `news` is called whenever something is known anew.

    `renew` has the owner's newest snapshot be of at least this epoch, where the owner's own is as late.
    """

    def __init__(
        self,
        uid: str,
        node: str,
        *,
        pool: Volumes,
        outgoing: Outgoing,
        peer: Callable[[], CopyPeer],
        choose: Choose,
        news: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.uid = uid
        self.node = node
        self.acknowledged = 0
        """The newest of our snapshots that is durable there; 0 for none, or as long as nothing is known."""
        self.needed: frozenset[int] | None = None
        """Those of ours that it relies on; None while nothing is known."""
        self.epoch = 0
        self.asked = self.answered = 0
        """How often it was asked, and which of these it answered last; a delta that it took is an answer, too."""
        self.failure = ""
        self.unreachable = False
        self.progress = ""
        self.interval_s = 0.0
        self.limit = TokenBucket(0)
        self._pool = pool
        self._outgoing = outgoing
        self._peer = peer
        self._choose = choose
        self._news = news
        self.renew: Callable[[int], Awaitable[None]] = _as_it_is
        self._clock = clock
        self._holding: Holding | None = None
        self._woken = asyncio.Event()
        self._urgent = asyncio.Event()
        self._seed_number = self._heard = 0
        self._anew = False

    @property
    def is_heard(self) -> bool:
        """Whether it has answered, or it is known why it does not."""
        return self.answered > 0 or bool(self.failure)

    def wake(self, *, urgent: bool = False, ask: bool = False) -> None:
        """There is more to send. `urgent`: somebody waits for it. `ask`: what it holds may not be what we believe."""
        if ask:
            self._holding = None
        if urgent:
            self._urgent.set()
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        delay_s = _FIRST_DELAY_S
        while True:
            self._woken.clear()
            try:
                more = await self._step()
                delay_s = _FIRST_DELAY_S
                self._tell("", False)
                if more:
                    await self._pause()
                elif not await wait_event(self._clock, self._woken, _ASK_AGAIN_S):
                    self._holding = None
            except PrimordiaError as error:
                self._failed(error)
                await self._clock.sleep(delay_s)
                delay_s = min(_LONGEST_DELAY_S, delay_s * 2)

    async def _pause(self) -> None:
        """Between two deltas, as long as the volume's interval says and nobody waits."""
        if self.interval_s > 0:
            await wait_event(self._clock, self._urgent, self.interval_s)
        self._urgent.clear()

    def _failed(self, error: PrimordiaError) -> None:
        self._holding = None
        unreachable = error.reason == _UNREACHABLE
        if str(error) != self.failure:
            log.log(
                logging.DEBUG if isinstance(error, ConflictError) else logging.WARNING,
                "the copy of volume %s on node %s waits: %s",
                self.uid,
                self.node,
                error,
            )
        passing = isinstance(error, ConflictError) or error.reason == "Settling"
        self._tell("" if passing else str(error), unreachable)

    def _tell(self, failure: str, unreachable: bool) -> None:
        if (failure, unreachable) != (self.failure, self.unreachable):
            self.failure, self.unreachable = failure, unreachable
            self._news()

    async def _step(self) -> bool:
        """One question or one delta; whether there may be more to do at once."""
        owner = await self._pool.snapshots(self.uid)
        if self.needed is None:
            self.needed = frozenset(each.number for each in owner)  # what it relies on is among them
        if self._holding is None:
            turn = self._ask()
            self._holding = await self._peer().holding(self.uid, wait_s=_SEEDING_S if self._seed_number else 0.0)
            self._heard = turn
        holding = self._holding
        if owner and owner[-1].epoch < holding.epoch:
            # It has owned the volume since this was cut, and takes nothing of an epoch before its own.
            await self.renew(holding.epoch)
            owner = await self._pool.snapshots(self.uid)
        held = self._learn(owner, holding)
        begun = None if self._anew else _begun(holding.unfinished)
        send = next_send(owner, held, begun, damaged=await self._damaged(owner, held))
        if send is None:
            await self._confirm(owner, holding)
            return False
        delta = empty_delta(owner, send) or await self._pool.changes(self.uid, send.number, since=send.since)
        if send.whole and spans.total(delta.ranges) > PUSHED_WHOLE_BYTES:
            return await self._have_it_fetched(owner, holding)
        await self._push(send, delta)
        self._learn(owner, self._holding)
        return True

    async def _confirm(self, owner: Sequence[Manifest], holding: Holding) -> None:
        """Say that what it has is all there is, once for each answer of its and as long as the disk holds nothing else."""
        if not owner or not holding.stamp or (await self._pool.touched([self.uid])):
            return
        if (await self._pool.snapshots(self.uid))[-1:] != tuple(owner[-1:]):
            return
        self._holding = replace(holding, stamp=0.0)
        newest = owner[-1]
        await self._peer().current(self.uid, Current(number=newest.number, root=newest.root, stamp=holding.stamp))

    async def _damaged(self, owner: Sequence[Manifest], held: Sequence[Held]) -> tuple[int, ...]:
        """The owner's own that it put aside, where that matters: the holder has something newer than the owner."""
        if not owner or not held or held[-1].number <= owner[-1].number:
            return ()
        info = await self._pool.find(self.uid)
        return info.aside if info is not None else ()

    def _learn(self, owner: Sequence[Manifest], holding: Holding) -> list[Held]:
        held = [Held(each.number, each.root) for each in holding.snapshots]
        number, needed = held_number(owner, held), relied_on(owner, held)
        if self._seed_number and not number:
            needed |= {self._seed_number}
        if (number, needed) != (self.acknowledged, self.needed):
            self.acknowledged, self.needed = number, needed
            self.epoch = max((each.epoch for each in owner if each.number == number), default=0)
            self._news()
        if self.answered != self._heard:  # only now: who waits for an answer believes what was learned of it
            self.answered = self._heard
            self._news()
        return held

    async def _push(self, send: Send, delta: Delta) -> None:
        assert self._holding is not None
        self.needed = (self.needed or frozenset()) | {send.number, send.since}
        turn = self._ask()
        try:
            async with self._outgoing.turn(delta):
                chunks = self._outgoing.stream(delta, send.begin, self.limit)
                taken = await self._peer().deliver(self.uid, chunks, aside=send.aside)
        except ConflictError:
            self._anew = bool(send.begin)  # perhaps it was that: the next one begins at its beginning
            raise
        self._anew, self._heard = False, turn
        self.progress = ""
        base = next((each.number for each in reversed(self._holding.snapshots) if each.root == send.base), 0)
        kept = tuple(each for each in self._holding.snapshots if not send.aside or each.number <= base)
        new = HeldSnapshot(number=taken.number, epoch=delta.manifest.epoch, root=taken.root)
        self._holding = Holding(epoch=delta.manifest.epoch, snapshots=(*kept, new))

    def _ask(self) -> int:
        self.asked += 1
        return self.asked

    async def _have_it_fetched(self, owner: Sequence[Manifest], holding: Holding) -> bool:
        """Have the copy fetch the whole, or see how far it is."""
        left = holding.unfinished
        self.progress = f"{left.bytes_done} of {left.bytes_all} bytes are there" if left is not None and left.bytes_all else ""
        if not holding.seeding:
            if holding.message and self._seed_number:
                self._seed_number = 0
                raise TemporaryError(holding.message, reason="SeedFailed")
            seed = self._choose(owner)
            self._seed_number = seed.number
            await self._peer().seed(self.uid, seed)
        self._news()
        await self._clock.sleep(_SEEDING_PAUSE_S)
        self._holding = None
        return True


def _begun(unfinished: Unfinished | None) -> Begun | None:
    if unfinished is None or not unfinished.bytes_done:
        return None
    return Begun(unfinished.number, unfinished.root, unfinished.base, unfinished.bytes_done)


async def _as_it_is(epoch: int) -> None:
    """Nothing is cut."""
