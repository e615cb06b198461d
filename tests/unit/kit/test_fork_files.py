"""Copies and hashes of sparse files."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from primordia.kit.files import clone_file, content_hash

KI = 1024
spans = st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=9)), max_size=6)


def write(path: Path, size: int, pieces: list[tuple[int, bytes]]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces:
            file.seek(at * 7 * KI)
            file.write(data)


@given(spans)
def test_a_clone_is_the_same_with_its_holes(tmp_path_factory: object, pieces: list[tuple[int, bytes]]) -> None:
    folder = tmp_path_factory.mktemp("clone")  # type: ignore[attr-defined]
    source, target, filled = folder / "source", folder / "target", folder / "filled"
    write(source, 512 * KI, pieces)
    clone_file(source, target)
    filled.write_bytes(source.read_bytes())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    assert content_hash(source) == content_hash(target) == content_hash(filled)


def test_every_bit_and_the_size_are_in_the_hash(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, 300 * KI, [(20, b"abc")])
    before = content_hash(file)
    for change in ([(20, b"abd")], [(21, b"abc")], [(20, b"abc"), (40, b"\1")]):
        write(file, 300 * KI, change)
        assert content_hash(file) != before
    write(file, 301 * KI, [(20, b"abc")])
    assert content_hash(file) != before


def test_a_hole_costs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 1 << 40)
    clone_file(file, tmp_path / "other")
    assert content_hash(tmp_path / "other") == content_hash(file)
