"""`exec logs cp`: what happens inside a context."""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import signal
import sys
import termios
import tty
from argparse import Namespace
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from primordia.cli import tarballs
from primordia.cli.output import Progress, printable
from primordia.cli.session import Inside, client, found, inside
from primordia.client.aio import AsyncClient
from primordia.client.inside import AS_MAIN, Surroundings
from primordia.client.streams import ExecSession
from primordia.kit.errors import NotFoundError, PermanentError

_CHUNK = 64 * 1024


# ---------------------------------------------------------------- exec


async def exec_(options: Namespace) -> int:
    """Run a command in a context; its exit code is ours."""
    command = [*options.words, *options.program]
    if not command:
        raise PermanentError("What is to be run?", remedy="Write: primordia exec NAME -- COMMAND")
    target = inside(options.target, options.context)
    async with client(options) as soup:
        target = await found(soup, target, options.namespace)
        return await attach(soup, target, command, stdin=options.stdin, terminal=options.tty, namespace=options.namespace)


async def attach(
    soup: AsyncClient,
    target: Inside,
    command: list[str],
    *,
    stdin: bool,
    terminal: bool,
    namespace: str = "",
    surroundings: Surroundings = AS_MAIN,
) -> int:
    """Run a command with our own streams, raw when it gets a terminal; gives its exit code."""
    if terminal and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PermanentError("--tty needs a terminal, and here is none.", remedy="Leave out -t.")
    place = target.arguments(namespace)
    async with soup.exec_session(
        target.name, command, stdin=stdin, tty=terminal, surroundings=surroundings, **place
    ) as session:
        with _raw() if terminal and stdin else contextlib.nullcontext():
            if terminal:
                await _follow_size(session)
            await _carry(session, stdin=stdin)
        result = await session.result()
    if result.error:
        print(f"error: {result.error}", file=sys.stderr)
    return result.code


async def _carry(session: ExecSession, *, stdin: bool) -> None:
    """Both directions, until the command has ended."""
    feeder = asyncio.create_task(_feed(session), name="exec/stdin") if stdin else None
    try:
        async for stream, data in session.output():
            _emit(sys.stdout if stream == "stdout" else sys.stderr, data)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
        if feeder is not None:
            feeder.cancel()
            await asyncio.wait([feeder])


def _emit(stream: Any, data: bytes) -> None:
    stream.buffer.write(data)
    stream.buffer.flush()


async def _feed(session: ExecSession) -> None:
    async for data in _standard_input():
        await session.write(data)
    await session.end_input()


async def _standard_input() -> AsyncIterator[bytes]:
    """Our standard input as it comes. Files cannot be waited for by epoll and need not be."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    ready = asyncio.Event()
    while True:
        with contextlib.suppress(PermissionError):
            ready.clear()
            loop.add_reader(descriptor, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(descriptor)
        data = os.read(descriptor, _CHUNK)
        if not data:
            return
        yield data


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """The terminal hands on every key, and is put back whatever happens."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _follow_size(session: ExecSession) -> None:
    """Tell the guest our terminal's size, now and whenever it changes."""
    loop = asyncio.get_running_loop()
    pending: set[asyncio.Task[None]] = set()

    def tell() -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        task = loop.create_task(session.resize(size.lines, size.columns), name="exec/resize")
        pending.add(task)
        task.add_done_callback(pending.discard)

    loop.add_signal_handler(signal.SIGWINCH, tell)
    size = os.get_terminal_size(sys.stdout.fileno())
    await session.resize(size.lines, size.columns)


# ---------------------------------------------------------------- logs


async def logs(options: Namespace) -> int:
    """What a context's program wrote."""
    target = inside(options.target, options.context)
    if options.tail is not None and options.tail < 0:
        raise PermanentError(f"--tail {options.tail} is negative.", remedy="Leave it out for all lines.")
    async with client(options) as soup:
        target = await found(soup, target, options.namespace)
        chunks = soup.logs(
            target.name,
            **target.arguments(options.namespace),
            follow=options.follow,
            tail=options.tail,
            previous=options.previous,
            timestamps=options.timestamps,
        )
        async for chunk in chunks:
            _emit(sys.stdout, chunk)
    return 0


# ---------------------------------------------------------------- cp


@dataclass(frozen=True)
class Place:
    """One end of a copy: a path, and the context it is in, if it is in one."""

    path: str
    inside: Inside | None = None


def place(text: str) -> Place:
    """`PATH`, or `NAME[/CONTEXT]:PATH`. A path with a colon is written with a folder before it (`./a:b`).

    Raises PermanentError.
    """
    before, colon, path = text.partition(":")
    if not colon or before.startswith((".", "/")) or not before:
        return Place(text)
    if not path:
        raise PermanentError(f"{text!r} names no path.", remedy="Write NAME:/path.")
    return Place(path, inside(before))


async def copy(options: Namespace) -> int:
    """Copy a file or folder into or out of a context."""
    source, target = place(options.source), place(options.target)
    if (source.inside is None) == (target.inside is None):
        raise PermanentError("One of the two must be in a context, and only one.", remedy="Write NAME:/path for it.")
    async with client(options) as soup:
        with Progress(quiet=options.quiet) as progress:
            progress(f"copy {options.source}")
            if source.inside is not None:
                await fetch(soup, source.inside, source.path, Path(target.path), options.namespace)
            elif target.inside is not None:
                await send(soup, Path(source.path), target.inside, target.path, options.namespace)
    return 0


def clean(path: str) -> str:
    """A path in a context without `.`, `..` and repeated slashes. Raises PermanentError unless it is absolute."""
    if not path.startswith("/"):
        raise PermanentError(f"The path {path!r} in a context is not absolute.", remedy=f"Write /{path}.")
    return "/" + posixpath.normpath(path).lstrip("/")


async def fetch(soup: AsyncClient, source: Inside, path: str, target: Path, namespace: str = "") -> None:
    """Copy out of a context: into `target` where that is a folder, else as `target`."""
    if target.is_dir():
        name = PurePosixPath(path).name
        target = target / name if name not in ("", ".", "..") else target
    elif not target.parent.is_dir():
        raise PermanentError(f"There is no folder {target.parent}.", remedy="Make it first.")
    source = await found(soup, source, namespace)
    chunks = soup.read_tar(source.name, clean(path), **source.arguments(namespace))
    read, write = os.pipe()
    unpacking = asyncio.create_task(asyncio.to_thread(_unpack, read, target), name="cp/unpack")
    try:
        # The archive ends before its stream does: what is left is let go of here, and not whenever it is collected.
        async with contextlib.aclosing(chunks) as stream:
            await _fill(write, stream)
    except BaseException:
        os.close(write)
        # What was unpacked ended too early; the reason for that is the error that matters.
        await asyncio.gather(unpacking, return_exceptions=True)
        raise
    os.close(write)
    await asyncio.wait([unpacking])
    if left := unpacking.result().left_out:
        names = ", ".join(map(printable, left[:3])) + (" ..." if len(left) > 3 else "")
        print(f"warning: {len(left)} links that lead out were left out: {names}", file=sys.stderr)


def _unpack(descriptor: int, target: Path) -> tarballs.Unpacked:
    with os.fdopen(descriptor, "rb") as stream:
        return tarballs.unpack(stream, target)


async def _fill(descriptor: int, chunks: AsyncIterable[bytes]) -> None:
    """Write into a pipe; who reads it may have had enough, and says why itself."""
    async for chunk in chunks:
        view = memoryview(chunk)
        while view:
            try:
                view = view[await asyncio.to_thread(os.write, descriptor, view) :]
            except BrokenPipeError:
                return


async def send(soup: AsyncClient, source: Path, target: Inside, path: str, namespace: str = "") -> None:
    """Copy into a context: into `path` where that is a folder, else as `path`."""
    if not source.exists() and not source.is_symlink():
        raise PermanentError(f"There is no {source} here.", remedy="Check the name.")
    target = await found(soup, target, namespace)
    folder, name = await _destination(soup, source, target, path, namespace)
    await soup.write_tar(target.name, folder, _packed(source, name), **target.arguments(namespace))


async def _destination(soup: AsyncClient, source: Path, target: Inside, path: str, namespace: str) -> tuple[str, str]:
    """The folder to unpack in, and the name to have there; asks the guest what `path` is by the first block of its tar."""
    name = source.resolve().name
    folder_meant = path.endswith("/")
    path = clean(path)
    if folder_meant or await _is_folder(soup, target, path, namespace):
        return path, name
    whole = PurePosixPath(path)
    if not whole.name or whole.name == "..":
        raise PermanentError(f"{path!r} names no file.", remedy="Write the path in full.")
    return str(whole.parent), whole.name


async def _is_folder(soup: AsyncClient, target: Inside, path: str, namespace: str) -> bool:
    head = b""
    chunks = soup.read_tar(target.name, path, **target.arguments(namespace))
    try:
        async with contextlib.aclosing(chunks) as stream:
            async for chunk in stream:
                head += chunk
                if len(head) >= _CHUNK:
                    break
    except NotFoundError:
        return False
    return tarballs.begins_with_folder(head)


async def _packed(source: Path, name: str) -> AsyncIterator[bytes]:
    """A tar stream made by a thread, as it is wanted."""
    read, write = os.pipe()
    packing = asyncio.create_task(asyncio.to_thread(_pack, write, source, name), name="cp/pack")
    try:
        while data := await asyncio.to_thread(os.read, read, _CHUNK):
            yield data
    except BaseException:
        os.close(read)
        await asyncio.gather(packing, return_exceptions=True)
        raise
    os.close(read)
    await packing


def _pack(descriptor: int, source: Path, name: str) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as stream:
        tarballs.pack(source, name, stream)
