"""The real agent, under the sanitizers, keeps the contract inside namespaces of this host."""

from __future__ import annotations

import asyncio

import pytest
from guest_contract import DEADLINE_S, GuestContract, OpenGuest, run

from primordia.ports.guest import Program
from primordia.testing.guest import HostedGuests, basic_config, deadline, guests, sanitized_agent

__all__ = ["deadline", "guests", "sanitized_agent"]

pytestmark = pytest.mark.usefixtures("deadline")


class TestHostedGuest(GuestContract):
    @pytest.fixture
    def open_guest(self, guests: HostedGuests) -> OpenGuest:
        return guests.connect


@pytest.mark.parametrize("marked", [False, True])
async def test_only_an_interpreter_that_is_alone_rehearses(guests: HostedGuests, marked: bool) -> None:
    """The file by which an interpreter says that it is alone is anybody's to make: the agent looks for itself."""
    guest = await guests.connect()
    await guest.configure(basic_config())
    script = "mkdir -p /run/primordia; : > /run/primordia/alone" if marked else "true"
    assert (await run(guest, "sh", "-c", script))[2].code == 0
    session = await guest.exec(Program(("cat",)), stdin=True)
    await guest.freeze()
    await guest.rehearse()
    await session.write(b"one\n")
    answer = asyncio.ensure_future(anext(session.output()))
    await asyncio.sleep(0.2)
    assert not answer.done()
    await guest.thaw()
    async with asyncio.timeout(DEADLINE_S):
        assert await answer == ("stdout", b"one\n")
    await session.end_input()
    assert (await session.wait()).code == 0
