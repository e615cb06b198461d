"""The demo's chapter of faults: a daemon and the engine's leader are killed, and a client that writes all the time loses
nothing, for the microVMs belong to neither."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from primordia.cli.demo_stage import SOUP, Stage, until
from primordia.cli.demo_writer import Writer, connection
from primordia.cli.run import context_of
from primordia.client.aio import AsyncClient
from primordia.client.answers import decode
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.kit.paths import SoupPaths
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE
from primordia.wire.engine import MEMBERS, EngineStatus

_CONTEXTS = ("redis", "exporter")
_WRITES = 100


@dataclass(frozen=True)
class Life:
    """What would change if a microVM or its program were another: QEMU's pids, and the run of Redis."""

    pids: tuple[int, ...]
    run: str


@dataclass
class Faults:
    """Who is killed, and what must hold meanwhile."""

    stage: Stage
    client: AsyncClient
    name: str
    redis: Any
    hosts: Sequence[str]
    port: int

    async def happen(self) -> None:
        """Kill both, one after the other, under a client that never stops. Raises PermanentError when anything noticed."""
        stage = self.stage
        stage.title("Killed, and nobody noticed")
        before = await self._life()
        home = (await context_of(self.client, self.name, "", _CONTEXTS[0])).spec.node
        own = int(home.removeprefix("n")) - 1
        # The worst place to write to: the node whose daemon is about to die.
        writer = Writer(self.redis, [*self.hosts[own:], *self.hosts[:own]], self.port)
        print(f"A client begins to write to {writer.hosts[0]}:{self.port}, and does not stop.", flush=True)
        async with writer.writing():
            await writer.more(_WRITES)
            await self._kill_daemon(home)
            await writer.more(_WRITES)
            await self._kill_leader()
            await writer.more(_WRITES)
        lost = await writer.lost()
        after = await self._life()
        if before != after or lost:
            raise PermanentError(f"Something was noticed: {lost} writes lost, {before} before, {after} after.")
        pids = " and ".join(str(pid) for pid in after.pids)
        print(f"The same QEMU processes ({pids}), the same run of Redis ({after.run[:12]}...),")
        print(f"{writer.acknowledged} writes acknowledged, {lost} of them lost: nothing noticed.")
        stage.note("writes acknowledged while both were killed", str(writer.acknowledged))
        stage.note("  of which lost", str(lost))
        stage.note("  the longest that one had to wait", f"{writer.longest_wait_s:.2f} s")

    async def _life(self) -> Life:
        contexts = [await context_of(self.client, self.name, "", each) for each in _CONTEXTS]
        async with connection(self.redis, self.hosts[0], self.port) as redis:
            await until(redis.ping, "Redis")
            info = await redis.info("server")
        return Life(tuple(each.status.pid or 0 for each in contexts), str(info["run_id"]))

    async def _kill_daemon(self, node: str) -> None:
        pid = _victim(node, "daemon")
        self.stage.typed(f"kill -9 {pid}   # the daemon of {node}, where the lifeform is: API, controllers, node")
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)

        async def serves() -> None:
            if _pid_of(node, "daemon") in (0, pid):
                raise TemporaryError("The supervisor has not started the next one yet.")
            if (await self.client.exec(self.name, ["/bin/true"])).code != 0:
                raise TemporaryError("exec does not work yet.")

        await until(serves, f"the next daemon of {node}")
        seconds = time.monotonic() - begun
        print(f"The next one serves exec there after {seconds:.1f} s.", flush=True)
        self.stage.note("daemon killed, until the next one serves exec there", f"{seconds:.1f} s")

    async def _kill_leader(self) -> None:
        await self.stage.primordia("engine", "status")
        answer = decode(EngineStatus, await self.client.transport.request("GET", MEMBERS))
        leader = next((seat.node for seat in answer.seats if seat.leader), answer.seats[0].node)
        pid = _victim(leader, "engine")
        self.stage.typed(f"kill -9 {pid}   # etcd on {leader}, the engine's leader")
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.stage.typed("primordia node cordon n6   # a write to the engine, meanwhile")
        await until(lambda: self.stage.silently("node", "cordon", "n6"), "the engine's next leader")
        seconds = time.monotonic() - begun
        print(f"Written {seconds:.1f} s after the leader's death.", flush=True)
        self.stage.note("engine leader killed, until a control write is done", f"{seconds:.1f} s")
        await self.stage.primordia("node", "uncordon", "n6")


def _victim(node: str, child: str) -> int:
    """The pid of a process to kill. Raises TemporaryError while there is none: 0 would mean all of us."""
    pid = _pid_of(node, child)
    if pid <= 1:
        raise TemporaryError(f"The {child} of {node} is not running.", remedy="See its log, then try again.")
    return pid


def _pid_of(node: str, child: str) -> int:
    """A process of the demo's soup, as its supervisor says; 0 while there is none."""
    with suppress(OSError, ValueError):
        reply = control.ask(SoupPaths.of(SOUP).node(node).run / SOCKET_FILE, "status")
        return int(reply["children"][child]["pid"])
    return 0
