"""A soup of many nodes on this machine, for tests that need real ones; it takes itself down and leaves nothing.

It lives in the machine's usual folders, under a name of its own, so that it gets loopback addresses that no other soup of the
machine has and the doctor's look covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from primordia.client.aio import AsyncClient, connect
from primordia.host import leftovers
from primordia.host import up as host
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.host.soup import API_PORT, SoupFile, host_address
from primordia.kit import ids
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.node.records import Records
from primordia.wire.meta import LABEL_NODE, ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextTemplate,
    LabelSelector,
    Lifeform,
    LifeformNetwork,
    LifeformSpec,
    Peer,
    Port,
    Resources,
)

PATIENCE_S = 120.0
_LOOK_S = 40.0
SLEEP = ("/bin/sh", "-c", "echo born; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
SERVE = ("/bin/sh", "-c", "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 8000 -h /www")


@dataclass(frozen=True)
class Many:
    """A running soup. Nodes are named n1, n2, ...; `seconds` is what `up` took."""

    soup: SoupFile
    config: Path
    seconds: float

    def client(self, *nodes: str) -> AsyncClient:
        """A client that asks these nodes, in that order; without names, all of them."""
        return connect(self.config, server=",".join(f"https://{self.address(node)}:{API_PORT}" for node in nodes or self.names))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.soup.nodes)

    def address(self, node: str) -> str:
        """Where this machine reaches the node: its API, and every published port."""
        index = next(each.index for each in self.soup.nodes if each.name == node)
        return host_address(self.soup.slot, index)

    def paths(self, node: str) -> NodePaths:
        return SoupPaths.of(self.soup.name).node(node)

    def pid(self, node: str, child: str) -> int:
        """The pid of a node's `daemon`, `engine`, `uplink` or `supervisor`; 0 when it does not run."""
        return running_pid(self.paths(node).run / f"{child}.pid")

    def _running(self, node: str, child: str) -> int:
        """Its pid, never 0 or less: to kill(2) those are whole groups of processes, and -1 is everybody."""
        pid = self.pid(node, child)
        assert pid > 1, f"{child} of {node} does not run"
        return pid

    def kill(self, node: str, child: str) -> int:
        """Kill it, and give the pid that it had."""
        pid = self._running(node, child)
        os.kill(pid, signal.SIGKILL)
        return pid

    @contextlib.contextmanager
    def frozen(self, node: str, child: str) -> Iterator[None]:
        """SIGSTOP for the length of the block."""
        pid = self._running(node, child)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def runs(self) -> dict[str, int]:
        """The pid of every context's microVM, by the context's uid. Forks that wait in a pool are nobody's."""
        return {uid: pid for node in self.names for uid, pid in runs_of(self.paths(node)).items()}

    def machines(self) -> dict[str, int]:
        """The pid of every microVM of the soup, by what it is called: a context's uid, or the name it had as a fork."""
        found = {}
        for node in self.names:
            for path in sorted((self.paths(node).run / "c").glob("*/qemu.pid")):
                if pid := running_pid(path):
                    found[path.parent.name] = pid
        return found

    async def clear(self) -> None:
        """Delete every lifeform and wait until nothing of them is left."""
        async with self.client() as client:
            for lifeform in (await client.list(Lifeform)).items:
                await client.delete(Lifeform, lifeform.metadata.name)

            async def gone() -> bool:
                return not (await client.list(Context)).items and not self.runs()

            await eventually("all lifeforms are gone", gone)


def runs_of(paths: NodePaths) -> dict[str, int]:
    """The pid of the microVM of every context of a node, by the context's uid."""
    found = {}
    for record in Records(paths).load_all():
        if pid := running_pid(paths.context_run(record.machine) / "qemu.pid"):
            found[record.uid] = pid
    return found


@contextlib.contextmanager
def many_nodes(shape: Shape, pool: PoolWish | None = None, timings: dict[str, float] | None = None) -> Iterator[Many]:
    """Bring a soup up; at the end take it down with all it holds, and see that nothing is left and no bug was logged."""
    name = f"many-{ids.suffix()}"
    with tempfile.TemporaryDirectory(prefix="primordia-many-") as folder:
        config = Path(folder) / "config"
        options = host.UpOptions(soup=name, shape=shape, client_config=config, pool=pool or PoolWish(), timings=timings or {})
        try:
            begun = time.monotonic()
            result = asyncio.run(host.up(options, lambda step: None))
            yield Many(result.soup, config, time.monotonic() - begun)
        finally:
            traces = _traces(name)
            with contextlib.suppress(NotFoundError):
                asyncio.run(host.down(name, lambda step: None, destroy=True, client_config=config))
    # Cycles of the clients are finalised here: in the midst of an import, CPython 3.11's compiler trips over it.
    gc.collect()
    leaks = [f"{leak.kind} {leak.name}: {leak.detail}" for leak in asyncio.run(leftovers.look()) if name in str(leak)]
    assert not leaks, leaks
    assert not traces, traces


def _traces(soup: str) -> list[str]:
    """What the soup's daemons and supervisors wrote down of failures that nobody foresaw."""
    found = []
    for log in sorted((SoupPaths.of(soup).state / "nodes").glob("*/log/*.log")):
        text = log.read_text(errors="replace") if log.stem in ("daemon", "supervisor") else ""
        if "Traceback (most recent call last)" in text:
            found.append(f"{log.parent.parent.name} {log.stem}: {text[text.index('Traceback') :][:4000]}")
    return found


def lifeform(
    name: str,
    *,
    node: str = "",
    command: tuple[str, ...] = SLEEP,
    labels: dict[str, str] | None = None,
    allow: dict[str, str] | None = None,
    publish: int = 0,
) -> Lifeform:
    """A lifeform of one busybox. `publish` leads to its port 8000; `allow` are labels of those that may connect."""
    ports = (Port(container_port=8000, publish=publish),) if publish else ()
    template = ContextTemplate(
        name="main", image="busybox", command=command, ports=ports, resources=Resources(cpu="1", memory="96Mi")
    )
    peers = (Peer(pod_selector=LabelSelector(match_labels=allow)),) if allow else ()
    return Lifeform(
        metadata=ObjectMeta(name=name, labels=labels or {}),
        spec=LifeformSpec(
            contexts=(template,),
            node_selector={LABEL_NODE: node} if node else {},
            network=LifeformNetwork(allow_from=peers),
            termination_grace_period_seconds=2,
        ),
    )


async def running(client: AsyncClient, *lifeforms: Lifeform) -> list[Lifeform]:
    """Create them all, then wait until each is ready."""
    for each in lifeforms:
        await client.create(each)
    found = []
    for each in lifeforms:
        ready = await client.wait(Lifeform, each.metadata.name, is_ready, timeout_s=PATIENCE_S)
        assert ready is not None
        found.append(ready)
    return found


def is_ready(lifeform: Lifeform | None) -> bool:
    """Whether all of its contexts are."""
    return lifeform is not None and any(one.type == "Ready" and one.status == "True" for one in lifeform.status.conditions)


async def eventually(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds. A soup that does not answer just now is asked again."""
    deadline = time.monotonic() + PATIENCE_S
    last = ""
    while True:
        try:
            async with asyncio.timeout(_LOOK_S):
                if await holds():
                    return
        except (PrimordiaError, OSError) as error:  # a look that takes too long is an OSError, too
            last = f" ({error or type(error).__name__})"
        assert time.monotonic() < deadline, f"never came: {what}{last}"
        await asyncio.sleep(0.2)


async def fetch(address: str, port: int) -> str:
    """What an HTTP server says at that place; empty when nobody does."""

    def ask() -> str:
        try:
            with socket.create_connection((address, port), timeout=10) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while piece := connection.recv(4096):
                    answer += piece
        except OSError:
            return ""
        return answer.partition(b"\r\n\r\n")[2].decode().strip()

    return await asyncio.to_thread(ask)
