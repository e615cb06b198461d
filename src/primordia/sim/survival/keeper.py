"""The keeper of a simulated node's lease: what `supervisor/lease.py` does in a thread, as a task, by the same machine.

It knows under which life what runs here runs, and whether that may go on under the next one; the fence asks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from primordia.domain.fence import LeaseView, ended_by
from primordia.domain.lease import (
    LIVES,
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
    death_key,
    decide,
    lease_key,
    life_key,
)
from primordia.domain.timings import Timings
from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.ports.store import Compare, Delete, KeyValue, Put, Store
from primordia.registry.lives import Death, Life, death_put, read_death

_BURY_AGAIN_S = 0.2


@dataclass(frozen=True)
class Past:
    """See `supervisor/lease_file.py`: the life under which what runs here runs, and the soup's other nodes."""

    life: int | None = None
    others: frozenset[str] | None = None


class SimKeeper:
    """One life of it. `past` is what the one before it in this boot has left; `told` hears the record of each change:
    the life under which the daemon may start something, and the past."""

    def __init__(
        self,
        life: Life,
        store: Store,
        clock: Clock,
        timings: Timings,
        past: Past,
        told: Callable[[int, Past], None],
    ) -> None:
        self._node = life.node
        self._boot_id = life.boot_id
        self._store = store
        self._clock = clock
        self._timings = timings
        self._key = lease_key(life.node)
        self._value = msgspec.json.encode(life)
        self._told = told
        self._state = LeaseState()
        self._past = past
        self._previous: int | None = None
        self._ended = ""
        self._burial = ""
        self._heard = self._look = False
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Hold the key until cancelled."""
        self._tell()
        while True:
            self._wake.clear()
            if self._burial:
                await self._bury()
                continue
            if self._state.create_revision and not self._settled() and not self._ended:
                await self._settle()
            if self._look and self._state.create_revision:
                self._look, self._state = False, replace(self._state, looked_s=None, next_s=0.0)
            now = self._clock.boottime()
            action = decide(self._state, self._timings, now)
            if isinstance(action, Wait):
                await wait_event(self._clock, self._wake, action.until - now)
                continue
            outcome = await self._perform(action)
            self._state = after(self._state, self._timings, outcome, now, self._clock.boottime())
            self._heard = self._heard or not isinstance(outcome, Failed | Granted)
            self._tell()

    # ------------------------------------------------------------ what the fence asks

    def view(self) -> LeaseView:
        """What the fence has to know."""
        state = self._state
        if not self._heard and not self._burial:
            return LeaseView(life=self._past.life or 0, trouble=state.trouble)
        if not self._settled():
            return LeaseView(trouble=state.trouble, ended=self._ended)
        return LeaseView(state.create_revision, state.acked_s, state.looked_s, state.trouble)

    @property
    def others(self) -> frozenset[str] | None:
        """The soup's other nodes, as the engine last said."""
        return self._past.others

    def look_again(self) -> None:
        """Read the key before anything else."""
        self._look = True
        self._wake.set()

    def nothing_runs(self, why: str) -> None:
        """All that ran here has ended. With `why`, this life is declared over before there is another."""
        self._past = replace(self._past, life=None)
        self._burial, self._ended = why, ""
        self._tell()
        self._wake.set()

    # ------------------------------------------------------------ what ran before

    def _settled(self) -> bool:
        return bool(self._state.create_revision) and self._state.create_revision == self._past.life and not self._burial

    async def _settle(self) -> None:
        life = self._state.create_revision
        try:
            death = read_death(await self._store.get(death_key(self._node)))
            found = (await self._store.list(LIVES)).items
        except PrimordiaError:
            return
        self._ended = ended_by(self._past.life, life, self._previous, death.life if death is not None else 0)
        self._past = Past(self._past.life if self._ended else life, self._others_in(found))
        self._tell()

    async def _bury(self) -> None:
        life, lease = self._state.create_revision, self._state.lease
        next_s = 0.0
        try:
            if life:
                death = Death(life=life, by="node", reason=self._burial, boot_id=self._boot_id)
                operations: list[Put | Delete] = [death_put(self._node, death), Delete(self._key)]
                result = await self._store.txn([Compare(self._key, "create", life)], operations, read_if_failed=[self._key])
                next_s = self._clock.boottime() + self._timings.first_word_s if result.done else 0.0
            if lease:
                await self._store.revoke(lease)
        except PrimordiaError as error:
            self._state = replace(self._state, trouble=str(error))
            await self._clock.sleep(_BURY_AGAIN_S)
            return
        self._state, self._burial = LeaseState(next_s=next_s), ""

    def _others_in(self, found: tuple[KeyValue, ...]) -> frozenset[str]:
        return frozenset(item.key.removeprefix(LIVES) for item in found) - {self._node}

    # ------------------------------------------------------------ asking the engine

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
            return await self._claim(action.lease)
        assert isinstance(action, Look)
        found = await self._store.get(self._key)
        if found is not None and self._settled():
            self._past = replace(self._past, others=self._others_in((await self._store.list(LIVES)).items))
        return Free() if found is None else self._judge(found)

    async def _claim(self, lease: int) -> Outcome:
        """The product reads the life before in the same transaction; here two guarded steps make one."""
        self._previous = None
        life = life_key(self._node)
        before = await self._store.get(life)
        previous = before.mod_revision if before is not None else 0
        puts = [Put(self._key, self._value, lease), Put(life, self._value)]
        guards = [Compare(self._key, "create", 0), Compare(life, "mod", previous)]
        result = await self._store.txn(guards, puts, read_if_failed=[self._key])
        if not result.done:
            return self._judge(result.found[0]) if result.found[0] is not None else Failed("The life before has changed.")
        self._previous = previous
        return Mine(lease, result.revision)

    def _judge(self, found: KeyValue) -> Outcome:
        return Mine(found.lease, found.create_revision) if found.value == self._value else Taken("somebody else")

    def _tell(self) -> None:
        self._told(self._state.create_revision if self._settled() else 0, self._past)
