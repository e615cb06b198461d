"""Reading a machine's memory from outside, tried on memory of this very process, whose every byte is known."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu.memory import (
    Copy,
    PrivateMemory,
    SharedMemory,
    data_extents,
    find_mapping,
    open_memory,
    own_pages,
    union,
)
from primordia.kit.errors import PermanentError

PAGE = mmap.PAGESIZE
PAGES = 600
SIZE = PAGES * PAGE


def page(seed: int) -> bytes:
    return hashlib.sha256(b"%d" % seed).digest() * (PAGE // 32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image's memory: data, a hole from page 100 to 199, data, and a hole at the end."""
    file = tmp_path / "base"
    with file.open("wb") as content:
        for number in (*range(100), *range(200, 500)):
            content.seek(number * PAGE)
            content.write(page(number))
        content.truncate(SIZE)
    file.chmod(0o444)
    return file


@pytest.fixture
def fork(base: Path) -> Iterator[mmap.mmap]:
    """The same, mapped as a fork maps it."""
    with base.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    yield mapped
    mapped.close()


def address(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def copied(memory: PrivateMemory | SharedMemory, file: Path) -> tuple[bytes, int, int]:
    copy = Copy(memory, file, SIZE)
    copy.first()
    again = copy.again()
    data = copy.finish()
    copy.close()
    memory.close()
    return file.read_bytes(), again, data


def put(mapped: mmap.mmap, number: int, content: bytes) -> None:
    mapped[number * PAGE : number * PAGE + len(content)] = content


def test_a_forks_image_has_what_it_wrote_over_what_it_only_read(base: Path, fork: mmap.mmap, tmp_path: Path) -> None:
    for number in (0, 7, 8, 9, 150, 299, 550, PAGES - 1):
        put(fork, number, page(1000 + number))
    put(fork, 20, b"one byte is enough")
    put(fork, 30, bytes(PAGE))
    put(fork, 40, page(40))
    assert fork[50 * PAGE] == page(50)[0]
    assert fork[120 * PAGE] == 0
    put(fork, 60, page(1060))
    fork.madvise(mmap.MADV_DONTNEED, 60 * PAGE, PAGE)
    truth = bytes(fork)

    content, again, data = copied(PrivateMemory(os.getpid(), address(fork), SIZE, base), tmp_path / "image")

    assert content == truth
    assert content[60 * PAGE : 61 * PAGE] == page(60)
    assert again == 11 * PAGE
    with base.open("rb") as file:  # a tmpfs fills holes that are read
        kept = sum(end - start for start, end in data_extents(file.fileno(), SIZE))
    assert data == min(SIZE, kept + 3 * PAGE)
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o444


def test_many_random_forks_of_forks(base: Path, tmp_path: Path) -> None:
    chance = random.Random(4)
    for generation in range(6):
        with base.open("rb") as file, mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE) as fork:
            for _ in range(chance.randrange(80)):
                put(fork, chance.randrange(PAGES), chance.choice([page(chance.random().__hash__()), bytes(PAGE), b"x"]))
            memory = open_memory(os.getpid(), SIZE, base.stat().st_ino)
            assert isinstance(memory, PrivateMemory)
            made = tmp_path / f"image{generation}"
            content, _, _ = copied(memory, made)
            assert content == bytes(fork)
        base = made


def test_what_changes_between_the_copies_is_in_the_image(base: Path, fork: mmap.mmap, tmp_path: Path) -> None:
    put(fork, 3, page(1))
    put(fork, 4, page(1))
    memory = PrivateMemory(os.getpid(), address(fork), SIZE, base)
    copy = Copy(memory, tmp_path / "image", SIZE)
    copy.first()
    put(fork, 3, page(2))
    put(fork, 5, page(2))
    fork.madvise(mmap.MADV_DONTNEED, 4 * PAGE, PAGE)
    copy.again()
    copy.close()
    memory.close()
    assert (tmp_path / "image").read_bytes() == bytes(fork)


def test_a_booted_machines_image_is_its_memfd_and_stays_sparse(tmp_path: Path) -> None:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, SIZE)
    with mmap.mmap(descriptor, SIZE) as guest:
        put(guest, 0, page(0))
        for number in range(200, 300):
            put(guest, number, page(number))
        memory = SharedMemory(Path(f"/proc/self/fd/{descriptor}"), SIZE)
        copy = Copy(memory, tmp_path / "image", SIZE)
        copy.first()
        put(guest, 250, page(9999))
        put(guest, 400, page(400))
        assert copy.again() == 102 * PAGE
        assert copy.finish() == 102 * PAGE
        copy.close()
        memory.close()
        assert [end - start for start, end in data_extents(descriptor, SIZE)] == [PAGE, 100 * PAGE, PAGE]
        assert (tmp_path / "image").read_bytes() == bytes(guest)
    os.close(descriptor)


def test_memory_that_was_given_back_is_copied_as_nothing(tmp_path: Path) -> None:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, SIZE)
    with mmap.mmap(descriptor, SIZE) as guest:
        put(guest, 5, page(5))
        memory = SharedMemory(Path(f"/proc/self/fd/{descriptor}"), SIZE)
        copy = Copy(memory, tmp_path / "image", SIZE)
        copy.first()
        guest.madvise(mmap.MADV_REMOVE, 5 * PAGE, PAGE)
        copy.again()
        copy.close()
        memory.close()
    os.close(descriptor)
    assert (tmp_path / "image").read_bytes() == bytes(SIZE)


def test_a_guest_that_takes_its_memfd_away_hurts_nobody(tmp_path: Path) -> None:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, SIZE)
    os.pwrite(descriptor, page(1), 0)
    memory = SharedMemory(Path(f"/proc/self/fd/{descriptor}"), SIZE)
    copy = Copy(memory, tmp_path / "image", SIZE)
    copy.first()
    os.ftruncate(descriptor, 0)
    with pytest.raises(OSError, match="Bad address"):
        copy.again()
    copy.close()
    memory.close()
    os.close(descriptor)


def test_a_copy_that_is_stopped_ends(base: Path, fork: mmap.mmap, tmp_path: Path) -> None:
    put(fork, 3, page(1))
    memory = PrivateMemory(os.getpid(), address(fork), SIZE, base)
    copy = Copy(memory, tmp_path / "image", SIZE)
    copy.stop()
    with pytest.raises(InterruptedError):
        copy.first()
    copy.close()
    memory.close()


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, SIZE)
    (tmp_path / "image").write_text("mine")
    memory = SharedMemory(Path(f"/proc/self/fd/{descriptor}"), SIZE)
    with pytest.raises(FileExistsError):
        Copy(memory, tmp_path / "image", SIZE).first()
    memory.close()
    os.close(descriptor)
    assert (tmp_path / "image").read_text() == "mine"


MAPS = """\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 111                        /usr/bin/qemu
7f0000000000-7f0004000000 rw-p 00000000 fe:00 777                        /srv/image/memory (deleted)
7f0004000000-7f0008000000 rw-p 04000000 fe:00 777                        /srv/image/memory (deleted)
7f1000000000-7f1008000000 rw-s 00000000 00:01 2045                       /memfd:memory-backend-memfd (deleted)
7f2000000000-7f2008000000 rw-p 00000000 00:00 0
"""


def test_guest_memory_is_found_even_in_pieces() -> None:
    fork = find_mapping(MAPS, 128 << 20, 777)
    assert (fork.address, fork.entry) == (0x7F0000000000, "7f0000000000-7f0004000000")
    booted = find_mapping(MAPS, 128 << 20, 0)
    assert (booted.address, booted.entry) == (0x7F1000000000, "7f1000000000-7f1008000000")


@pytest.mark.parametrize(("size", "inode"), [(192 << 20, 777), (192 << 20, 0), (4096, 778)])
def test_memory_that_is_not_all_there_is_refused(size: int, inode: int) -> None:
    with pytest.raises(PermanentError):
        find_mapping(MAPS, size, inode)


def test_own_pages_are_those_written_or_swapped_out() -> None:
    present, swapped, of_file = 1 << 63, 1 << 62, 1 << 61
    entries = [0, present, present | 5, present | of_file, swapped | 7, of_file, present]
    packed = b"".join(entry.to_bytes(8, "little") for entry in entries)
    assert own_pages(packed) == [(PAGE, 3 * PAGE), (4 * PAGE, 5 * PAGE), (6 * PAGE, 7 * PAGE)]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [([], [], []), ([(0, 2)], [(2, 4)], [(0, 4)]), ([(0, 9)], [(2, 4)], [(0, 9)]), ([(5, 6)], [(1, 2)], [(1, 2), (5, 6)])],
)
def test_a_union_has_everything_once(first: list, second: list, both: list) -> None:
    assert union(first, second) == both
