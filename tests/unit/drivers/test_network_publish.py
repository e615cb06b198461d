"""A published port asks a context again whose guest was not there yet when it was asked first."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from primordia.drivers.net_linux.publish import connect

HOST = "127.0.0.1"
LONG_S = 60.0


def deaf() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that answers nobody more: its queue is full."""
    listener = socket.create_server((HOST, 0), backlog=0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.settimeout(0.2)
        fillers.append(filler)
        try:
            filler.connect(listener.getsockname())
        except TimeoutError:
            return listener, fillers
    raise AssertionError("the queue does not fill")


async def test_what_nobody_answered_is_asked_again_by_another_connection() -> None:
    listener, fillers = deaf()
    try:
        with pytest.raises(TimeoutError, match="does not answer"):
            await connect(listener.getsockname(), (0.01, 0.01))
        asking = asyncio.create_task(connect(listener.getsockname(), (0.05, LONG_S)))
        await asyncio.sleep(0.2)
        listener.settimeout(0.05)
        asked = []
        async with asyncio.timeout(LONG_S):
            while not asking.done() or asking.result().getsockname() not in asked:
                with contextlib.suppress(TimeoutError):
                    client, address = await asyncio.to_thread(listener.accept)
                    asked.append(address)
                    client.close()
        asking.result().close()
    finally:
        for each in (listener, *fillers):
            each.close()


async def test_a_refusal_is_told_at_once() -> None:
    with socket.create_server((HOST, 0)) as listener:
        place = listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        await connect(place, (LONG_S, LONG_S))
