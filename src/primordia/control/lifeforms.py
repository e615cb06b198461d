"""The lifeform controller: one look at one lifeform makes the next steps towards what its manifest says.

A look reads the caches, asks the pure plan, carries its steps out as guarded writes, and says in the status why things
are as they are. A look that is cut off or loses a race leaves a state the next look goes on from; nothing is remembered
between looks but the ledger, and that can be made again from the registry.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from primordia.control.binding import Binder
from primordia.control.blueprint import (
    LIFEFORM_FINALIZER,
    blueprints,
    is_to_run,
    needs_of,
    new_context,
    status_of,
    topology,
    total_held,
)
from primordia.control.data import Volumes, data_needs, next_epoch
from primordia.control.moving import Mover
from primordia.control.planning import (
    as_placed,
    claimed,
    is_mine,
    is_passing,
    marked,
    mine_of,
    present_of,
    redrawn,
    scheduled_so_far,
    wanted_of,
    with_finalizers,
)
from primordia.control.scheduler import BY_LIFEFORM, Key, Scheduler
from primordia.domain.conditions import Verdict
from primordia.domain.lifeforms import (
    Bind,
    Change,
    Claim,
    Create,
    Drop,
    Place,
    Release,
    context_object_name,
    plan,
)
from primordia.kit.clock import Clock
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.ports.store import Delete
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.ownership import owner_key, owner_put
from primordia.registry.registry import Registry, unchanged
from primordia.registry.rules import timestamp
from primordia.registry.together import write_together
from primordia.wire.resources import Context, Lifeform, Node

log = logging.getLogger(__name__)

_LONGEST_WALK = 8
_WAITS = ("Unschedulable", "InsufficientCapacity")
_PASSING_S = 0.5
"""How long the news of a start under way may be overtaken: each write is heard by every node, and most starts are short."""


class LifeformController:
    """Looks at lifeforms, one at a time for each key. `again` wants another look, in that many seconds."""

    def __init__(
        self,
        registry: Registry,
        informers: Informers,
        scheduler: Scheduler,
        events: EventRecorder,
        clock: Clock,
        again: Callable[[Key, float], None],
    ) -> None:
        self._registry = registry
        self._lifeforms = informers.of(Lifeform)
        self._contexts = informers.of(Context)
        self._nodes = informers.of(Node)
        self._scheduler = scheduler
        self._binder = Binder(registry, informers, scheduler)
        self._mover = Mover(registry, informers, scheduler, events, clock, again)
        self._events = events
        self._clock = clock
        self._again = again
        self._told: dict[str, str] = {}
        self._passing: dict[str, float] = {}

    async def look(self, key: Key) -> None:
        """Take the next steps for one lifeform.

        Raises ConflictError when the caches are behind (look again), StoreUnavailableError.
        """
        namespace, name = key
        lifeform = await self._current(self._lifeforms.get(name, namespace))
        contexts = {context.spec.template.name: context for context in self._contexts.by_index(BY_LIFEFORM, key)}
        if lifeform is None:
            self._scheduler.leave(key)
            await self._remove_orphans(key, contexts)
            return
        if lifeform.metadata.uid in self._scheduler.in_flight:
            return  # whoever writes its new place has it looked at again
        lifeform = await self._mover.step(lifeform, contexts, self._binder.volumes_of(lifeform))
        after, contexts, scheduled = await self._walk(lifeform, contexts)
        if scheduled.status == "True" or after is None:
            self._told.pop(lifeform.metadata.uid, None)
        if after is None:
            self._passing.pop(lifeform.metadata.uid, None)
        if scheduled.reason not in _WAITS:
            self._scheduler.leave(key)
        if after is not None:
            await self._write_status(after, mine_of(after, contexts), scheduled)

    async def _current(self, lifeform: Lifeform | None) -> Lifeform | None:
        """The lifeform; from the registry itself where the ledger holds a promise that the cache knows nothing of.

        Then its placement was written and the cache is behind, or was not, or nobody knows: a new choice before that is
        known could promise its first node to somebody else.
        """
        if lifeform is None or lifeform.status.node or not self._scheduler.ledger.node_of(lifeform.metadata.uid):
            return lifeform
        meta = lifeform.metadata
        try:
            current = await self._registry.get(Lifeform, meta.name, meta.namespace)
        except NotFoundError:
            return None
        if not current.status.node:
            self._scheduler.ledger.withdraw(current.metadata.uid)
        return current

    # ------------------------------------------------------------ the walk

    async def _walk(
        self, lifeform: Lifeform, contexts: dict[str, Context]
    ) -> tuple[Lifeform | None, dict[str, Context], Verdict]:
        """Plan and carry out until there is nothing to do now; the lifeform is None once it is gone."""
        scheduled = scheduled_so_far(lifeform)
        for _ in range(_LONGEST_WALK):
            volumes = self._binder.volumes_of(lifeform)
            refusal = self._account(lifeform, contexts) or await self._judge_data(lifeform, contexts, volumes)
            steps = plan(wanted_of(lifeform, contexts, volumes), present_of(lifeform, contexts))
            if refusal:
                await self._give_back(lifeform, contexts)
                scheduled = refusal
                steps = tuple(step for step in steps if not isinstance(step, Change | Create | Place | Bind))
            on_contexts = False
            for step in steps:
                log.info("%s: %s, for %s", lifeform.metadata.name, type(step).__name__, step.reason)
                if isinstance(step, Claim | Place | Bind | Release):
                    changed, scheduled = await self._change_lifeform(lifeform, step, contexts, scheduled)
                    if changed is None:
                        return None, contexts, scheduled
                    if changed is lifeform:
                        return lifeform, contexts, scheduled
                    lifeform = changed
                else:
                    contexts, on_contexts = await self._change_contexts(lifeform, step, contexts), True
            if on_contexts or not steps:
                # What was done to contexts comes back as their events, and with them the next look.
                break
        return lifeform, contexts, scheduled

    def _account(self, lifeform: Lifeform, contexts: dict[str, Context]) -> Verdict | None:
        """Keep the ledger true; a verdict when the node has not got what the lifeform now asks for.

        One that is being deleted keeps what it has until its contexts are known to be gone.
        """
        if lifeform.metadata.deletion_timestamp is not None:
            return None
        try:
            demand, kept = needs_of(lifeform, mine_of(lifeform, contexts))
        except ValueError as error:
            return self._refuse(lifeform, "InvalidSpec", f"The manifest cannot be read: {error}.")
        if not lifeform.status.node:
            return None
        if not is_to_run(lifeform):
            # What is being stopped never needs more, whatever its manifest says by now.
            demand = kept = demand & self._scheduler.ledger.held(lifeform.metadata.uid)
        shortage = self._scheduler.grow(lifeform, demand, kept)
        if shortage is not None:
            message = f"The change has to wait: {lifeform.status.node} {shortage.words()}."
            return self._refuse(lifeform, "InsufficientCapacity", message)
        return None

    async def _judge_data(self, lifeform: Lifeform, contexts: Mapping[str, Context], volumes: Volumes) -> Verdict | None:
        """A verdict when the lifeform cannot have its data, or its node has no room for it."""
        verdict = await self._binder.judge(lifeform, contexts, volumes)
        return self._refuse(lifeform, verdict.reason, verdict.message) if verdict is not None else None

    def _refuse(self, lifeform: Lifeform, reason: str, message: str) -> Verdict:
        uid = lifeform.metadata.uid
        if self._told.get(uid) != message:
            # Not by what the status says: it may have been written by one who died before telling.
            self._told[uid] = message
            self._events.record(lifeform, "Unschedulable", message, warning=True)
        return Verdict("Scheduled", "False", reason, message)

    async def _change_lifeform(
        self, lifeform: Lifeform, step: Claim | Place | Bind | Release, contexts: dict[str, Context], scheduled: Verdict
    ) -> tuple[Lifeform | None, Verdict]:
        if isinstance(step, Claim):
            return await self._claimed(lifeform), scheduled
        if isinstance(step, Release):
            await self._expect_gone(lifeform)
            await self._registry.store.txn([], [Delete(owner_key(lifeform.metadata.uid))])
            self._scheduler.ledger.withdraw(lifeform.metadata.uid)
            finalizers = tuple(each for each in lifeform.metadata.finalizers if each != LIFEFORM_FINALIZER)
            changed = await self._amend(lifeform, with_finalizers(lifeform, finalizers))
            return (changed if finalizers else None), scheduled
        if isinstance(step, Bind):
            return await self._binder.bind(lifeform), scheduled
        return await self._place(lifeform, contexts)

    async def _place(self, lifeform: Lifeform, contexts: dict[str, Context]) -> tuple[Lifeform, Verdict]:
        """Choose a node and write it with the next epoch; unchanged when there is none."""
        volumes = self._binder.volumes_of(lifeform)
        demand = needs_of(lifeform, mine_of(lifeform, contexts))[0]
        placement = self._scheduler.choose(lifeform, demand, data_needs(lifeform, volumes))
        if not placement.node:
            return await self._claimed(lifeform), self._refuse(lifeform, "Unschedulable", placement.message)
        scheduled = Verdict("Scheduled", "True", "Placed", f"It is on {placement.node}.")
        node = self._nodes.get(placement.node)
        _, rack, segment = topology(node) if node is not None else ("", "", "")
        status = msgspec.structs.replace(
            lifeform.status, node=placement.node, rack=rack, segment=segment, epoch=next_epoch(lifeform, volumes)
        )
        wanted = as_placed(lifeform, status, scheduled, volumes, node, timestamp(self._clock.wall()))
        try:
            placed = await self._binder.place(lifeform, wanted, volumes)
        except PrimordiaError:
            # The promise stays until the registry has said what came of it, unless nobody will ever ask.
            cached = self._lifeforms.get(lifeform.metadata.name, lifeform.metadata.namespace)
            if cached is None or cached.metadata.uid != lifeform.metadata.uid:
                self._scheduler.ledger.withdraw(lifeform.metadata.uid)
            raise
        self._events.record(lifeform, "Scheduled", f"Placed on {placement.node}, epoch {status.epoch}: {placement.message}")
        return placed, scheduled

    async def _claimed(self, lifeform: Lifeform) -> Lifeform:
        """The lifeform with our finalizer, written if that was not there."""
        wanted = claimed(lifeform)
        return lifeform if wanted is lifeform else await self._amend(lifeform, wanted)

    # ------------------------------------------------------------ contexts

    async def _change_contexts(
        self, lifeform: Lifeform, step: Create | Change | Drop, contexts: dict[str, Context]
    ) -> dict[str, Context]:
        """Carry one step out; gives the contexts as they then are."""
        wanted = blueprints(lifeform, contexts, self._binder.volumes_of(lifeform))
        after = dict(contexts)
        if isinstance(step, Create):
            fresh = [new_context(lifeform, wanted[name]) for name in step.names]
            owner = owner_put(lifeform.metadata.uid, lifeform.status.node, lifeform.status.epoch)
            for created in await self._registry.create_all(fresh, [unchanged(lifeform)], also=[owner]):
                assert isinstance(created, Context)
                self._contexts.learn(created)
                after[created.spec.template.name] = created
        elif isinstance(step, Change):
            await self._renew_owner(lifeform, [contexts[name] for name in step.names])
            for name in step.names:
                (changed,) = await write_together(self._registry, [(contexts[name], redrawn(contexts[name], wanted[name]))])
                assert isinstance(changed, Context)
                self._contexts.learn(changed)
                after[name] = changed
            self._events.record(lifeform, "SpecChanged", f"New spec for {', '.join(step.names)}.")
        else:
            for name in step.names:
                await self._drop(contexts[name], lifeform)
                after[name] = marked(contexts[name])
        return after

    async def _renew_owner(self, lifeform: Lifeform, contexts: Sequence[Context]) -> None:
        """Where the contexts are to be of another epoch, the owner is first: nothing starts that it does not name."""
        if all(context.spec.epoch == lifeform.status.epoch for context in contexts):
            return
        owner = owner_put(lifeform.metadata.uid, lifeform.status.node, lifeform.status.epoch)
        if not (await self._registry.store.txn([unchanged(lifeform)], [owner])).done:
            raise ConflictError(f"Lifeform {lifeform.metadata.namespace}/{lifeform.metadata.name} has changed.")

    async def _expect_gone(self, lifeform: Lifeform) -> None:
        """The cache says that no context is left, and may be late: ask the registry. Raises ConflictError."""
        for context in await self._stored_contexts(lifeform):
            raise ConflictError(f"Context {context.metadata.namespace}/{context.metadata.name} is still there.")

    async def _give_back(self, lifeform: Lifeform, contexts: Mapping[str, Context]) -> None:
        """Of an earlier promise that nothing came of, keep what the contexts hold: the manifest wants something else now.

        The cache may be late, so what is given back is counted in the registry.
        """
        ledger, uid = self._scheduler.ledger, lifeform.metadata.uid
        if ledger.node_of(uid) and total_held(mine_of(lifeform, contexts).values()) != ledger.held(uid):
            stored = await self._stored_contexts(lifeform)
            ledger.promise(uid, ledger.node_of(uid), total_held(stored) & ledger.held(uid))

    async def _stored_contexts(self, lifeform: Lifeform) -> list[Context]:
        """The contexts that the lifeform really has, of all that it can have."""
        meta = lifeform.metadata
        names = {template.name for template in lifeform.spec.contexts} | {each.name for each in lifeform.status.contexts}
        found = []
        for name in sorted(names):
            with contextlib.suppress(NotFoundError):
                found.append(await self._registry.get(Context, context_object_name(meta.name, name), meta.namespace))
        return [context for context in found if is_mine(lifeform, context)]

    async def _drop(self, context: Context, lifeform: Lifeform) -> None:
        """Delete one context; a foreign one only after the registry itself has said whose it is."""
        meta = context.metadata
        if not is_mine(lifeform, context):
            current = await self._registry.get(Lifeform, lifeform.metadata.name, lifeform.metadata.namespace)
            if current.metadata.uid == context.spec.lifeform_uid:
                raise ConflictError(f"Lifeform {meta.namespace}/{lifeform.metadata.name} was made anew in the meantime.")
        await self._delete(context)

    async def _remove_orphans(self, key: Key, contexts: Mapping[str, Context]) -> None:
        """Delete the contexts of a lifeform that is gone; the cache may only be late, so the registry is asked."""
        namespace, name = key
        doomed = [context for context in contexts.values() if context.metadata.deletion_timestamp is None]
        if not doomed:
            return
        try:
            current = (await self._registry.get(Lifeform, name, namespace)).metadata.uid
        except NotFoundError:
            current = ""
        for context in doomed:
            if context.spec.lifeform_uid != current:
                log.info("%s/%s: deleted, for its lifeform is gone", namespace, context.metadata.name)
                await self._delete(context)

    async def _delete(self, context: Context) -> None:
        meta = context.metadata
        try:
            self._contexts.learn(await self._registry.delete(Context, meta.name, meta.namespace, uid=meta.uid))
        except NotFoundError:
            return

    # ------------------------------------------------------------ writing

    async def _amend(self, lifeform: Lifeform, wanted: Lifeform, *, status: bool = False) -> Lifeform:
        """Write the lifeform, and know it: the next look must not decide again on what this one has changed."""
        written = await self._registry.amend(lifeform, wanted, status=status)
        self._lifeforms.learn(written)
        return written

    async def _write_status(self, lifeform: Lifeform, contexts: Mapping[str, Context], scheduled: Verdict) -> None:
        node = self._nodes.get(lifeform.status.node) if lifeform.status.node else None
        status = status_of(lifeform, contexts, scheduled, node, timestamp(self._clock.wall()))
        if status != lifeform.status and is_passing(lifeform.status, status) and not self._has_lasted(lifeform):
            return
        self._passing.pop(lifeform.metadata.uid, None)
        if status != lifeform.status:
            await self._amend(lifeform, msgspec.structs.replace(lifeform, status=status), status=True)

    def _has_lasted(self, lifeform: Lifeform) -> bool:
        """Whether there has been news of its start for a while; if not, there is another look when there has."""
        meta, now_s = lifeform.metadata, self._clock.boottime()
        due_s = self._passing.setdefault(meta.uid, now_s + _PASSING_S)
        if now_s < due_s:
            self._again((meta.namespace, meta.name), due_s - now_s)
        return now_s >= due_s
