"""The monitor's connection against a QEMU that is slow, wrong, or taken over: a scripted end of a socket pair."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from primordia.drivers.vmm_qemu import qmp
from primordia.drivers.vmm_qemu.qmp import Monitor
from primordia.kit.errors import PermanentError, TemporaryError

DEADLINE_S = 30
GREETING = {"QMP": {"version": {}, "capabilities": []}}


class Script:
    """QEMU's end: hears commands, says whatever a test wants."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.unread = b""
        self.descriptors: list[int] = []

    async def say(self, *messages: Mapping[str, Any] | bytes) -> None:
        content = b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\r\n" for each in messages)
        await asyncio.get_running_loop().sock_sendall(self.end, content)

    async def hear(self) -> dict[str, Any]:
        while b"\n" not in self.unread:
            self.unread += await self._receive()
        line, self.unread = self.unread.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    async def _receive(self) -> bytes:
        while True:
            try:
                data, rights, _, _ = self.end.recvmsg(65536, 64)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            for _, _, content in rights:
                numbers = array.array("i")
                numbers.frombytes(content)
                self.descriptors += numbers
            assert data, "the monitor has closed"
            return data

    async def greet(self) -> None:
        await self.say(GREETING)
        asked = await self.hear()
        assert asked["execute"] == "qmp_capabilities"
        await self.say({"return": {}, "id": asked["id"]})


Heard = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
async def ends() -> AsyncIterator[tuple[socket.socket, Script]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    script = Script(theirs)
    async with asyncio.timeout(DEADLINE_S):
        yield ours, script
    theirs.close()
    for descriptor in script.descriptors:
        os.close(descriptor)


@pytest.fixture
async def connected(ends: tuple[socket.socket, Script]) -> AsyncIterator[tuple[Monitor, Script, Heard]]:
    heard: Heard = []
    ours, script = ends
    _, monitor = await asyncio.gather(script.greet(), Monitor.connect(ours, lambda name, data: heard.append((name, data))))
    yield monitor, script, heard
    await monitor.close()


Connected = tuple[Monitor, Script, Heard]


async def test_answers_find_whoever_asked_and_events_are_heard(connected: Connected) -> None:
    monitor, script, heard = connected
    first, second = (asyncio.create_task(monitor.execute(word, {"a": 1})) for word in ("one", "two"))
    asked = [await script.hear(), await script.hear()]
    assert [(each["execute"], each["arguments"]) for each in asked] == [("one", {"a": 1}), ("two", {"a": 1})]
    await script.say({"event": "STOP"}, {"return": 2, "id": asked[1]["id"]})
    assert await second == 2
    await script.say(b'{"event": "SHUTDOWN", "data": ', b'{"reason": "x"}}\r\n', {"return": 1, "id": asked[0]["id"]})
    assert await first == 1
    assert heard == [("STOP", {}), ("SHUTDOWN", {"reason": "x"})]


async def test_a_refusal_has_qemus_words(connected: Connected) -> None:
    monitor, script, _ = connected
    asking = asyncio.create_task(monitor.execute("cont"))
    asked = await script.hear()
    await script.say({"error": {"class": "GenericError", "desc": "Resetting the VM is required"}, "id": asked["id"]})
    with pytest.raises(PermanentError, match="refused cont: Resetting the VM is required"):
        await asking


async def test_a_file_is_handed_over(connected: Connected) -> None:
    monitor, script, _ = connected
    reading, writing = os.pipe()
    handing = asyncio.create_task(monitor.hand_over(writing))
    asked = await script.hear()
    assert asked["execute"] == "add-fd"
    await script.say({"return": {"fdset-id": 7, "fd": 30}, "id": asked["id"]})
    assert await handing == 7
    [copy] = script.descriptors
    os.write(copy, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\n",
        b"[" * 100_000 + b"\n",
        b"[1]\n",
        b'{"return": 1}\n',
        b'{"error": {"desc": 3}, "id": 2}\n',
        b"\xff\xfe\n",
        b"x" * (qmp._LONGEST_LINE + 4096),
    ],
)
async def test_what_makes_no_sense_is_a_lost_monitor(connected: Connected, said: bytes) -> None:
    monitor, script, _ = connected
    asking = asyncio.create_task(monitor.execute("query-status"))
    await script.hear()
    await script.say(said)
    with pytest.raises(TemporaryError, match="lost during query-status"):
        await asking
    await monitor.lost()
    with pytest.raises(TemporaryError):
        await monitor.execute("cont")
    with pytest.raises(TemporaryError):
        await monitor.hand_over(0)


async def test_answers_that_nobody_waits_for_are_harmless(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, script, _ = connected
    monkeypatch.setattr(qmp, "ANSWER_TIMEOUT_S", 0.05)
    with pytest.raises(TemporaryError):
        await monitor.execute("slow")
    asked = await script.hear()
    monkeypatch.setattr(qmp, "ANSWER_TIMEOUT_S", DEADLINE_S)
    await script.say({"return": {}, "id": asked["id"]}, {"return": {}, "id": 999})
    asking = asyncio.create_task(monitor.status())
    asked = await script.hear()
    await script.say({"return": {"status": "paused"}, "id": asked["id"]})
    assert await asking == "paused"


async def test_a_monitor_that_never_greets_is_given_up(
    ends: tuple[socket.socket, Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "CONNECT_TIMEOUT_S", 0.05)
    with pytest.raises(TemporaryError, match="does not answer"):
        await Monitor.connect(ends[0], lambda name, data: None)


async def test_a_monitor_that_closes_at_once_is_given_up(ends: tuple[socket.socket, Script]) -> None:
    ends[1].end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TemporaryError, match="does not answer"):
        await Monitor.connect(ends[0], lambda name, data: None)
