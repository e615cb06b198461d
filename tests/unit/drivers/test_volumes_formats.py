"""The btrfs body's formats and parsers, and what it makes of damage."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from primordia.domain.ranges import Range
from primordia.domain.snapshots import CHUNK_BYTES, Delta, Manifest
from primordia.drivers.volumes_btrfs import health, ioctl, journal, pool, records
from primordia.drivers.volumes_btrfs.journal import JournalWriter
from primordia.drivers.volumes_btrfs.layout import Layout
from primordia.drivers.volumes_btrfs.records import DamagedError, Record, Restoring
from primordia.drivers.volumes_btrfs.volume import Volume
from primordia.kit import files
from primordia.kit.errors import UnsupportedError
from primordia.ports.volumes import Piece

MANIFEST = Manifest("a", 1, 1, "", CHUNK_BYTES, 1.5, (Range(0, 4096), Range(8192, 4096)), "0" * 64)
MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 22 0:50 / /var/lib/primordia/a\\040b/pool rw,noatime shared:9 - btrfs /dev/loop3 rw,space_cache=v2
91 22 0:51 / /home rw - btrfs /dev/sdb1 rw
92 22 0:52 / /srv rw - btrfs /dev/loop4 rw
"""


def test_records_come_back_or_are_damaged(tmp_path: Path) -> None:
    record = Record("a", 3, 7, Restoring(2, 8))
    assert records.decode(records.encode(record), Record, tmp_path) == record
    content = records.encode(MANIFEST)
    assert records.decode(content, Manifest, tmp_path) == MANIFEST
    for at in range(len(content) - 1):
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        with pytest.raises(DamagedError):
            records.decode(flipped, Manifest, tmp_path)
    with pytest.raises(DamagedError):
        records.decode(b"", Manifest, tmp_path)


LARGE = (Range(0, 4096), Range(8192, 4096), Range(CHUNK_BYTES, 3 * CHUNK_BYTES))
NOISE = random.Random(3).randbytes(3 * CHUNK_BYTES)
PIECES = [
    Piece(LARGE[0], b"x" * 4096),
    Piece(LARGE[1], b""),
    Piece(Range(CHUNK_BYTES, CHUNK_BYTES), NOISE[:CHUNK_BYTES]),
    Piece(Range(2 * CHUNK_BYTES, 17), NOISE[CHUNK_BYTES : CHUNK_BYTES + 17]),
    Piece(Range(2 * CHUNK_BYTES + 17, CHUNK_BYTES), NOISE[CHUNK_BYTES + 17 : 2 * CHUNK_BYTES + 17]),
    Piece(Range(3 * CHUNK_BYTES + 17, CHUNK_BYTES - 17), NOISE[2 * CHUNK_BYTES + 17 :]),
]
DELTA = Delta(replace(MANIFEST, size_bytes=4 * CHUNK_BYTES, changed=LARGE), "", LARGE)


def write_journal(path: Path, pieces: Sequence[Piece] = PIECES) -> bytes:
    writer = JournalWriter(path, DELTA)
    for piece in pieces:
        writer.append(piece)
    writer.finish()
    return path.read_bytes()


def test_a_journal_comes_back_or_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = write_journal(path)
    assert journal.read_header(path) == DELTA
    assert journal.is_whole(path)
    parts = list(journal.read_parts(path))
    shared = {piece.range.offset for piece, at in parts if at >= 0}
    assert shared == {CHUNK_BYTES}, "what is large and lies in whole blocks is shared"
    for (piece, at), expected in zip(parts, PIECES, strict=True):
        assert piece.range == expected.range
        assert at % 4096 == 0 or at == -1
        data = piece.data if at < 0 else whole[at : at + piece.range.length]
        assert data == expected.data
    for at in (*range(0, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError):
            list(journal.read_parts(path))
        assert not journal.is_whole(path)
        path.write_bytes(whole[:at])
        with pytest.raises(DamagedError):
            list(journal.read_parts(path))
        assert not journal.is_whole(path)


def test_a_journal_goes_on_wherever_it_was_cut_off(tmp_path: Path) -> None:
    """It becomes the very same file."""
    path = tmp_path / "journal"
    whole = write_journal(path)
    begin = len(journal.header_of(DELTA))
    ends = [begin] + [whole.index(each.data, begin) + len(each.data) for each in PIECES if each.data]
    seen = set()
    for at in (*range(begin, len(whole) - 32, 499), *(end + more for end in ends for more in (0, 1, 13, 14))):
        path.write_bytes(whole[: min(at, len(whole) - 32)])
        done = journal.partial_of(path).bytes_done
        found: list[Piece] = []
        writer = JournalWriter(path, DELTA, found.append)
        assert found == PIECES[: len(found)]
        assert sum(each.range.length for each in found) == done
        for piece in PIECES[len(found) :]:
            writer.append(piece)
        writer.finish()
        assert path.read_bytes() == whole
        seen.add(len(found))
    assert seen == set(range(len(PIECES) + 1))
    path.write_bytes(whole[: begin - 1])
    with pytest.raises(DamagedError):
        journal.partial_of(path)


def test_a_manifest_that_is_whole_under_its_hidden_name_is_published(tmp_path: Path) -> None:
    """A power cut comes before the renaming lasts; what is not whole, or has no content or another name, was not published."""
    layout = Layout(tmp_path / "a")
    layout.make()
    files.write_atomic(layout.record, records.encode(Record("a", 1)))
    manifests = {number: replace(MANIFEST, number=number) for number in (1, 2, 3, 4, 5)}
    for number in (1, 2, 3, 4):
        layout.snapshot(number).mkdir()
        layout.disk(number).touch()
    files.write_sealed(layout.manifest(1), records.encode(manifests[1]))
    assert not files.sealed_place(layout.manifest(1)).exists()
    for number, content in (
        (2, records.encode(manifests[2])),
        (3, records.encode(manifests[3])[:-2]),
        (4, records.encode(manifests[1])),
        (5, records.encode(manifests[5])),
    ):
        files.sealed_place(layout.manifest(number)).write_bytes(content)
    volume = Volume.recover(layout)
    assert volume.manifests == (manifests[1], manifests[2])
    assert {each.name for each in (tmp_path / "a" / "manifests").iterdir()} == {f"{number:012d}" for number in (1, 2)}
    assert layout.cut() == (1, 2)


def test_a_journal_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has every piece behind its header, whatever its size."""
    path, content = tmp_path / "journal", journal.header_of(DELTA)
    for piece in PIECES:
        content += struct.pack("<QIB", *piece.range, bool(piece.data)) + piece.data
    path.write_bytes(content + blake3(content).digest())
    assert [part.piece for part in journal.read_parts(path)] == PIECES


def test_extents_of_an_answer() -> None:
    buffer = ioctl.search_request(257, 0, 10)
    assert len(buffer) > 65536
    struct.pack_into("<I", buffer, 64, 3)  # nr_items
    at = 112
    for offset, written, address in ((0, 11, 1000), (4096, 9, 1000), (8192, 12, 0)):
        struct.pack_into("<QQQII", buffer, at, 12, 257, offset, 108, 53)
        struct.pack_into("<QQBBHBQQQQ", buffer, at + 32, written, 4096, 0, 0, 0, 1, address, 4096, 0, 4096)
        at += 32 + 53
    found, last = ioctl.parse_extents(buffer, 10)
    assert found == [ioctl.Extent(0, 4096, False), ioctl.Extent(8192, 4096, True)]
    assert last == 8192
    struct.pack_into("<I", buffer, 64, 0)
    assert ioctl.parse_extents(buffer, 10) == ([], None)


def test_our_mounts_are_told_from_others() -> None:
    loops = {"/dev/loop3": "/data/s/pool.btrfs", "/dev/loop4": "/somebody/else.img"}
    (ours,) = pool.pool_mounts(MOUNTINFO, loops)
    assert ours == pool.PoolMount(Path("/var/lib/primordia/a b/pool"), "/dev/loop3", Path("/data/s/pool.btrfs"))
    assert len(pool.btrfs_mounts(MOUNTINFO)) == 3


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UnsupportedError, match="kernel"):
        pool.require_btrfs("nodev\tproc\n\text4\n", "/sbin/mkfs.btrfs")
    with pytest.raises(UnsupportedError, match="apt install btrfs-progs"):
        pool.require_btrfs("\tbtrfs\n", None)
    pool.require_btrfs("nodev\tproc\n\tbtrfs\n", "/sbin/mkfs.btrfs")


def test_device_errors_are_told() -> None:
    text = "write_errs 0\nread_errs 2\nflush_errs 0\ncorruption_errs 1\ngeneration_errs 0\n"
    assert health.device_problems("1", text) == [
        "Device 1 of the pool counted 2 read errors.",
        "Device 1 of the pool counted 1 corruption errors.",
    ]
