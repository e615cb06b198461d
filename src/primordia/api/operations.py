"""This node's daemon, for administrators: `GET /daemon/v1/status`, `POST /daemon/v1/restart`.

A restart is announced: the supervisor ends the daemon and starts the next one, which adopts every microVM. The answer comes
before the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from primordia.api.answers import document_answer
from primordia.api.auth import ADMINS, user_of
from primordia.api.errors import RequestError
from primordia.wire.operations import RESTART, STATUS, DaemonStatus


class OperationsApi:
    """Answers every path below `/daemon/v1/`. `restart` has the supervisor restart this very process; it raises
    TemporaryError."""

    def __init__(self, status: Callable[[], DaemonStatus], restart: Callable[[], Awaitable[None]]) -> None:
        self._status = status
        self._restart = restart

    async def answer(self, request: web.BaseRequest, peer: Mapping[str, Any] | None) -> web.Response:
        """The answer to one request. Raises PrimordiaError."""
        user = user_of(peer)
        if ADMINS not in user.roles:
            raise RequestError(403, f"{user.name} is no administrator, who alone may ask this.")
        if request.method == "GET" and request.path == STATUS:
            return document_answer(msgspec.to_builtins(self._status()))
        if request.method == "POST" and request.path == RESTART:
            status = self._status()
            await self._restart()
            return document_answer(msgspec.to_builtins(status))
        raise RequestError(404, f"There is nothing to {request.method} at {request.path[:200]!r}.")
