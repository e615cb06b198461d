"""Following the engine's servers: every node learns where they are, and one that is to run one starts or ends it.

Level-triggered: what the record says is compared with node.json, and each step looks first, so that a daemon killed
between any two goes on where the last one was. The server itself is the supervisor's child; it reads node.json anew when
told to.

A server whose data is lost cannot go on as the member that it was (supervisor/engine_data.py). Its daemon gives that
membership up, and takes a new one in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from primordia.domain.engine import LEAST_DISK_BYTES, Health
from primordia.host.soup import read_config, write_config
from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.ports.engine import EngineMembers, EngineServer
from primordia.ports.store import Store
from primordia.registry import engine as records
from primordia.supervisor import control, engine_data
from primordia.supervisor.engine import client_url, initial_cluster, peer_url
from primordia.supervisor.main import SOCKET_FILE
from primordia.wire.engine import EngineRecord, EngineSeat
from primordia.wire.nodeconfig import Engine

log = logging.getLogger("engine")

_RETRY_S = 1.0
_START_WITHIN_S = 60.0
_RELOAD_S = 30.0
_TEND_S = 5.0
_SILENCES = 2
"""Looks in a row that a server must leave unanswered to be called silent: one that restarts misses one."""

UseEndpoints = Callable[[tuple[str, ...]], None]


def wanted_engine(current: Engine, record: EngineRecord, own: EngineSeat | None) -> Engine:
    """What node.json should say of the engine, but for the start of a new server. Pure."""
    endpoints = tuple(client_url(seat.address) for seat in record.seats if seat.ready) or current.endpoints
    member = current.member and own is not None
    return msgspec.structs.replace(current, endpoints=endpoints, member=member)


def new_server(name: str, peer: str, servers: tuple[EngineServer, ...], current: Engine) -> Engine:
    """What node.json should say for a server that joins those. Pure. One that has not started has no name yet."""
    cluster = {each.name: each.peer_url for each in servers if each.name and each.peer_url != peer} | {name: peer}
    return msgspec.structs.replace(current, member=True, initial_cluster=initial_cluster(cluster), initial_state="existing")


class EngineFollower:
    """One node's. `use_endpoints` hears of the servers' client URLs, `changed` of another health of the own one."""

    def __init__(
        self,
        config_path: Path,
        store: Store,
        members: EngineMembers,
        clock: Clock,
        use_endpoints: UseEndpoints,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = config_path
        self._config = read_config(config_path)
        self._store = store
        self._members = members
        self._clock = clock
        self._use_endpoints = use_endpoints
        self._busy = asyncio.Lock()
        self._silences = 0
        self._health: Health | None = None
        self._changed = changed

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The engine's client URLs as of now."""
        return self._config.engine.endpoints

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_always(), name="engine/follow")
            group.create_task(self._tend(), name="engine/tend")

    @property
    def health(self) -> Health | None:
        """How this node's own server does, as seen last; None where there is none, or nobody has looked yet."""
        return self._health if self._config.engine.member else None

    async def _tend(self) -> None:
        """Look after the server here: tell how it does, and replace it when it has lost its data."""
        while True:
            if self._config.engine.member and (await self._examine()).lost:
                try:
                    async with self._busy:
                        await self._replace()
                except PrimordiaError as error:
                    log.warning("the engine server whose data is lost cannot be replaced now: %s", error)
            await self._clock.sleep(_TEND_S)

    async def _examine(self) -> Health:
        answers = await self._members.answers(client_url(self._config.address))
        self._silences = 0 if answers else self._silences + 1
        engine_data.remember(self._data_dir)  # the supervisor does so too, but seldom
        seen = Health(self._silences < _SILENCES, engine_data.is_lost(self._data_dir), _has_room(self._data_dir))
        before, self._health = self._health, seen
        if seen != before:
            self._changed()
        return seen

    async def _replace(self) -> None:
        config = self._config
        record, _ = await records.read(self._store)
        if record is not None and config.name not in {seat.node for seat in record.seats}:
            return  # it was taken out meanwhile, and is to have none
        own = EngineSeat(node=config.name, rack=config.rack, address=config.address, ready=False)
        for server in await self._members.list():
            if server.peer_url == peer_url(own.address) and server.name:
                log.warning("the data of this node's engine server is lost: its membership is given up for a new one")
                await self._members.remove(server.id)
        await self._start(own)

    @property
    def _data_dir(self) -> Path:
        return Path(self._config.state_dir) / "engine"

    async def _follow_always(self) -> None:
        await self._tell_supervisor()  # an earlier daemon may have ended between writing the file and saying so
        while True:
            try:
                await self._follow()
            except PrimordiaError as error:
                log.info("the engine's members are not followed now: %s", error)
            await self._clock.sleep(_RETRY_S)

    async def _follow(self) -> None:
        listing = await self._store.list(records.PREFIX)
        async with self._store.watch(records.PREFIX, after_revision=listing.revision) as batches:
            await self._look()
            async for batch in batches:
                if batch.events:
                    await self._look()

    async def _look(self) -> None:
        async with self._busy:
            await self._compare()

    async def _compare(self) -> None:
        record, _ = await records.read(self._store)
        if record is None:
            return
        own = next((seat for seat in record.seats if seat.node == self._config.name), None)
        await self._settle(wanted_engine(self._config.engine, record, own))
        if own is not None and not own.ready:
            await self._start(own)

    async def _start(self, own: EngineSeat) -> None:
        """Become a member, start the server, and say when it answers."""
        peer = peer_url(own.address)
        servers = await self._members.list()
        # Written before it counts: the engine may have no majority, and so no record to read, until this server runs.
        if peer not in {each.peer_url for each in servers}:
            # Nothing that an earlier membership left may be taken for this one's: etcd would refuse it, or worse.
            await asyncio.to_thread(shutil.rmtree, self._data_dir, ignore_errors=True)
            self._write(new_server(self._config.name, peer, servers, self._config.engine))
            await self._members.add(peer)
        else:
            self._write(new_server(self._config.name, peer, servers, self._config.engine))
        engine_data.forget(self._data_dir)
        await self._tell_supervisor()
        deadline = self._clock.boottime() + _START_WITHIN_S
        while not await self._members.answers(client_url(own.address)):
            if self._clock.boottime() > deadline:
                raise TemporaryError(f"The engine server on node {own.node} does not answer.", remedy="See its engine.log.")
            await self._clock.sleep(0.2)

        def decide(record: EngineRecord | None) -> EngineRecord | None:
            if record is None:
                return None
            seats = tuple(msgspec.structs.replace(seat, ready=True) if seat.node == own.node else seat for seat in record.seats)
            return EngineRecord(seats=seats)

        await records.change(self._store, decide)
        log.info("this node runs an engine server")

    async def _settle(self, wanted: Engine) -> None:
        """Bring node.json, the store's connections and the supervisor to it."""
        if wanted != self._config.engine:
            self._write(wanted)
            self._use_endpoints(wanted.endpoints)
            await self._tell_supervisor()

    def _write(self, wanted: Engine) -> None:
        fresh = msgspec.structs.replace(read_config(self._path), engine=wanted)
        write_config(self._path, fresh)
        self._config = fresh

    async def _tell_supervisor(self) -> None:
        """Have it read node.json anew; one that does not listen reads it when it starts."""
        with contextlib.suppress(OSError, ValueError):
            place = Path(self._config.run_dir) / SOCKET_FILE
            await asyncio.to_thread(control.ask, place, "reload", timeout_s=_RELOAD_S)


def _has_room(folder: Path) -> bool:
    """Whether its disk has; the folder may not be there."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder if folder.exists() else folder.parent).free >= LEAST_DISK_BYTES
    return True
