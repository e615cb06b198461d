"""Memory is kept while somebody wants it to be, and given back after the last."""

from __future__ import annotations

import threading

import pytest

from primordia.kit import heap

_KEPT, _USUAL = 64 << 20, 128 << 10


class Allocator:
    """What is asked of the C library."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int] | str] = []

    def mallopt(self, option: int, value: int) -> int:
        self.asked.append((option, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.asked.append("trim")
        return 1


def test_it_is_kept_until_the_last_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator()
    monkeypatch.setattr(heap, "_libc", allocator)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with heap.kept():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with heap.kept():
        assert allocator.asked == [(-1, _KEPT), (-3, _KEPT // 2)]
        thread.start()
        assert inside.wait(30)
    assert len(allocator.asked) == 2, "the other one is still there"
    leave.set()
    thread.join()
    assert allocator.asked[2:] == [(-1, _USUAL), (-3, _USUAL), "trim"]


def test_the_real_one_takes_it_and_another_library_need_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(heap._libc, "mallopt"):
        assert heap._libc.mallopt(-1, _USUAL) == 1
        assert heap._libc.mallopt(-3, _KEPT // 2) == 1
        assert heap._libc.mallopt(-3, _USUAL) == 1
    with heap.kept():
        assert bytearray(1 << 20) == bytes(1 << 20)
    monkeypatch.setattr(heap, "_libc", object())
    with heap.kept():
        assert heap._users == 1
    assert heap._users == 0
