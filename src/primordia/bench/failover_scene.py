"""What the failover benchmark is played on: where the lifeform and the engine's leader are, who is asked, what was heard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from primordia.bench.ground import Ground
from primordia.client import answers
from primordia.client.answers import decode
from primordia.domain.lifeforms import context_object_name
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.ports.store import WatchEvent
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE
from primordia.wire.conditions import holds
from primordia.wire.engine import MEMBERS, EngineStatus, SeatStatus
from primordia.wire.resources import Context, Lifeform, Node, Volume

PATIENCE_S = 180.0
_LOOK_S = 0.2
_ASK_AGAIN_S = 0.02
_ASK_S = 1.0
_LEADER_TRIES = 20
_RENEWED_S = 3.0


class Moments:
    """When each change of the engine's keys was heard of."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, str, bool]] = []

    def hear(self, event: WatchEvent, moment: float) -> None:
        """One change. Called in the engine's thread; appending is safe."""
        self.heard.append((moment, event.key, event.value is None))

    def gone(self, key: str) -> float:
        """When the key was deleted at last. Raises TemporaryError when it was not."""
        moment = next((moment for moment, each, deleted in reversed(self.heard) if deleted and each == key), None)
        if moment is None:
            raise TemporaryError(f"The end of {key} was not seen.", remedy="Measure again.")
        return moment


@dataclass
class Scene:
    """A lifeform with a volume, whose port `port` serves what is on it."""

    ground: Ground
    name: str
    volume: str
    port: int

    async def node(self) -> str:
        """Where it is."""
        return (await self.ground.client.get(Lifeform, self.name)).status.node

    def other_than(self, node: str) -> str:
        """Some other node."""
        return next(each for each in self.ground.nodes if each != node)

    def pid(self, node: str, child: str) -> int:
        """The pid of a child of the node's supervisor. Raises TemporaryError when it does not run."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            reply = control.ask(self.ground.paths_of(node).run / SOCKET_FILE, "status")
            if (pid := int(reply["children"][child]["pid"])) > 1:
                return pid
        raise TemporaryError(f"The {child} of {node} does not run.", remedy="Measure again.")

    async def microvm(self) -> int:
        """The pid of its microVM."""
        context = await self.ground.client.get(Context, context_object_name(self.name, "main"))
        if not context.status.pid:
            raise TemporaryError(f"{self.name} does not run.", remedy="Measure again.")
        return context.status.pid

    async def settled(self, record: str) -> str:
        """Wait until nothing is missing of the soup, then write a record and sync it; gives the record."""
        await eventually("all nodes are Ready", self._all_ready)
        await eventually("all engine servers answer", self._engine_whole)
        await eventually("the volume is protected", self._protected)
        script = f"echo {record} > /data/record"
        result = await self.ground.client.exec(self.name, ["sh", "-c", script])
        if result.code:
            raise PrimordiaError(f"The guest could not write: {result.stderr.decode(errors='replace')[-300:]}")
        await self.ground.client.sync(self.volume)
        await eventually("all copies are in sync", self._in_sync)
        await eventually("every node with a copy has a template of it", self._prepared)
        return record

    async def bring_leader_to(self, node: str) -> None:
        """Kill the engine's leaders until the one of this node leads."""
        await self._bring_leader(lambda leader: leader == node, f"the engine is led from {node}")

    async def bring_leader_from(self, node: str) -> None:
        """Kill the engine's leader if it is this node's."""
        await self._bring_leader(lambda leader: leader != node, f"the engine is not led from {node}")

    async def _bring_leader(self, will_do: Callable[[str], bool], what: str) -> None:
        """A new leader gives each lease more time than it has, until that is renewed: it is waited for that."""
        for turn in range(_LEADER_TRIES):
            await eventually("all engine servers answer", self._engine_whole)
            leader = next((seat.node for seat in await self._seats() if seat.leader), "")
            if leader and will_do(leader):
                await asyncio.sleep(_RENEWED_S if turn else 0)
                return
            if leader:
                os.kill(self.pid(leader, "engine"), signal.SIGKILL)
        raise TemporaryError(f"It never was so that {what}.", remedy="Measure again.")

    async def _seats(self) -> tuple[SeatStatus, ...]:
        return decode(EngineStatus, await self.ground.client.transport.request("GET", MEMBERS)).seats

    async def _engine_whole(self) -> bool:
        seats = await self._seats()
        return all(seat.member and seat.answers for seat in seats) and any(seat.leader for seat in seats)

    async def _all_ready(self) -> bool:
        return all(answers.ready(node) for node in (await self.ground.client.list(Node)).items)

    async def _protected(self) -> bool:
        lifeform = await self.ground.client.get(Lifeform, self.name)
        volume = await self.ground.client.get(Volume, self.volume)
        return answers.ready(lifeform) and holds(volume.status.conditions, "Protected")

    async def _in_sync(self) -> bool:
        status = (await self.ground.client.get(Volume, self.volume)).status
        return bool(status.copies) and all(each.state == "InSync" for each in status.copies)

    async def _prepared(self) -> bool:
        replicas = (await self.ground.client.get(Volume, self.volume)).status.replicas
        return all(any(self.ground.paths_of(node).templates.glob("*/manifest.json")) for node in replicas)


class Asker:
    """A client that asks the published port of all nodes but one, each without waiting for the others."""

    def __init__(self, scene: Scene, *, without: str) -> None:
        self._hosts = [scene.ground.address(node) for node in scene.ground.nodes if node != without]
        self._port = scene.port
        self._said: set[str] = set()

    async def answered(self, record: str) -> float:
        """Ask until the record is what is answered, and give the moment. Raises TemporaryError."""
        asking = [asyncio.create_task(self._ask(host, record), name=f"bench/ask {host}") for host in self._hosts]
        try:
            done, _ = await asyncio.wait(asking, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in asking:
                each.cancel()
            await asyncio.wait(asking)
        if done:
            return min(each.result() for each in done)
        last = ", ".join(sorted(self._said)) or "nothing"
        raise TemporaryError(f"Nobody answered {record!r} within {PATIENCE_S:.0f} s, but {last}.", remedy="Measure again.")

    async def _ask(self, host: str, record: str) -> float:
        """Ask one host until it says that, and give the moment."""
        while True:
            said = await fetch(host, self._port, "/record")
            moment = time.monotonic()
            if said == record:
                return moment
            if said:
                self._said.add(repr(said))
            await asyncio.sleep(_ASK_AGAIN_S)


async def fetch(host: str, port: int, path: str) -> str:
    """What an HTTP server says at that place; empty when none does, or has no such page."""
    writer = None
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    except (OSError, TimeoutError):
        return ""
    finally:
        if writer is not None:
            writer.close()
    return body.decode(errors="replace").strip() if b" 200 " in head.partition(b"\r\n")[0] else ""


async def eventually(what: str, is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds. A soup that does not answer just now is asked again. Raises TemporaryError."""
    deadline = time.monotonic() + PATIENCE_S
    last = ""
    while True:
        try:
            if await is_so():
                return
        except (PrimordiaError, OSError) as error:
            last = f" ({error})"
        if time.monotonic() > deadline:
            raise TemporaryError(f"Within {PATIENCE_S:.0f} s it never was so that {what}{last}.", remedy="Measure again.")
        await asyncio.sleep(_LOOK_S)
