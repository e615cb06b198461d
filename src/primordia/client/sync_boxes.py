"""Boxes for code that is not asynchronous: the twins of `boxes.py`. Callbacks are called in the client's own thread."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from primordia.client.box_files import Files
from primordia.client.boxes import Box
from primordia.client.twins import Loop, call, iterate


class SyncFiles:
    """The files of a box."""

    def __init__(self, files: Files, loop: Loop) -> None:
        self.asynchronous = files
        self.loop = loop

    write = call(Files.write)
    read = call(Files.read)
    read_text = call(Files.read_text)
    list = call(Files.list)
    make_folder = call(Files.make_folder)
    remove = call(Files.remove)


class SyncBox:
    """A box or fork. Used with `with`, it is killed at the end of the block."""

    def __init__(self, box: Box, loop: Loop) -> None:
        self.asynchronous = box
        self.loop = loop
        self.name = box.name
        self.namespace = box.namespace
        self.uid = box.uid
        self.warm = box.warm
        self.confirmed_ms = box.confirmed_ms
        self.files = SyncFiles(box.files, loop)

    def __repr__(self) -> str:
        return repr(self.asynchronous)

    def __enter__(self) -> SyncBox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def fork(self, count: int = 1, **options: Any) -> list[SyncBox]:
        """Its children: see `Box.fork`. Those of a ForkError become twins with `SyncBox(child, box.loop)`."""
        return forked(self.loop, self.asynchronous.fork(count, **options))

    context = call(Box.context)
    kill = call(Box.kill)
    run = call(Box.run)
    run_code = call(Box.run_code)
    stream = iterate(Box.stream)


def forked(loop: Loop, fork: Coroutine[Any, Any, list[Box]]) -> list[SyncBox]:
    """What a fork gives, for code that is not asynchronous. Raises ForkError."""
    return [SyncBox(each, loop) for each in loop.run(fork)]
