"""The claims and forks of another node: its own body of the forks port, over its API's paths for nodes."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from primordia.drivers.contexts_remote.peer import Peer
from primordia.kit.errors import TemporaryError
from primordia.ports import forks as port
from primordia.wire import boxes as wire
from primordia.wire.resources import EnvVar
from primordia.wire.streams import internal_path

ANSWER_WITHIN_S = 130.0
"""More than the other node's API gives a claim or fork: its own words are the better ones."""

T = TypeVar("T")


class RemoteForks:
    """The forks port's body for one other node.

    Beside what the node itself raises, all methods raise NodeUnreachableError when it does not answer.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def claim(self, request: port.ClaimRequest) -> port.Claimed:
        """A box, its identity confirmed."""
        body = wire.ClaimRequest(
            namespace=request.namespace,
            template=request.template,
            name=request.name,
            ttl_seconds=request.ttl_s,
            labels=request.labels,
            egress=request.egress,
        )
        claimed = await self._ask(wire.INTERNAL_CLAIMS, body, wire.Claimed)
        return port.Claimed(claimed.name, claimed.uid, claimed.node, claimed.warm, claimed.confirmed_ms, claimed.context)

    async def fork(self, uid: str, request: port.ForkRequest) -> port.ForkReport:
        """Fork the running context."""
        report = await self._ask(internal_path(uid, wire.FORK), _fork_body(request), wire.ForkReport)
        children = tuple(port.ForkOutcome(**msgspec.structs.asdict(each)) for each in report.children)
        return port.ForkReport(report.pause_ms, report.copied_bytes, children)

    async def promote(self, uid: str, name: str) -> port.Promoted:
        """Make a fork a lifeform of its own."""
        promoted = await self._ask(internal_path(uid, wire.PROMOTE), wire.PromoteRequest(name=name), wire.Promoted)
        return port.Promoted(**msgspec.structs.asdict(promoted))

    async def _ask(self, path: str, body: msgspec.Struct, kind: type[T]) -> T:
        content = await self._peer.post(path, msgspec.json.encode(body), ANSWER_WITHIN_S)
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise TemporaryError(
                f"Node {self._peer.node} answered in a way that this version does not understand ({error}).",
                remedy="Compare the versions in `primordia get nodes -o wide`.",
                reason="BrokenAnswer",
            ) from error


def _fork_body(request: port.ForkRequest) -> wire.ForkRequest:
    program = request.program
    return wire.ForkRequest(
        count=request.count,
        ttl_seconds=request.ttl_s,
        lifetime="keep" if request.lifetime == "keep" else "parent",
        inherit_secrets=request.inherit_secrets,
        command=program.argv if program else (),
        env=tuple(EnvVar(name=name, value=value) for name, value in program.env) if program else (),
        working_dir=program.working_dir if program else "",
        user=program.user if program else "",
    )
