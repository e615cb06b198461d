"""What the reader of a flood has read, as the kernel tells it."""

from __future__ import annotations

import os
from pathlib import Path

from primordia.bench import flood


def test_bytes_written() -> None:
    assert flood.parse_written("rchar: 1\nwchar: 4711\nsyscr: 2\nread_bytes: 3\n") == 4711


def test_it_counts_what_goes_to_nowhere() -> None:
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        before = flood._read_bytes(os.getpid())
        nowhere.write(bytes(100_000))
        assert flood._read_bytes(os.getpid()) - before >= 100_000
