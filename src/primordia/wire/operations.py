"""What a node's daemon tells administrators of itself, and its restart, as they cross the API of that node."""

from __future__ import annotations

import msgspec

PREFIX = "/daemon/v1/"
STATUS = PREFIX + "status"
RESTART = PREFIX + "restart"


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`daemon` names this process and no other. `machines` are the pids of the microVMs that it holds, by NAMESPACE/NAME of
    their contexts; `waits` are the contexts that it knows to run, and whose microVM or agent it does not hold yet."""

    node: str
    daemon: str
    version: str
    settled: bool
    machines: dict[str, int] = {}
    waits: tuple[str, ...] = ()
