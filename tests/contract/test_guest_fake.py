"""The in-memory guest keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from guest_contract import GuestContract, OpenGuest, echo_handler

from primordia.drivers.guest_fake import FakeAgent
from primordia.testing.guest import basic_config


@pytest.fixture
async def agent() -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    yield agent
    await agent.close()


class TestFakeGuest(GuestContract):
    @pytest.fixture
    def open_guest(self, agent: FakeAgent) -> OpenGuest:
        return agent.connect


async def test_streams_go_both_ways(agent: FakeAgent) -> None:
    guest = await agent.connect()
    await guest.configure(basic_config())
    agent.listeners[80] = echo_handler
    guest.on_stream("api", echo_handler)
    agent.listeners["/run/echo.sock"] = echo_handler
    for stream in (await guest.connect_tcp(80), await guest.connect_unix("/run/echo.sock"), agent.open_stream("api")):
        await stream.write(b"ping")
        await stream.end()
        assert await stream.read() == b"ping"
        assert await stream.read() == b""
    with pytest.raises(ConnectionRefusedError):
        agent.open_stream("dns")


async def test_the_log_keeps_the_last_part_and_counts_the_rest(agent: FakeAgent) -> None:
    guest = await agent.connect()
    agent.write_log(b"x" * 300_000)
    chunks = guest.logs(1000)
    chunk = await anext(chunks)
    assert (chunk.offset, chunk.lost, len(chunk.data)) == (37_856, 36_856, 262_144)
    await chunks.aclose()  # type: ignore[attr-defined]
