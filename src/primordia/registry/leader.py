"""One leader among many: an office is a key under a lease, held by whoever put it there.

When to campaign, renew and stop is decided by `domain/lease.py`; this carries it out. The leader's work gets a guard that
compares the key's create revision, to be in each of its transactions (`registry/guarded.py`). So two things keep a deposed
leader from doing harm: it stops by its own deadline, before the lease can end; and if it was frozen over that deadline,
the store refuses what it still writes. The second alone makes it safe, the first keeps it quiet.

The others do not ask again and again: they watch the key, and whoever resigns in order is followed at once. So is one of whom
it is known by other means that it is over (`depose`): its lease may run for a second longer than whatever tells of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from primordia.domain.lease import (
    Action,
    Claim,
    Failed,
    Free,
    Gone,
    Grant,
    Granted,
    LeaseState,
    Look,
    Mine,
    Outcome,
    Renew,
    Renewed,
    Taken,
    Wait,
    after,
    deadline,
    decide,
    holds,
)
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event, within
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.ports.store import Compare, Delete, KeyValue, Put, Store
from primordia.registry.keys import ROOT

log = logging.getLogger(__name__)

LEADERS = f"{ROOT}leaders/"
_RESIGN_S = 2.0

Work = Callable[[Compare], Awaitable[None]]


class Leader:
    """A contender for `office`. `name` must be another for each contender that may live at the same time.

    One that is not `fit` gives the office up and does not ask for it, until it is again.
    One that comes again under its own name, after a crash, ends what its predecessor held instead of waiting for its end.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        office: str,
        name: str,
        timings: Timings = Timings(),  # noqa: B008 (frozen)
        fit: Callable[[], bool] = lambda: True,
    ) -> None:
        self._fit = fit
        self._store = store
        self._clock = clock
        self._key = LEADERS + office
        self._name = name
        self._timings = timings
        self._state = LeaseState()
        self._seen = 0
        self._changed = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether the office is certainly held now."""
        return holds(self._state, self._timings, self._clock.boottime())

    @property
    def leader(self) -> str:
        """Who leads, as far as is known: ourselves, the one that was found in office, or nobody."""
        return self._name if self.leads else self._state.taken_by

    async def depose(self, guards: Sequence[Compare]) -> bool:
        """End the office of whoever else is in it, where all `guards` hold; whether that was done. StoreUnavailableError.

        Safe whatever is true of that one: all that it writes is compared with the key that goes here.
        """
        name, found = self._state.taken_by, await self._store.get(self._key)
        if not name or found is None or found.value != name.encode():
            return False
        guards = [*guards, Compare(self._key, "create", found.create_revision)]
        if not (await self._store.txn(guards, [Delete(self._key)])).done:
            return False
        log.warning("%s is no longer in office: %s has ended that", name, self._name)
        with contextlib.suppress(NotFoundError):
            await self._store.revoke(found.lease)  # so that it hears of it, if it lives
        return True

    async def run(self, work: Work) -> None:
        """Do `work` whenever, and only while, we lead; it is cancelled when the office is lost. Until cancelled, then resign.

        An error of the work ends this too.
        """
        await self._end_predecessor()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep(), name=f"leader/{self._name}")
                await self._serve(work)
        finally:
            await self._resign()

    # ------------------------------------------------------------ the work

    async def _serve(self, work: Work) -> None:
        while True:
            while not self.leads:
                self._changed.clear()
                await self._changed.wait()
            guard = Compare(self._key, "create", self._state.create_revision)
            log.info("%s leads, by revision %d", self._name, guard.value)
            loop = asyncio.get_running_loop()
            tasks = {loop.create_task(_awaited(work, guard)), loop.create_task(self._lost(guard))}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()
            log.warning("%s no longer leads", self._name)

    async def _lost(self, guard: Compare) -> None:
        """Return when the office that the guard names is no longer certainly ours."""
        while self.leads and self._state.create_revision == guard.value:
            self._changed.clear()
            end = deadline(self._state, self._timings) or 0.0
            await wait_event(self._clock, self._changed, end - self._clock.boottime())

    # ------------------------------------------------------------ the office

    async def _keep(self) -> None:
        while True:
            if not self._fit():
                if self._state.lease:
                    log.warning("%s gives %s up: it is not fit to lead", self._name, self._key)
                    await self._resign()
                await self._clock.sleep(self._timings.renew_every_s)
                continue
            action = decide(self._state, self._timings, self._clock.boottime())
            if isinstance(action, Wait):
                if self._state.taken_by:
                    await self._follow()
                else:
                    await self._clock.sleep(action.until - self._clock.boottime())
                continue
            sent = self._clock.boottime()
            outcome = await self._perform(action)
            self._set(after(self._state, self._timings, outcome, sent, self._clock.boottime()))
            if isinstance(outcome, Failed):
                log.debug("%s: %s", self._key, outcome.why)

    async def _perform(self, action: Action) -> Outcome:
        try:
            return await self._ask(action)
        except NotFoundError:
            return Gone()
        except PrimordiaError as error:
            return Failed(str(error))

    async def _ask(self, action: Action) -> Outcome:
        if isinstance(action, Renew):
            return Renewed() if await self._store.keep_alive(action.lease) > 0 else Gone()
        if isinstance(action, Grant):
            return Granted(await self._store.grant(action.ttl_s))
        if isinstance(action, Claim):
            put = Put(self._key, self._name.encode(), action.lease)
            result = await self._store.txn([Compare(self._key, "create", 0)], [put], read_if_failed=[self._key])
            self._seen = result.revision
            if result.done:
                return Mine(action.lease, result.revision)
            return self._judge(result.found[0])
        assert isinstance(action, Look)
        listing = await self._store.list(self._key)
        self._seen = listing.revision
        return self._judge(next((item for item in listing.items if item.key == self._key), None))

    def _judge(self, found: KeyValue | None) -> Outcome:
        if found is None:
            return Free()
        name = found.value.decode(errors="replace")
        return Mine(found.lease, found.create_revision) if name == self._name else Taken(name)

    async def _follow(self) -> None:
        """Wait until the key that is another's goes; then look."""
        gone = False
        try:
            async with self._store.watch(self._key, after_revision=self._seen) as batches:
                async for batch in batches:
                    gone = any(event.key == self._key and event.value is None for event in batch.events)
                    if gone:
                        break
        except PrimordiaError as error:
            log.debug("%s: %s", self._key, error)
            await self._clock.sleep(self._timings.refused_every_s)
        self._set(LeaseState(free=gone))

    async def _end_predecessor(self) -> None:
        """A key under our own name is a dead process's; a new one is wanted, so that nothing late of it is accepted."""
        try:
            found = await self._store.get(self._key)
            if found is not None and found.value == self._name.encode() and found.lease:
                await self._store.revoke(found.lease)
        except PrimordiaError as error:
            log.info("%s: what a predecessor may have left ends by itself: %s", self._key, error)

    async def _resign(self) -> None:
        """Let the next one lead at once."""
        lease = self._state.lease
        self._set(LeaseState())
        if lease:
            try:
                await within(self._clock, _RESIGN_S, self._store.revoke(lease))
            except (PrimordiaError, TimeoutError) as error:
                log.info("%s ends by itself: %s", self._key, error)

    def _set(self, state: LeaseState) -> None:
        if state != self._state:
            self._state = state
            self._changed.set()


async def _awaited(work: Work, guard: Compare) -> None:
    await work(guard)
