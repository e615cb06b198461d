"""Health for those without a certificate: alive, and ready to serve."""

from __future__ import annotations

import asyncio

from aiohttp import web

from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.ports.store import Store

PATHS = ("/healthz", "/livez", "/readyz")
_KEPT_S = 1.0
_TIMEOUT_S = 3.0


class Health:
    """Ready is who reaches the store. The verdict is kept for a second, so that asking costs the store nothing."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._verdict = ""
        self._until_s = float("-inf")

    async def answer(self, path: str) -> web.Response:
        """`ok`, or 503 with a sentence."""
        problem = "" if path == "/livez" else await self._problem()
        if problem:
            return web.Response(status=503, text=problem + "\n")
        return web.Response(text="ok")

    async def _problem(self) -> str:
        if self._clock.boottime() >= self._until_s:
            self._verdict = await self._probe()
            self._until_s = self._clock.boottime() + _KEPT_S
        return self._verdict

    async def _probe(self) -> str:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._store.get("/primordia/health")
        except TimeoutError:
            return f"The store did not answer within {_TIMEOUT_S:g} s."
        except PrimordiaError as error:
            return str(error)
        return ""
