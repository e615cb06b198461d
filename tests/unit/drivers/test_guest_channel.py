"""The channel against guests that break the rules: scripted agents on a socket pair."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primordia.drivers.guest_channel import ChannelGuest, connect
from primordia.drivers.guest_channel.calls import boot_id, confirmed_items, shown
from primordia.drivers.guest_channel.pace import (
    CALL_S,
    FRAMES_BURST,
    FRAMES_PER_S,
    YIELDING_BURST,
    YIELDING_BYTES_PER_S,
    Crowd,
    Pace,
)
from primordia.drivers.guest_channel.rehearsing import rehearse_interpreter
from primordia.ports.guest import ByteStream, ExitStatus, GuestError, GuestGoneError, GuestIdentity, Program
from primordia.wire.guest_frames import (
    GUEST_STREAMS_MAX,
    PAYLOAD_MAX,
    WINDOW,
    Decoder,
    Frame,
    FrameType,
    encode,
    encode_params,
    parse_params,
)

DEADLINE_S = 60
_HELLO_SIZE = 48


class ScriptedAgent:
    """The guest's end of the channel: reads frames, sends whatever a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    async def greeted(self, *, version: int = 2, before: bytes = b"", behind: bytes = b"") -> None:
        """Take the greeting and answer it."""
        data = await self.reader.readexactly(32781 + _HELLO_SIZE)
        payload = data[-16:] + version.to_bytes(4, "little") + bytes(16) + bytes(4)
        self.writer.write(before + encode(Frame(FrameType.HELLO_ACK, payload=payload)) + behind)

    async def next(self) -> Frame:
        """The next frame of the host."""
        while not self._frames:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def send(self, *frames: Frame) -> None:
        self.writer.write(b"".join(encode(frame) for frame in frames))


@pytest.fixture
async def agent() -> AsyncIterator[ScriptedAgent]:
    ours, theirs = socket.socketpair()
    agent = ScriptedAgent(*await asyncio.open_unix_connection(sock=theirs))
    agent.host = await asyncio.open_unix_connection(sock=ours)  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE_S):
        yield agent
    for writer in (agent.writer, agent.host[1]):  # type: ignore[attr-defined]
        writer.transport.abort()


async def greet(agent: ScriptedAgent, **how: object) -> ChannelGuest:
    answer = asyncio.create_task(agent.greeted(**how))  # type: ignore[arg-type]
    guest = await connect(*agent.host, timeout_s=DEADLINE_S, name="test")  # type: ignore[attr-defined]
    await answer
    return guest


@pytest.fixture
async def guest(agent: ScriptedAgent) -> AsyncIterator[ChannelGuest]:
    guest = await greet(agent)
    yield guest
    await guest.close()


async def reason(guest: ChannelGuest) -> str:
    """Why the connection ended."""
    await guest.closed()
    with pytest.raises(GuestGoneError) as caught:
        await guest.ping()
    return str(caught.value)


async def test_the_greeting_skips_old_bytes_and_keeps_new_ones(agent: ScriptedAgent) -> None:
    opening = encode(Frame(FrameType.OPEN, 2, encode_params([("kind", "api")])))
    guest = await greet(agent, before=os.urandom(100_000), behind=opening)
    assert (await agent.next()).type is FrameType.REFUSED
    await guest.close()


async def test_another_version_is_refused(agent: ScriptedAgent) -> None:
    with pytest.raises(GuestGoneError, match="version 9"):
        await greet(agent, version=9)


async def test_a_silent_agent_is_given_up(agent: ScriptedAgent) -> None:
    with pytest.raises(GuestGoneError, match=r"did not answer within 0\.05 s"):
        await connect(*agent.host, timeout_s=0.05)  # type: ignore[attr-defined]


async def test_a_closing_agent_is_noticed(agent: ScriptedAgent) -> None:
    agent.writer.transport.abort()
    with pytest.raises(GuestGoneError, match=r"closed|broke"):
        await connect(*agent.host, timeout_s=DEADLINE_S)  # type: ignore[attr-defined]


def hostile_frames() -> Iterator[tuple[str, bytes, str]]:
    """Names, bytes of the guest, and a word of the sentence that ends the connection."""
    yield "random", b"\xff" * 500, "unknown type|announces"
    yield "zeros", bytes(500), "unknown type 0"
    yield "bad crc", encode(Frame(FrameType.PONG, payload=bytes(8)))[:-1] + b"\1", "checksum"
    yield "too long", b"\x08\x00\xff\xff" + bytes(8), "announces"
    yield "never opened", encode(Frame(FrameType.DATA, 11, b"x")), "not open"
    yield "stream 0", encode(Frame(FrameType.EOF, 0)), "not open"
    yield "ping", encode(Frame(FrameType.PING, payload=bytes(8))), "PING"
    yield "hello", encode(Frame(FrameType.HELLO, 0, bytes(36))), "HELLO"
    yield "odd open", encode(Frame(FrameType.OPEN, 7, b"kind=api\0")), "cannot open stream 7"
    yield "more", encode(Frame(FrameType.OPEN, 2, b"kind=api\0", 0x80)), "cannot open stream 2"
    yield "falling", encode(Frame(FrameType.OPEN, 4, b"")) + encode(Frame(FrameType.OPEN, 2, b"")), "cannot open stream 2"
    yield "bad parameters", encode(Frame(FrameType.OPEN, 2, b"kind")), "NUL"
    many = range(2, 2 * GUEST_STREAMS_MAX + 4, 2)
    yield "many streams", b"".join(encode(Frame(FrameType.OPEN, n, b"kind=held\0")) for n in many), "more than 64"


@pytest.mark.parametrize(
    ("name", "data", "words"), list(hostile_frames()), ids=lambda value: value if isinstance(value, str) else ""
)
async def test_hostile_frames_end_the_connection(
    agent: ScriptedAgent, guest: ChannelGuest, name: str, data: bytes, words: str
) -> None:
    async def hold(_: ByteStream) -> None:
        await asyncio.Event().wait()

    guest.on_stream("held", hold)
    agent.writer.write(data)
    sentence = await reason(guest)
    assert "broke the protocol" in sentence
    assert any(word in sentence for word in words.split("|")), (name, sentence)


async def test_data_beyond_the_window_ends_the_connection(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    session = asyncio.create_task(guest.exec(Program(("flood",)), stdin=False))
    stream = (await agent.next()).stream
    agent.send(Frame(FrameType.OPENED, stream))
    await session
    for _ in range(WINDOW // PAYLOAD_MAX):
        agent.send(Frame(FrameType.DATA, stream, bytes(PAYLOAD_MAX), 1))
    assert await pinged(agent, guest)
    agent.send(Frame(FrameType.DATA, stream, b"x", 1))
    assert "more" in await reason(guest)


async def pinged(agent: ScriptedAgent, guest: ChannelGuest) -> bool:
    ping = asyncio.create_task(guest.ping())
    agent.send(Frame(FrameType.PONG, payload=(await agent.next()).payload))
    return await ping >= 0


async def test_a_guest_that_reads_nothing_cannot_fill_memory(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    number = 0
    opening = []
    while not agent.host[1].is_closing() and number < 200_000:  # type: ignore[attr-defined]
        opening = [Frame(FrameType.OPEN, n, b"kind=nothing\0") for n in range(number + 2, number + 2002, 2)]
        number += 2000
        agent.send(*opening)
        await asyncio.sleep(0)
        if agent.writer.transport.get_write_buffer_size() > 2**20:
            await asyncio.sleep(0.05)
    assert "does not read" in await reason(guest)


async def test_answers_are_parsed_with_suspicion(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    answers = {
        b"phase=none\0": None,
        b"phase=elsewhere\0": "unknown phase",
        b"phase=running\0pid=-4\0": "pid=-4",
        b"phase=running\0pid=\xd9\xa1\0": "pid=",
        b"phase=ended\0code=999\0signal=0\0": "code=999",
        b"phase": "no sense",
        b"error=E\x1b[31m\0message=bad \x1b[31m" + b"x" * 5000 + b"\0": "bad \\?\\[31m",
    }
    for answer, words in answers.items():
        call = asyncio.create_task(guest.main_state())
        request = await agent.next()
        assert parse_params(request.payload) == {"kind": "main_state"}
        agent.send(Frame(FrameType.CLOSE, request.stream, answer))
        if words is None:
            assert (await call).phase == "none"
        else:
            with pytest.raises(GuestError, match=words) as caught:
                await call
            assert len(str(caught.value)) < 1000


async def test_frames_that_cross_a_close_are_ignored(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    session = asyncio.create_task(guest.exec(Program(("x",)), stdin=True))
    stream = (await agent.next()).stream
    agent.send(Frame(FrameType.OPENED, stream))
    await (await session).close()
    assert (await agent.next()).type is FrameType.CLOSE
    agent.send(Frame(FrameType.DATA, stream, b"late", 1), Frame(FrameType.CLOSE, stream, b"code=0\0signal=0\0"))
    assert await pinged(agent, guest)


async def test_writing_waits_for_credit(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    opening = asyncio.create_task(guest.exec(Program(("x",)), stdin=True))
    stream = (await agent.next()).stream
    agent.send(Frame(FrameType.OPENED, stream))
    session = await opening
    writing = asyncio.create_task(session.write(bytes(WINDOW + 10)))
    received = 0
    while received < WINDOW:
        received += len((await agent.next()).payload)
    assert await pinged(agent, guest)
    assert not writing.done()
    agent.send(Frame(FrameType.WINDOW, stream, (10).to_bytes(4, "little")))
    await writing
    assert len((await agent.next()).payload) == 10
    agent.send(Frame(FrameType.CLOSE, stream, b"code=3\0signal=0\0"))
    assert await session.wait() == ExitStatus(3)
    await session.write(b"to nobody")


async def test_everything_ends_with_the_connection(agent: ScriptedAgent, guest: ChannelGuest) -> None:
    calls = [asyncio.create_task(call) for call in (guest.wait_main(), guest.ping(), guest.sync(), guest.connect_tcp(80))]
    for _ in calls:
        await agent.next()
    agent.writer.transport.abort()
    for call in calls:
        with pytest.raises(GuestGoneError):
            await call


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_floods_of_nearly_valid_frames_never_hurt(seed: int) -> None:
    asyncio.run(flood(random.Random(seed)))


async def flood(chance: random.Random) -> None:
    ours, theirs = socket.socketpair()
    agent = ScriptedAgent(*await asyncio.open_unix_connection(sock=theirs))
    agent.host = await asyncio.open_unix_connection(sock=ours)  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE_S):
        guest = await greet(agent)
        guest.on_stream("api", echo)
        calls = [asyncio.create_task(call) for call in (guest.main_state(), guest.wait_main(), guest.ping())]
        for _ in range(30):
            kind = chance.choice(list(FrameType)[3:])
            payload = chance.choice([b"", b"kind=api\0", b"code=1\0signal=0\0", bytes(4), chance.randbytes(40)])
            agent.send(Frame(kind, chance.choice([1, 2, 3, 4, 6, 8]), payload, chance.choice([0, 1, 0x80])))
        agent.writer.write(chance.randbytes(200))
        await guest.closed()
        results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        assert not isinstance(result, BaseException) or isinstance(result, GuestError | GuestGoneError), result
    await guest.close()
    agent.writer.transport.abort()


async def echo(stream: ByteStream) -> None:
    while data := await stream.read():
        await stream.write(data)


def test_the_pace_lets_honest_traffic_pass_and_bounds_floods() -> None:
    pace, now, waited = Pace(0.0, Crowd()), 0.0, 0.0
    for _ in range(1000):  # 32 MB/s in full frames
        now += 0.001
        waited += pace.spend(1, PAYLOAD_MAX, now)
    assert waited == 0
    pace, now = Pace(0.0, Crowd()), 0.0
    for _ in range(1000):
        now += pace.spend(64, 64 * 12, now)
    assert now == pytest.approx((64_000 - FRAMES_BURST) / FRAMES_PER_S)


def test_bulk_gives_way_while_a_neighbour_is_called() -> None:
    crowd = Crowd()
    flood, neighbour = Pace(0.0, crowd), Pace(0.0, crowd)

    def slowed(now: float, *, calling: Pace | None) -> float:
        """The seconds that 16 MiB, read 64 KiB in each millisecond, are held up."""
        waited = 0.0
        for _ in range(256):
            now += 0.001
            if calling is not None:
                calling.called(now)
            waited += (wait := flood.spend(2, 65536, now))
            now += wait
        return waited

    assert slowed(10.0, calling=None) == 0
    assert slowed(20.0, calling=flood) == 0  # its own calls are its own affair
    assert slowed(30.0, calling=neighbour) > (16 * 2**20 - YIELDING_BURST) / YIELDING_BYTES_PER_S - 1
    assert slowed(50.0, calling=None) == 0  # and no debt is left


def test_a_call_is_waited_for_only_so_long_and_whoever_made_it() -> None:
    crowd = Crowd()
    flood, one, two = (Pace(0.0, crowd) for _ in range(3))
    assert not crowd.others_called(flood, 0.0)
    one.called(1.0)
    flood.called(1.01)
    assert crowd.others_called(flood, 1.02)
    assert crowd.others_called(one, 1.02)
    assert not crowd.others_called(flood, 1.0 + CALL_S)
    two.called(2.0)
    two.called(2.01)
    assert not crowd.others_called(two, 2.02)
    assert crowd.others_called(one, 2.02)


def test_what_was_confirmed_is_read_without_trust() -> None:
    answer = {"ok_clock": "3", "ok_hooks": "0", "ok_nonsense": "1", "boot_id": "4a" * 16}
    assert confirmed_items(answer) == {"clock": 3, "hooks": 0}
    assert boot_id(answer) == b"\x4a" * 16
    for text in ("", "4a", "zz" * 16, "4a" * 17, "4a" * 10_000):
        with pytest.raises(GuestError, match="boot_id"):
            boot_id({"boot_id": text})
    for text in ("", "-1", "9" * 11, "1e3", "\u0661"):
        with pytest.raises(GuestError, match="ok_clock"):
            confirmed_items({"ok_clock": text})


def test_guest_text_is_made_harmless() -> None:
    assert shown("a\x1b[0m\nb\u202e") == "a?[0m?b?"
    assert len(shown("x" * 10_000)) < 500


@pytest.mark.parametrize(("late_s", "tries"), [(0.0, 0), (0.1, 1)])
async def test_a_clock_that_was_set_too_late_is_set_again_before_anybody_is_let_go(
    agent: ScriptedAgent, guest: ChannelGuest, late_s: float, tries: int
) -> None:
    identity = GuestIdentity(hostname="box", machine_id="0" * 32, wall_ns=10**18, entropy=bytes(32))
    call = asyncio.create_task(guest.identify(identity))
    opened = await agent.next()
    assert parse_params(opened.payload)["hold"] == "1"
    await asyncio.sleep(late_s)
    answer = encode_params([("ok_clock", "5"), ("ok_network", "2000"), ("boot_id", "7" * 32)])
    agent.send(Frame(FrameType.CLOSE, opened.stream, answer))
    opened = await agent.next()
    while (params := parse_params(opened.payload))["kind"] == "clock":
        tries -= 1
        assert int(params["wall_ns"]) >= 10**18 + late_s * 10**9
        agent.send(Frame(FrameType.CLOSE, opened.stream, b""))
        opened = await agent.next()
    assert params["kind"] == "release"
    assert tries <= 0
    agent.send(Frame(FrameType.CLOSE, opened.stream, encode_params([("ok_thawed", "9"), ("ok_hooks", "0")])))
    assert await call == ("clock", "network", "thawed", "hooks")


class Answers:
    """A connection to an interpreter that says what it was told to say, in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.asked: list[bytes] = []

    async def read(self, limit: int = 65536) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    async def write(self, data: bytes) -> None:
        self.asked.append(data)

    async def end(self) -> None: ...

    async def close(self) -> None: ...


def frame_of(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


async def test_an_interpreter_is_asked_twice_to_rehearse() -> None:
    out, done = frame_of(b'{"id": 0, "stdout": "{}"}'), frame_of(b'{"id": 0, "done": true}')
    said = out + done + out + done
    stream = Answers(*(said[at : at + 7] for at in range(0, len(said), 7)))
    await rehearse_interpreter(stream)
    assert stream.asked == [frame_of(b'{"id": 0, "rehearse": true}')] * 2


@pytest.mark.parametrize(
    "said", [b"", b"\x00", b"\xff\xff\xff\xff", frame_of(b"["), frame_of(b"[" * 60000), frame_of(b"{}"), frame_of(b"[1]")]
)
async def test_what_is_no_rehearsal_is_an_error(said: bytes) -> None:
    with pytest.raises(GuestError, match="does not rehearse"):
        await rehearse_interpreter(Answers(said))
