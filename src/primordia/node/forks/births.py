"""A fork becomes a context: recorded, told who it is, written to the registry, and only then anybody's.

The order forgives a crash between any two steps. The record names the fork's microVM before anything else happens: the next
daemon finds one whose start was cut off, and ends it. The registry's object is written beside the guest's confirmation; a
caller hears of the context when both are there. So nobody is ever given a fork that another may get, and a fork that nobody
was given does not live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

import msgspec

from primordia.domain.contexts import Because, Rest
from primordia.kit.deadline import within
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.tasks import to_the_end
from primordia.node.execute import FINALIZER, Executor
from primordia.node.fleet import Fleet
from primordia.node.forks.forking import Fork, Forker
from primordia.node.forks.identity import Person, UnconfirmedError, check_confirmed, identity_of
from primordia.node.live import Live
from primordia.node.machines import scratch_of
from primordia.node.observe import status_of
from primordia.node.program import fingerprint
from primordia.node.records import Record, RunRecord
from primordia.node.services import Services
from primordia.ports.guest import Guest, Program
from primordia.ports.store import Compare
from primordia.registry.births import create_with_uid
from primordia.registry.ownership import StartDeniedError
from primordia.registry.rules import timestamp
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Birth:
    """Whom a fork is to become. `root` is the lifeform or box that it comes from, empty for a new box.

    `main` says what its main program does by now, `program` what runs in it by default. `settle` waits until the network
    knows it, for those whose network is not what a waiting fork has.
    """

    uid: str
    metadata: ObjectMeta
    spec: ContextSpec
    because: Because
    person: Person
    program: Program
    image_digest: str
    root: str = ""
    main_runs: bool = False
    ttl_s: float = 0.0
    settle: bool = False


class Births:
    """Makes contexts of forks."""

    def __init__(self, services: Services, fleet: Fleet, executor: Executor, forker: Forker) -> None:
        self._services = services
        self._fleet = fleet
        self._executor = executor
        self._forker = forker
        self._gate = asyncio.Semaphore(services.settings.births_parallel)

    async def bear(self, fork: Fork, birth: Birth, begin_s: float) -> Live:
        """Make the fork that context. `begin_s` is when it was asked for, in boot-time seconds.

        Raises UnconfirmedError when the guest does not confirm it in time, and what the registry raises; the fork is
        destroyed then, and nothing of the context is left.
        """
        live: Live | None = None
        try:
            async with self._gate:
                live = self._enter(fork, birth)
                confirmed = await self._confirm_and_write(fork, birth, live)
                self._confirmed(birth, live, confirmed, begin_s)
        except BaseException:
            await to_the_end(self._undo(fork, birth, live))
            raise
        self._fleet.drive(birth.uid)
        return live

    # ------------------------------------------------------------ inside

    def _enter(self, fork: Fork, birth: Birth) -> Live:
        """The record, and the context as the node knows it. Nothing here waits."""
        services, clock = self._services, self._services.clock
        now_s = clock.boottime()
        run = RunRecord(
            number=1,
            fingerprint=fingerprint(birth.spec),
            phase="starting",
            because=birth.because,
            boot_id=services.host.boot_id(),
            started_s=now_s,
            started_at=timestamp(clock.wall()),
            image_digest=birth.image_digest,
            machine=fork.uid,
            frozen=fork.image.name,
            started_from="warm" if fork.warm else "cold",
            program=birth.program,
        )
        record = Record(
            uid=birth.uid,
            namespace=birth.metadata.namespace,
            name=birth.metadata.name,
            spec=birth.spec,
            address=fork.address,
            root=birth.root or birth.uid,
            expires_s=now_s + birth.ttl_s if birth.ttl_s else 0.0,
            run=run,
        )
        services.records.save_for_this_boot(record)
        self._forker.given_away(fork)
        self._services.addresses.hand_over(fork.uid, birth.uid)
        context = Context(metadata=_born(birth), spec=birth.spec)
        live = self._fleet.take_in(record, context)
        fork.scratch.rename(scratch_of(services, live))
        live.log.begin(run.number)
        live.main = "running" if birth.main_runs else "none"
        live.guest = fork.guest
        self._executor.machines.hold(live, fork.machine)
        self._executor.links.serve(live, fork.guest)
        return live

    async def _confirm_and_write(self, fork: Fork, birth: Birth, live: Live) -> tuple[str, ...]:
        """Both at once; the first failure ends the other. The guest is told first: it works while this is written."""
        told = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                confirming = group.create_task(self._confirmed_and_bound(fork, birth, live, told), name="confirm")
                writing = group.create_task(self._write(birth, live, told), name="write")
        except BaseExceptionGroup as failures:
            raise _first(failures) from failures
        if live.context is not None and not live.context.metadata.resource_version:
            live.context = writing.result()  # unless the registry has told of it by itself, and perhaps of more
        return confirming.result()

    async def _write(self, birth: Birth, live: Live, told: asyncio.Event) -> Context:
        await told.wait()
        services = self._services
        assert live.context is not None
        now = timestamp(services.clock.wall())
        running = Rest("Running")
        status = status_of(live, running, ContextStatus(), now, services.clock.boottime())
        return await create_with_uid(services.registry, msgspec.structs.replace(live.context, status=status), self._guards())

    def _guards(self) -> tuple[Compare, ...]:
        """Only a node that lives in the eyes of all others makes contexts."""
        lease = self._services.lease
        if lease is None:
            return ()
        life = lease.life()
        if life is None:
            raise StartDeniedError(
                f"Nothing is started: node {self._services.config.name} does not hold its lease.",
                remedy="`primordia status` shows the node's lease, its supervisor's log says why.",
                reason="NodeLeaseLost",
            )
        return (Compare(life.key, "create", life.create_revision),)

    async def _confirmed_and_bound(self, fork: Fork, birth: Birth, live: Live, told: asyncio.Event) -> tuple[str, ...]:
        """Until it has confirmed it may take a whole processor; then it is bound to the CPU time of its spec."""
        said = await self._confirm(fork, birth, told)
        await self._executor.machines.bind(live)
        return said

    async def _confirm(self, fork: Fork, birth: Birth, told: asyncio.Event) -> tuple[str, ...]:
        services = self._services
        deadline_s = services.settings.claim_deadline_s
        try:
            return await within(services.clock, deadline_s, self._wake_up(fork, birth, told))
        except TimeoutError as error:
            raise UnconfirmedError(f"The guest did not confirm its identity within {deadline_s:g} s.") from error
        except UnconfirmedError:
            raise
        except PrimordiaError as error:
            raise UnconfirmedError(f"The guest could not be told who it is: {error.message}") from error

    async def _wake_up(self, fork: Fork, birth: Birth, told: asyncio.Event) -> tuple[str, ...]:
        if birth.settle:
            await self._services.network_keeper.settled()
        said = await self._identified(fork, birth, told)
        check_confirmed(birth.person, said)
        return tuple(said)

    async def _identified(self, fork: Fork, birth: Birth, told: asyncio.Event) -> tuple[str, ...]:
        """It goes on, and finds there what it is told; the first failure ends the other."""
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(fork.guest.identify(identity_of(self._services, birth.person)), name="identify")
                if fork.warm:
                    group.create_task(fork.machine.resume(), name="resume")
                await asyncio.sleep(0)  # both have been sent
                told.set()
        except BaseExceptionGroup as failures:
            raise _first(failures) from failures
        return telling.result()

    def _confirmed(self, birth: Birth, live: Live, confirmed: tuple[str, ...], begin_s: float) -> None:
        """It is who it is to be: the next daemon may go on with it."""
        assert live.record.run is not None
        boot_ms = round((self._services.clock.boottime() - begin_s) * 1000, 1)
        run = msgspec.structs.replace(live.record.run, phase="running", boot_ms=boot_ms, confirmed=confirmed)
        record = msgspec.structs.replace(live.record, run=run)
        self._services.records.save_for_this_boot(record)
        live.record = record
        self._executor.links.watch(live, _guest_of(live), birth.person.hosts)

    async def _undo(self, fork: Fork, birth: Birth, live: Live | None) -> None:
        """Leave nothing, and never let that hide why."""
        try:
            if live is None:
                await self._forker.destroy(fork)
            else:
                await self._executor.machines.kill(live)
                live.log.close()
            await self._services.records.remove(birth.uid)
        except (PrimordiaError, OSError) as error:
            log.error("what is left of %s is put away later: %s", birth.metadata.name, error)
        self._fleet.give_up(birth.uid)
        with contextlib.suppress(PrimordiaError):
            await self._unwrite(birth)

    async def _unwrite(self, birth: Birth) -> None:
        """The object goes, if it was written."""
        registry, meta = self._services.registry, birth.metadata
        with contextlib.suppress(NotFoundError):
            gone = await registry.mutate(
                Context,
                meta.name,
                meta.namespace,
                lambda stored: _without_finalizer(stored) if stored.metadata.uid == birth.uid else None,
            )
            if gone.metadata.uid == birth.uid:
                await registry.delete(Context, meta.name, meta.namespace, uid=birth.uid)


def _born(birth: Birth) -> ObjectMeta:
    return msgspec.structs.replace(birth.metadata, uid=birth.uid, finalizers=(FINALIZER,))


def _guest_of(live: Live) -> Guest:
    """Its guest, which a link that broke in the last instant has taken away."""
    if live.guest is None:
        raise UnconfirmedError("The link to the guest broke.")
    return live.guest


def _without_finalizer(stored: Context) -> Context:
    return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, finalizers=()))


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that says most: of ours the first, else whatever it was."""
    leaves = list(_leaves(failures))
    return next((error for error in leaves if isinstance(error, PrimordiaError)), leaves[0])


def _leaves(failures: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in failures.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
