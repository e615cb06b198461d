"""A real engine for tests: one etcd with mutual TLS on loopback, ended by its pid; and a clock that tests move by hand."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.drivers.store_etcd import EtcdStore, Settings
from primordia.host import toolchain
from primordia.kit import pki
from primordia.kit.paths import cache_dir
from primordia.supervisor.engine import EngineServer, EngineTls, client_url, etcd_argv, initial_cluster, peer_url

_READY_S = 60.0
_HOST = "127.0.0.1"


class HandClock:
    """A Clock that stands still until `advance`; sleepers wake in order of their times."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def boottime(self) -> float:
        return self._now

    def wall(self) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=self._now)

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        self._sleepers.append((self._now + seconds, self._count, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let time pass; what wakes runs, and may sleep and wake again, before this returns."""
        end = self._now + seconds
        await settle()
        while due := [each for each in self._sleepers if each[0] <= end]:
            first = min(due, key=lambda each: each[:2])
            self._sleepers.remove(first)
            self._now = max(self._now, first[0])
            if not first[2].done():
                first[2].set_result(None)
            await settle()
        self._now = end
        await settle()


async def settle(rounds: int = 20) -> None:
    """Let every task that can run go on until it waits."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class Engine:
    """One etcd server in `folder`, with a node's identity to reach it by. Use `start` and `kill`, in a `finally`."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._port, peer_port = _free_ports(2)
        self.ca, self.certificate, self.key = folder / "ca.crt", folder / "node.crt", folder / "node.key"
        authority = pki.make_ca("primordia test")
        self.ca.write_bytes(authority.certificate)
        names = ("localhost",)
        pki.issue(authority, "n1", "primordia:nodes", san_dns=names, san_ip=(_HOST,), server=True).write(
            self.certificate, self.key
        )
        self.server = EngineServer(
            name="n1",
            data_dir=str(folder / "data"),
            address=_HOST,
            tls=EngineTls(str(self.ca), str(self.certificate), str(self.key)),
            cluster=initial_cluster({"n1": peer_url(_HOST, peer_port)}),
            token="test",
            client_port=self._port,
            peer_port=peer_port,
        )

    @property
    def endpoint(self) -> str:
        """Its client URL."""
        return client_url(_HOST, self._port)

    def store(self, *, endpoints: tuple[str, ...] = (), settings: Settings = Settings()) -> EtcdStore:  # noqa: B008
        """A new store on it; the caller closes it."""
        return EtcdStore(endpoints or (self.endpoint,), self.ca, self.certificate, self.key, settings=settings)

    def start(self) -> None:
        """Start it and wait until it answers. It dies with this process, however that ends."""
        with (self._folder / "engine.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *etcd_argv(self._program, self.server)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )
        deadline = time.monotonic() + _READY_S
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"etcd did not start:\n{(self._folder / 'engine.log').read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """As a crash: SIGKILL, waited for. Harmless when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It stops answering and keeps its connections."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)  # threads stop one after the other

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the engine is not running")
        self._process.send_signal(number)

    def _is_healthy(self) -> bool:
        context = pki.client_context(self.ca, self.certificate, self.key)
        with contextlib.closing(http.client.HTTPSConnection(_HOST, self._port, timeout=2, context=context)) as connection:
            try:
                connection.request("GET", "/health")
                return b'"true"' in connection.getresponse().read()
            except OSError:
                return False


def etcd_program() -> str:
    """An etcd: PRIMORDIA_TEST_ETCD (to try another version), else the toolchain's."""
    if given := os.environ.get("PRIMORDIA_TEST_ETCD"):
        return given
    # In a thread, so that a loop of pytest's own is left alone.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(toolchain.ensure(cache_dir(), lambda _: None))).result().etcd


@contextlib.contextmanager
def running_engine() -> Iterator[Engine]:
    """A started engine of its own; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="primordia-engine-") as folder:
        engine = Engine(etcd_program(), Path(folder))
        try:
            engine.start()
            yield engine
        finally:
            engine.kill()


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    """One engine for every test that does not disturb it."""
    with running_engine() as engine:
        yield engine


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    """An engine that the test may kill and freeze."""
    with running_engine() as engine:
        yield engine


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
