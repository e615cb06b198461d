"""The frame codec: golden frames that the C side checks too, and hostile bytes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primordia.wire.guest_frames import (
    FRAME_MAX,
    HEADER_SIZE,
    OPEN_MAX,
    PAYLOAD_MAX,
    VERSION,
    Decoder,
    Frame,
    FrameError,
    FrameType,
    GuestState,
    encode,
    encode_params,
    find_ack,
    greeting,
    open_frames,
    parse_params,
)

GOLDEN = sorted((Path(__file__).parents[3] / "guest/golden").glob("*.hex"))
NONCE = bytes(range(16))

frames = st.builds(
    Frame,
    type=st.sampled_from(FrameType),
    stream=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=300),
    flags=st.integers(0, 255),
)


def golden(path: Path) -> tuple[Frame, bytes]:
    fields = dict(line.split(" ", 1) for line in path.read_text().splitlines() if " " in line and not line.startswith("#"))
    frame = Frame(
        FrameType(int(fields["type"])), int(fields["stream"]), bytes.fromhex(fields.get("payload", "")), int(fields["flags"])
    )
    return frame, bytes.fromhex(fields["frame"])


def test_there_is_a_golden_frame_of_every_type() -> None:
    assert {golden(path)[0].type for path in GOLDEN} == set(FrameType)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_frames(path: Path) -> None:
    frame, data = golden(path)
    assert encode(frame) == data
    assert list(Decoder().feed(data)) == [frame]


@given(st.lists(frames, max_size=8), st.lists(st.integers(1, 700), max_size=20))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode(frame) for frame in sent)
    decoder, at = Decoder(), 0
    received: list[Frame] = []
    for cut in [*cuts, len(data)]:
        received += decoder.feed(data[at : at + cut])
        at += cut
    assert received == sent


@given(st.binary(max_size=2000))
def test_random_bytes_are_frames_or_an_error(data: bytes) -> None:
    decoder = Decoder()
    try:
        for frame in decoder.feed(data):
            assert len(frame.payload) <= PAYLOAD_MAX
    except FrameError as error:
        assert str(error)


@given(frames, st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_is_never_delivered(frame: Frame, place: int, bit: int) -> None:
    data = bytearray(encode(frame))
    data[place % len(data)] ^= 1 << bit
    with contextlib.suppress(FrameError):
        assert list(Decoder().feed(bytes(data))) == []  # a longer length waits for more bytes


def test_a_decoder_holds_at_most_one_frame() -> None:
    decoder = Decoder()
    data = encode(Frame(FrameType.DATA, 1, bytes(PAYLOAD_MAX)))
    for _ in range(50):
        assert len(list(decoder.feed(data))) == 1
        assert len(decoder._data) < FRAME_MAX


def test_too_long_frames_are_not_made_and_not_taken() -> None:
    with pytest.raises(ValueError, match="longer"):
        encode(Frame(FrameType.DATA, 1, bytes(PAYLOAD_MAX + 1)))
    with pytest.raises(FrameError, match="announces 32769"):
        list(Decoder().feed(b"\x08\x00\x01\x80" + bytes(8)))
    with pytest.raises(FrameError, match="unknown type 99"):
        list(Decoder().feed(b"\x63\x00\x01\x00" + bytes(8)))


def test_a_greeting_spoils_any_half_frame() -> None:
    half = encode(Frame(FrameType.DATA, 1, os.urandom(PAYLOAD_MAX)))
    for cut in (1, HEADER_SIZE - 1, HEADER_SIZE, 1000, len(half) - 1):
        with pytest.raises(FrameError):
            list(Decoder().feed(half[:cut] + greeting(NONCE)))


def ack(nonce: bytes = NONCE, **fields: object) -> bytes:
    payload = nonce + (1).to_bytes(4, "little") + bytes(16) + (3).to_bytes(4, "little")
    return encode(Frame(FrameType.HELLO_ACK, payload=payload, **fields))  # type: ignore[arg-type]


@given(st.binary(max_size=200), st.integers(0, 300))
def test_the_answer_is_found_behind_old_bytes(junk: bytes, cut: int) -> None:
    data = junk + ack(os.urandom(16)) + NONCE + ack()[:40] + ack() + b"rest"
    found, used = find_ack(data[:cut], NONCE)
    rest = data[used:cut] + data[cut:]
    if found is None:
        found, used = find_ack(rest, NONCE)
        rest = rest[used:]
    assert found is not None
    assert (found.version, found.state) == (1, GuestState.CONFIGURED | GuestState.MAIN_RUNNING)
    assert rest == b"rest"


def test_an_answer_of_the_wrong_shape_is_no_answer() -> None:
    broken = bytearray(ack())
    broken[-1] ^= 1
    for data in (bytes(broken), ack(stream=1), ack(flags=1), ack(os.urandom(16)), NONCE * 10):
        assert find_ack(data, NONCE)[0] is None


@given(
    st.lists(
        st.tuples(st.text("abc_", min_size=1), st.text(st.characters(codec="utf-8", exclude_characters="\0"))), max_size=20
    )
)
def test_parameters_survive(pairs: list[tuple[str, str]]) -> None:
    expected: dict[str, str] = {}
    for key, value in pairs:
        expected.setdefault(key, value)
    assert parse_params(encode_params(pairs)) == expected


@pytest.mark.parametrize("payload", [b"a=b", b"ab\0", b"=b\0", b"a=b\0\0", b"a=b\0" * 300])
def test_malformed_parameters(payload: bytes) -> None:
    with pytest.raises(FrameError):
        parse_params(payload)


def test_nul_and_too_much_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="env contains a NUL"):
        encode_params([("env", "A=\0")])
    with pytest.raises(ValueError, match="longer"):
        list(open_frames(1, bytes(OPEN_MAX + 1)))


def test_long_parameters_go_in_several_frames() -> None:
    params = os.urandom(100_000)
    sent = list(open_frames(7, params))
    assert b"".join(frame.payload for frame in sent) == params
    assert [frame.flags for frame in sent] == [0x80, 0x80, 0x80, 0]
    assert [frame.flags for frame in open_frames(7, b"")] == [0]


def test_the_golden_greeting_says_how_far_the_guest_is() -> None:
    path = next(path for path in GOLDEN if path.stem == "hello_ack")
    found, used = find_ack(golden(path)[1], NONCE)
    assert found is not None
    assert used == len(golden(path)[1])
    wanted = GuestState.PREPARED | GuestState.CONFIGURED | GuestState.MAIN_RUNNING | GuestState.FROZEN
    assert (found.version, found.state) == (VERSION, wanted)
