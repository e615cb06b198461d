"""A limit for requests that are no streams."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def limited(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`, or TimeoutError."""
    async with asyncio.timeout(seconds):
        return await work
