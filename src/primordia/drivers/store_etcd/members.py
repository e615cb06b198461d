"""etcd's members, by its JSON gateway (`rpc.proto`: Cluster.MemberList, MemberAdd, MemberRemove)."""

from __future__ import annotations

import msgspec

from primordia.drivers.store_etcd import gateway
from primordia.drivers.store_etcd.transport import Transport
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.ports.engine import EngineServer

_LIST, _ADD, _REMOVE = "/v3/cluster/member/list", "/v3/cluster/member/add", "/v3/cluster/member/remove"
_CHANGE_S = 7.0
"""etcd itself gives a change of its members up after seven seconds."""


class Member(msgspec.Struct, frozen=True):
    ID: int = 0
    name: str = ""
    peerURLs: tuple[str, ...] = ()
    clientURLs: tuple[str, ...] = ()


class MembersAnswer(msgspec.Struct, frozen=True):
    members: tuple[Member, ...] = ()


class EtcdMembers:
    """The members of the cluster that a transport reaches."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> tuple[EngineServer, ...]:
        return _servers(await self._transport.call(_LIST, b"{}", MembersAnswer, repeat=True))

    async def add(self, peer_url: str) -> tuple[EngineServer, ...]:
        body = msgspec.json.encode({"peerURLs": [peer_url]})
        return _servers(await self._transport.call(_ADD, body, MembersAnswer, repeat=False, timeout_s=_CHANGE_S))

    async def remove(self, id_: int) -> None:
        try:
            body = msgspec.json.encode({"ID": str(id_)})
            await self._transport.call(_REMOVE, body, MembersAnswer, repeat=False, timeout_s=_CHANGE_S)
        except NotFoundError:
            return

    async def answers(self, client_url: str) -> bool:
        try:
            return bool((await self._transport.call_at(client_url, gateway.STATUS, b"{}", gateway.StatusAnswer)).leader)
        except PrimordiaError:
            return False


def _servers(answer: MembersAnswer) -> tuple[EngineServer, ...]:
    return tuple(
        EngineServer(each.ID, each.name, next(iter(each.peerURLs), ""), next(iter(each.clientURLs), ""))
        for each in answer.members
    )
