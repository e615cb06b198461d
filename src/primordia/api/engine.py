"""The engine's servers, for administrators: `/engine/v1/members`. A node may ask for a server of its own.

Adding writes down who is to have one; the daemon there does the rest (daemon/engine.py), so that the moment between
"it counts" and "it runs" is as short as can be. Removing takes a server out of the record, then out of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

from primordia.api import bodies
from primordia.api.answers import document_answer
from primordia.api.auth import ADMINS, user_of
from primordia.api.errors import RequestError
from primordia.domain.engine import Seat, check_add, check_remove
from primordia.kit.errors import TemporaryError
from primordia.ports.engine import EngineMembers
from primordia.registry import engine
from primordia.registry.registry import Registry
from primordia.wire.conditions import find, is_silent
from primordia.wire.engine import MEMBERS, EngineRecord, EngineSeat, EngineStatus, SeatRequest, SeatStatus
from primordia.wire.meta import LABEL_RACK
from primordia.wire.resources import Node

_LARGEST_BYTES = 4096


class EngineApi:
    """Answers every path below `/engine/v1/`. `peer_port` and `client_port` are those of every server."""

    def __init__(self, registry: Registry, members: EngineMembers, client_port: int, peer_port: int) -> None:
        self._registry = registry
        self._members = members
        self._client_port = client_port
        self._peer_port = peer_port

    async def answer(self, request: web.BaseRequest, peer: Mapping[str, Any] | None) -> web.Response:
        """The answer to one request. Raises PrimordiaError."""
        user = user_of(peer)
        path, name = request.path, request.path.rpartition("/")[2]
        if request.method == "POST" and path == MEMBERS:
            try:
                name = msgspec.json.decode(await bodies.read(request, _LARGEST_BYTES), type=SeatRequest).node
            except msgspec.MsgspecError as error:
                raise RequestError(400, f"The body is not as it should be: {error}.") from error
        if ADMINS not in user.roles and not (request.method != "GET" and user.name == name):
            raise RequestError(403, f"{user.name} is no administrator, who alone may change the engine.")
        if request.method == "GET" and path == MEMBERS:
            return document_answer(await self._status())
        if request.method == "POST" and path == MEMBERS:
            return document_answer(await self._add(name))
        if request.method == "DELETE" and path == f"{MEMBERS}/{name}":
            return document_answer(await self._remove(name))
        raise RequestError(404, f"There is nothing to {request.method} at {path[:200]!r}.")

    async def _status(self) -> EngineStatus:
        record = await engine.known(self._registry, self._members)
        servers = await self._members.list()
        peers = {each.peer_url for each in servers}
        leader = (await self._registry.store.status()).leader
        leading = {each.peer_url for each in servers if f"{each.id:x}" == leader}
        silent = await self._silent(record)
        nodes = {node.metadata.name: node for node in (await self._registry.list(Node)).items}
        return EngineStatus(
            seats=tuple(
                SeatStatus(
                    node=each.node,
                    rack=each.rack,
                    address=each.address,
                    ready=each.ready,
                    member=self._peer(each) in peers,
                    answers=each.node not in silent,
                    trouble=_trouble(nodes.get(each.node), each.node not in silent),
                    leader=self._peer(each) in leading,
                )
                for each in record.seats
            )
        )

    async def _add(self, name: str) -> EngineRecord:
        node = await self._registry.get(Node, name)
        ready = any(each.type == "Ready" and each.status == "True" for each in node.status.conditions)
        if not ready or not node.status.address:
            raise TemporaryError(f"Node {name} is not Ready.", remedy="Bring it back first.", retry_after_s=5.0)
        rack = node.metadata.labels.get(LABEL_RACK, "")
        before = await engine.known(self._registry, self._members)
        silent = await self._silent(before)

        def decide(record: EngineRecord | None) -> EngineRecord:
            seats = (record or before).seats
            check_add(name, rack, _seats(seats), silent)
            return EngineRecord(seats=(*seats, EngineSeat(node=name, rack=rack, address=node.status.address, ready=False)))

        return await engine.change(self._registry.store, decide) or before

    async def _remove(self, name: str) -> EngineRecord:
        before = await engine.known(self._registry, self._members)
        silent = await self._silent(before)
        gone: list[EngineSeat] = []

        def decide(record: EngineRecord | None) -> EngineRecord:
            seats = (record or before).seats
            check_remove(name, _seats(seats), silent)
            gone[:] = [each for each in seats if each.node == name]
            return EngineRecord(seats=tuple(each for each in seats if each.node != name))

        after = await engine.change(self._registry.store, decide) or before
        peers = {self._peer(each) for each in gone}
        for server in await self._members.list():
            if server.peer_url in peers:
                await self._members.remove(server.id)
        return after

    async def _silent(self, record: EngineRecord) -> frozenset[str]:
        """The nodes whose servers should answer and do not."""
        seats = [each for each in record.seats if each.ready]
        answers = await asyncio.gather(
            *(self._members.answers(f"https://{each.address}:{self._client_port}") for each in seats)
        )
        return frozenset(seat.node for seat, good in zip(seats, answers, strict=True) if not good)

    def _peer(self, seat: EngineSeat) -> str:
        return f"https://{seat.address}:{self._peer_port}"


def _seats(seats: tuple[EngineSeat, ...]) -> list[Seat]:
    return [Seat(each.node, each.rack, each.ready) for each in seats]


def _trouble(node: Node | None, answers: bool) -> str:
    """What is wrong with a node's server, in the node's own words where they are of use."""
    said = find(node.status.conditions, "EngineServer") if node is not None else None
    if said is not None and said.status == "False" and not (answers and said.reason == "NotAnswering"):
        return said.message
    if node is not None and not answers and is_silent(node.status.conditions):
        return "Its node is silent."
    return ""
