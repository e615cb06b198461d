"""The engine-members port: which servers the store consists of, and changing that. The body is etcd's (drivers/store_etcd)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EngineServer:
    """One server as the engine knows it. `name` and `client_url` are empty until it has started for the first time."""

    id: int
    name: str
    peer_url: str
    client_url: str = ""


class EngineMembers(Protocol):
    """All methods raise StoreUnavailableError."""

    async def list(self) -> tuple[EngineServer, ...]:
        """The servers that count for the majority, started or not."""

    async def add(self, peer_url: str) -> tuple[EngineServer, ...]:
        """Add a server and give all of them. From then on it counts, whether it runs or not. PermanentError when refused."""

    async def remove(self, id_: int) -> None:
        """Remove a server; one that is gone is no error."""

    async def answers(self, client_url: str) -> bool:
        """Whether that server answers and knows a leader. Never raises."""
