"""The bytes of a delta between nodes: a golden stream, any cut of it into pieces, and strangers who send something else."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from primordia.domain import ranges as spans
from primordia.domain.ranges import Range
from primordia.domain.snapshots import Delta, Manifest
from primordia.kit.errors import InvalidError
from primordia.ports.volumes import PIECE_BYTES
from primordia.wire.deltas import LARGEST_HEADER, LARGEST_PIECE, DeltaReader, DeltaWriter, Header, Part

RANGES = (Range(4096, 4096), Range(65536, 8192))
MANIFEST = Manifest("vol", 3, 7, "ab" * 32, 1 << 20, 1732406400.0, RANGES, "cd" * 32)
DELTA = Delta(MANIFEST, "ab" * 32, RANGES)
NOISE = random.Random(1).randbytes(4096)
PARTS = (Part(RANGES[0], NOISE), Part(Range(65536, 4096), b""), Part(Range(69632, 4096), b"text" * 1024))

GOLDEN_HEADER = (
    b'{"delta":{"manifest":{"volume":"vol","epoch":3,"number":7,"parent":"' + b"ab" * 32 + b'","size_bytes":1048576,'
    b'"time_s":1732406400.0,"changed":[[4096,4096],[65536,8192]],"root":"' + b"cd" * 32 + b'","checkpoint":""},'
    b'"base":"' + b"ab" * 32 + b'","ranges":[[4096,4096],[65536,8192]]},"begin":0}'
)


def stream(parts: tuple[Part, ...] = PARTS, delta: Delta = DELTA, begin: int = 0) -> bytes:
    writer = DeltaWriter()
    return b"".join((writer.header(delta, begin), *(writer.part(each) for each in parts), writer.end()))


def read(data: bytes) -> tuple[Header | None, tuple[Part, ...]]:
    reader = DeltaReader()
    parts = tuple(reader.feed(data))
    reader.close()
    return reader.header, parts


def framed(*frames: bytes) -> bytes:
    """A stream with frames of our own, its hash right."""
    whole = DeltaWriter().header(DELTA) + b"".join(frames) + b"\xff"
    return whole + blake3(whole).digest()


def frame(kind: int, offset: int, length: int, payload: bytes = b"", packed: int | None = None) -> bytes:
    return struct.pack("<BQII", kind, offset, length, len(payload) if packed is None else packed) + payload


def test_the_bytes_are_these() -> None:
    small = zstandard.ZstdCompressor(level=1).compress(PARTS[2].data)
    expected = b"primdlt1" + struct.pack("<I", len(GOLDEN_HEADER)) + GOLDEN_HEADER
    expected += frame(1, 4096, 4096, NOISE) + frame(0, 65536, 4096) + frame(2, 69632, 4096, small) + b"\xff"
    assert stream() == expected + blake3(expected).digest()
    assert LARGEST_PIECE == PIECE_BYTES


def test_what_does_not_shrink_is_tried_now_and_then() -> None:
    size = 64 << 10
    noise, text = random.Random(2).randbytes(size), b"text" * (size // 4)
    data = [noise] * 20 + [text] * 12
    parts = tuple(Part(Range(number * size, size), each) for number, each in enumerate(data))
    whole = (Range(0, len(data) * size),)
    manifest = Manifest("vol", 3, 7, "", len(data) * size, 1.0, whole, "cd" * 32)
    sent = stream(parts, Delta(manifest, "", whole))
    assert read(sent)[1] == parts
    writer = DeltaWriter()
    kinds = [writer.part(each)[0] for each in parts]
    assert kinds[:20] == [1] * 20
    assert 5 <= kinds[20:].count(2) < 12, "some are left out, and what shrinks again is found"
    assert kinds[-5:] == [2] * 5


@given(st.lists(st.integers(1, 200), max_size=400))
def test_it_may_come_in_any_pieces(sizes: list[int]) -> None:
    data, reader, parts = stream(), DeltaReader(), []
    for size in [*sizes, len(data)]:
        parts += reader.feed(data[:size])
        data = data[size:]
    reader.close()
    assert reader.header == Header(DELTA)
    assert tuple(parts) == PARTS


def test_it_may_begin_in_its_middle() -> None:
    left = spans.skip(RANGES, 8192)
    assert left == (Range(69632, 4096),)
    header, parts = read(stream((PARTS[2],), begin=8192))
    assert header == Header(DELTA, 8192)
    assert parts == (PARTS[2],)
    assert read(stream((), begin=12288))[1] == ()
    for begin in (-1, 12289):
        with pytest.raises(InvalidError):
            read(stream((), begin=begin))


@pytest.mark.parametrize("keep", range(0, len(stream()), 37))
def test_what_is_cut_short_is_never_whole(keep: int) -> None:
    with pytest.raises(InvalidError):
        read(stream()[:keep])


@given(st.integers(0, len(stream()) * 8 - 1))
def test_no_flipped_bit_goes_unseen(bit: int) -> None:
    damaged = bytearray(stream())
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidError):
        read(bytes(damaged))


@given(st.binary(max_size=600))
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, DeltaWriter().header(DELTA) + noise):
        with pytest.raises(InvalidError):
            read(data)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((frame(0, 65536, 8192), frame(0, 4096, 4096)), id="out of order"),
        pytest.param((frame(0, 4096, 4096), frame(0, 4096, 4096)), id="twice"),
        pytest.param((frame(0, 4096, 8192), frame(0, 65536, 8192)), id="too long"),
        pytest.param((frame(0, 4096, 4096),), id="too little"),
        pytest.param((frame(0, 4096, 0), frame(0, 4096, 4096), frame(0, 65536, 8192)), id="an empty part"),
        pytest.param((frame(0, 2**64 - 4096, 4096),), id="beyond the disk"),
        pytest.param((frame(1, 4096, 4096, bytes(100)),), id="less than announced"),
        pytest.param((frame(3, 4096, 4096, bytes(4096)),), id="of an unknown kind"),
        pytest.param((frame(2, 4096, 4096, b"no zstd at all"),), id="not compressed"),
        pytest.param((frame(1, 4096, 2**32 - 1, packed=2**32 - 1),), id="a huge frame"),
        pytest.param((frame(0, 4096, 4096), frame(0, 65536, 8192), frame(0, 80000, 1)), id="more than announced"),
    ],
)
def test_frames_that_do_not_fit(frames: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidError):
        read(framed(*frames))


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(512 << 20))
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(4096))
    tracemalloc.start()
    try:
        for payload in (bomb[:4000], silent):
            with pytest.raises(InvalidError):
                read(framed(frame(2, 4096, 4096, payload)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "delta",
    [
        Delta(MANIFEST, "ab" * 32, (Range(65536, 8192), Range(4096, 4096))),
        Delta(MANIFEST, "ab" * 32, (Range(4096, 4096), Range(8000, 4096))),
        Delta(MANIFEST, "ab" * 32, (Range(0, 2 << 20),)),
        Delta(MANIFEST, "ab" * 32, (Range(-4096, 4096),)),
        Delta(MANIFEST, "../../etc", RANGES),
        Delta(Manifest("../vol", 3, 7, "", 1 << 20, 0, (), "cd" * 32), "", RANGES),
        Delta(Manifest("vol", 3, 7, "", 1 << 60, 0, (), "cd" * 32), "", RANGES),
        Delta(Manifest("vol", 3, 0, "", 1 << 20, 0, (), "cd" * 32), "", RANGES),
        Delta(Manifest("vol", 3, 7, "", 1 << 20, 0, (), "cd"), "", RANGES),
    ],
)
def test_headers_that_cannot_be(delta: Delta) -> None:
    with pytest.raises(InvalidError):
        tuple(DeltaReader().feed(DeltaWriter().header(delta)))


def test_a_header_without_end() -> None:
    with pytest.raises(InvalidError):
        tuple(DeltaReader().feed(b"primdlt1" + struct.pack("<I", LARGEST_HEADER + 1)))
    with pytest.raises(InvalidError):
        read(stream() + b"x")
