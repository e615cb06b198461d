"""All contexts of this node: which there are, their workers, their addresses, and who is whose peer.

A context gets its worker when the registry binds it here or when a record says that it was here; the worker ends when
nothing of it is left. Addresses come from the node's range and stay a context's as long as its record exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

import msgspec

from primordia.kit.deadline import within
from primordia.kit.errors import CapacityError
from primordia.kit.tasks import TaskSet
from primordia.node.addresses import AddressBook
from primordia.node.contexts import Worker
from primordia.node.execute import Executor
from primordia.node.live import Live
from primordia.node.logs import LogBook
from primordia.node.records import Record
from primordia.node.services import Services
from primordia.node.status import StatusWriter
from primordia.ports.network import Endpoint
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

_LAST_WORDS_S = 2.0


class Fleet:
    """Workers by uid. `book` has the addresses of what is here, forks that wait included."""

    def __init__(
        self, services: Services, informers: Informers, writer: StatusWriter, book: AddressBook, executor: Executor
    ) -> None:
        self._services = services
        self._informer = informers.of(Context)
        self._writer = writer
        self._book = book
        self._executor = executor
        self._workers: dict[str, Worker] = {}
        self._groups: dict[str, set[str]] = {}
        self._tasks = TaskSet("contexts")
        self._known = False
        self._shutting_down = False
        self.waiting_uids: Callable[[], Iterable[str]] = tuple
        self.emptied = asyncio.Event()

    @property
    def lives(self) -> Mapping[str, Live]:
        """What runs here, by uid."""
        return {uid: worker.live for uid, worker in self._workers.items()}

    def get(self, uid: str) -> Live | None:
        """One context."""
        worker = self._workers.get(uid)
        return worker.live if worker is not None else None

    def addresses(self) -> dict[str, str]:
        """The address of every context here, by uid, as it is now."""
        return self._book.all()

    def links(self) -> dict[str, str]:
        """What the TAPs of contexts are called, by uid, where that is another name."""
        found = ((uid, worker.live.record.machine) for uid, worker in self._workers.items())
        return {uid: machine for uid, machine in found if machine != uid}

    def newcomers(self) -> tuple[Context, ...]:
        """Forks that the registry may not tell of yet."""
        forks = (worker.live for worker in self._workers.values() if worker.live.is_fork)
        return tuple(live.context for live in forks if live.context is not None and not self._is_known(live))

    def waiting(self) -> tuple[Endpoint, ...]:
        """Forks that wait: each alone."""
        book = self._book.all()
        return tuple(Endpoint(uid, book[uid], uid) for uid in self.waiting_uids() if uid in book)

    def _is_known(self, live: Live) -> bool:
        known = self._informer.get(live.record.name, live.record.namespace)
        return known is not None and known.metadata.uid == live.uid

    def give_address(self, live: Live) -> None:
        """Give a context an address, if it has none, and tell its peers. Raises CapacityError."""
        if live.record.address:
            return
        live.record = msgspec.structs.replace(live.record, address=self._book.give(live.uid))
        self._introduce(live.record.group)
        self._services.network_keeper.changed(lazily=True)

    def machines(self) -> dict[str, int]:
        """The pid of every microVM that is held, by the title of its context."""
        lives = (worker.live for worker in self._workers.values())
        return {live.title: live.machine.identity.pid for live in lives if live.machine is not None}

    def unsettled(self) -> tuple[str, ...] | None:
        """The contexts that run, by their records, and whose microVM or agent is not held; None before that is known."""
        if not self._known:
            return None
        lives = [worker.live for worker in self._workers.values()]
        run = [live for live in lives if live.record.run is not None and live.record.run.phase == "running"]
        return tuple(sorted(live.title for live in run if live.machine is None or live.guest is None))

    def tell_faults(self, faults: Mapping[str, tuple[str, ...]]) -> None:
        """Publications that could not be made, by uid; whoever is not named has none."""
        for uid, worker in self._workers.items():
            live, found = worker.live, faults.get(uid, ())
            if live.faults != found:
                if found and live.context is not None:
                    self._services.events.record(live.context, "PortNotPublished", " ".join(found), warning=True)
                live.faults = found
                live.wake()

    async def run(self) -> None:
        """Drive every context until cancelled; then let go of the microVMs, which go on, or shut them down if so wished."""
        try:
            records = self._services.records.load_all()
            # All of them first: a new address must not be one that a later record holds.
            for record in records:
                self._hold_addresses(record)
            for record in records:
                self._begin(record, None)
            await self._informer.synced()
            self._known = True
            self._informer.subscribe(self._on_context)
            for worker in self._workers.values():
                worker.live.known = True
                worker.live.wake()
            await asyncio.get_running_loop().create_future()
        finally:
            await self._tasks.close()
            if self._shutting_down:
                await asyncio.gather(*(worker.shut_down() for worker in self._workers.values()))
                await self._last_words()
            for worker in self._workers.values():
                await worker.release()

    async def _last_words(self) -> None:
        """Tell of what was shut down: whoever asks before the next daemon has looked would be told that it is ready."""
        try:
            await within(self._services.clock, _LAST_WORDS_S, self._writer.flush())
        except TimeoutError:
            log.warning("the contexts' last status could not be written within %g s", _LAST_WORDS_S)

    def shut_down_at_end(self) -> None:
        """When `run` is cancelled, shut the guests down in order instead of letting go of them."""
        self._shutting_down = True

    # ------------------------------------------------------------ inside

    def _on_context(self, change: Change[Context]) -> None:
        about = change.new or change.old
        if about is None:
            return
        here = change.new is not None and change.new.spec.node == self._services.config.name
        worker = self._workers.get(about.metadata.uid)
        if worker is None:
            if here:
                meta = about.metadata
                self._begin(Record(uid=meta.uid, namespace=meta.namespace, name=meta.name, spec=about.spec), about)
            return
        live = worker.live
        if change.new is not None and not here and live.context is not None:
            self._writer.drop(change.new)  # it went to another node: what it did here is no news any more
        before, live.context, live.known = live.spec, change.new if here else None, True
        if live.spec != before:
            live.spec_changed.set()
        live.wake()

    def _hold_addresses(self, record: Record) -> None:
        if record.address:
            self._book.hold(record.uid, record.address)
        if record.run is not None and record.run.slot:
            self._book.hold(record.machine, record.run.slot)

    def take_in(self, record: Record, context: Context) -> Live:
        """A fork that is becoming a context: known here from now on, driven once it is confirmed (`drive`)."""
        live = self._enter(record, context, known=True)
        self._services.network_keeper.changed()
        return live

    def drive(self, uid: str) -> None:
        """The fork is somebody: its worker takes over, with the microVM it holds."""
        worker = self._workers[uid]
        worker.begin_holding()
        self._tasks.start(self._drive(worker), name=worker.live.title)

    def give_up(self, uid: str) -> None:
        """The fork did not become anybody."""
        worker = self._workers.get(uid)
        if worker is not None:
            self._leave(worker.live)

    def _enter(self, record: Record, context: Context | None, *, known: bool) -> Live:
        services = self._services
        book = LogBook(services.records.folder(record.uid) / "log", services.clock)
        live = Live(record=record, log=book, context=context, known=known, boot_id=services.host.boot_id())
        self._workers[record.uid] = Worker(services, self._executor, self._writer, live)
        self._groups.setdefault(record.group, set()).add(record.uid)
        if services.volumes is not None:
            services.volumes.enter(live)
        return live

    def _begin(self, record: Record, context: Context | None) -> None:
        services = self._services
        live = self._enter(record, context, known=self._known)
        worker = self._workers[record.uid]
        with contextlib.suppress(CapacityError):
            # Now, so that its peers know it before it runs; a start that finds none says so.
            self.give_address(live)
        self._introduce(record.group)
        services.network_keeper.changed(lazily=True)
        self._tasks.start(self._drive(worker), name=live.title)

    async def _drive(self, worker: Worker) -> None:
        live = worker.live
        await worker.run()
        self._leave(live)
        self.emptied.set()
        log.info("%s: nothing of it is left", live.title)
        # Its object may have come again under the same uid while the last of it went: look once more.
        again = self._informer.get(live.record.name, live.record.namespace)
        if again is not None and again.metadata.uid == live.uid and again.metadata.deletion_timestamp is None:
            self._on_context(Change(None, again))

    def _leave(self, live: Live) -> None:
        group = live.record.group
        self._workers.pop(live.uid, None)
        if self._services.volumes is not None:
            self._services.volumes.leave(live)
        self._book.free(live.uid)
        self._book.free(live.record.machine)
        self._groups[group].discard(live.uid)
        if not self._groups[group]:
            del self._groups[group]
        self._introduce(group)
        self._services.network_keeper.changed()

    def _introduce(self, group: str) -> None:
        """Tell the members of a lifeform each other's names."""
        members = [self._workers[uid].live for uid in sorted(self._groups.get(group, ()))]
        names = {live.spec.template.name: live.record.address for live in members if live.record.address}
        for live in members:
            if live.peers != names:
                live.peers = names
                live.hosts_changed.set()
