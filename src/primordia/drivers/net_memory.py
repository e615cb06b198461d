"""The network port in memory, for simulated nodes and tests of what stands above it: nothing is carried, all is remembered.

Its TAP is one end of a socket pair, so that, as with a real one, it is in use for as long as somebody holds the descriptor.
"""

from __future__ import annotations

import socket

from primordia.domain.addresses import mac_of
from primordia.kit.errors import NotFoundError, TemporaryError
from primordia.kit.ids import short_hash
from primordia.ports.network import NetworkState, PublicationFault, Tap


class MemoryNetwork:
    """Remembers the last state. `taken_ports` are those that somebody else on the host listens on; `led` says to which
    address each TAP led at last."""

    GATEWAY = "169.254.1.1"
    GATEWAY_MAC = "02:00:00:00:00:01"

    def __init__(self) -> None:
        self.taken_ports: set[int] = set()
        self.state = NetworkState()
        self.applied = 0
        self.led: dict[str, str] = {}
        self._taps: dict[str, socket.socket] = {}
        self._started = False

    async def start(self) -> None:
        self._started = True

    async def open_tap(self, uid: str, address: str = "", mac: str = "") -> Tap:
        self._check()
        name = "t" + short_hash(uid, 10)
        if self.is_held(uid):
            raise TemporaryError(f"TAP {name} is in use.", remedy="It goes when its holder ends.", reason="TapInUse")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._taps[uid] = ours
        self.led.pop(uid, None)
        if address:
            await self.attach_tap(uid, address, mac)
        return Tap(theirs.detach(), name)

    async def attach_tap(self, uid: str, address: str, mac: str) -> None:
        self._check()
        if mac != mac_of(address):
            raise ValueError(f"{mac} is not the MAC of {address}")
        if not self.is_held(uid):
            raise NotFoundError(f"There is no TAP t{short_hash(uid, 10)}: its microVM has ended.")
        self.led[uid] = address

    async def apply(self, state: NetworkState) -> tuple[PublicationFault, ...]:
        self._check()
        self.state = state
        self.applied += 1
        return tuple(
            PublicationFault(one, f"Port {one.port} is taken on the host.")
            for one in state.publications
            if one.port in self.taken_ports
        )

    async def close(self) -> None:
        self._started = False

    def is_held(self, uid: str) -> bool:
        """Whether somebody holds the context's TAP."""
        tap = self._taps.get(uid)
        if tap is None:
            return False
        try:
            held = tap.recv(1) != b""
        except BlockingIOError:
            held = True
        if not held:
            self._taps.pop(uid).close()
        return held

    def allows(self, source: str, destination: str) -> bool:
        """Whether `source` may open connections to `destination`, both addresses of contexts."""
        group_of = {one.address: one.group for one in self.state.endpoints}
        if source in group_of and group_of[source] == group_of.get(destination):
            return True
        return any(flow.destination == destination and source in flow.sources for flow in self.state.flows)

    def _check(self) -> None:
        if not self._started:
            raise TemporaryError("The node's network is not started.", reason="NetworkNotStarted")
