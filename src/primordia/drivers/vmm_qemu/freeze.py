"""Taking an image of a machine: memory copied from outside, the devices' state written by QEMU, the machine unharmed.

QEMU writes the devices' state, without memory, into a memfd of ours (`xen-save-devices-state`, which is part of every
build; its stream is that of a migration without the section of memory). It costs under a millisecond.

That the two belong to each other is checked and not assumed: while the virtual CPUs stand nothing of the guest changes its
memory, but QEMU still takes what the host sends over the agent's channel and puts it there. So the state is written before
and after the copy, and both must be equal; else the copy is made again. A standing guest has only so many buffers.

What the guest is sending when its host does not read fast enough lies half in QEMU. A fork would have nobody to send it to,
and its port would be stuck for good (seen with QEMU 10.0). So a machine is let go on until its host has read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from primordia.drivers.vmm_qemu.layout import LONGEST_STATE_BYTES, Note, pack
from primordia.drivers.vmm_qemu.memory import Copy, open_memory
from primordia.drivers.vmm_qemu.qmp import Monitor
from primordia.kit.errors import CapacityError, PermanentError, PrimordiaError, TemporaryError
from primordia.ports.vmm import DEVICES, MEMORY, Frozen

_ATTEMPTS = 5
_ATTEMPTS_TO_REST = 100
_REST_S = 0.01

T = TypeVar("T")
Standing = Callable[[], contextlib.AbstractAsyncContextManager[None]]
Callback = Callable[[], Awaitable[None]]


async def take_image(
    uid: str,
    pid: int,
    note: Note,
    monitor: Monitor,
    folder: Path,
    *,
    standing: Standing,
    before: Callback | None,
    during: Callback | None,
) -> Frozen:
    """Write the image of a machine into a new folder; within `standing` its virtual CPUs stand.

    The folder is gone when it raises: what the port says, and the error of `before` or `during` as it came.
    """
    with _explained(uid):
        folder.mkdir(parents=True, mode=0o700)
    try:
        with _explained(uid):
            memory = open_memory(pid, note.layout.memory_bytes, note.base_inode)
        with contextlib.closing(memory):
            copy = Copy(memory, folder / MEMORY, note.layout.memory_bytes)
            return await _take(uid, note, copy, monitor, standing=standing, before=before, during=during)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _take(
    uid: str,
    note: Note,
    copy: Copy,
    monitor: Monitor,
    *,
    standing: Standing,
    before: Callback | None,
    during: Callback | None,
) -> Frozen:
    # A thread of its own: none of the pause may be spent waiting for one.
    with ThreadPoolExecutor(1, "freeze") as thread, contextlib.closing(copy):
        await _beside(uid, thread, copy, copy.first, None)
        async with _state_of(uid, monitor) as save:
            serial = await monitor.serial_device()
            if before is not None:
                await before()
            for _ in range(_ATTEMPTS_TO_REST):
                began = time.monotonic()
                with contextlib.suppress(_SendingError):
                    async with standing():
                        if await monitor.is_sending(serial):
                            raise _SendingError
                        state, copied = await _coherent(uid, thread, copy, save, during)
                        with _explained(uid):
                            devices = copy.file.with_name(DEVICES)
                            devices.write_bytes(pack(note.layout, state))
                            devices.chmod(0o444)
                            data = copy.finish()
                    return Frozen(time.monotonic() - began, data, copied)
                await asyncio.sleep(_REST_S)
    raise TemporaryError(f"microVM {uid} cannot be frozen: what it sends is not read.", remedy="Try again.")


class _SendingError(Exception):
    """The guest is just sending something."""


async def _coherent(
    uid: str, thread: ThreadPoolExecutor, copy: Copy, save: Callable[[], Awaitable[bytes]], during: Callback | None
) -> tuple[bytes, int]:
    """The devices' state that belongs to the memory that was copied, and the bytes copied."""
    copied = 0
    for _ in range(_ATTEMPTS):
        state = await save()
        copied += await _beside(uid, thread, copy, copy.again, during)
        during = None
        if await save() == state:
            return state, copied
    raise TemporaryError(f"microVM {uid} cannot be frozen: its channel does not come to rest.", remedy="Try again.")


async def _beside(uid: str, thread: ThreadPoolExecutor, copy: Copy, work: Callable[[], T], during: Callback | None) -> T:
    """Do the work of the copy in the thread, with `during` beside it; when this ends, so has the work."""
    working = asyncio.get_running_loop().run_in_executor(thread, work)
    try:
        if during is not None:
            await during()
        with _explained(uid):
            return await asyncio.shield(working)
    finally:
        await _settled(copy, working)


async def _settled(copy: Copy, working: asyncio.Future[T]) -> None:
    """Wait until the thread has let go of files and memory, however often this is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        copy.stop()
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    if not working.cancelled():
        working.exception()
    if cancelled is not None:
        raise cancelled


@contextlib.asynccontextmanager
async def _state_of(uid: str, monitor: Monitor) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """A function that has QEMU write the devices' state and returns it."""
    state = os.memfd_create("devices", os.MFD_CLOEXEC)
    try:
        writing = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            handed = await monitor.hand_over(writing)

            async def save() -> bytes:
                os.lseek(writing, 0, os.SEEK_SET)
                await monitor.execute("xen-save-devices-state", {"filename": f"/dev/fdset/{handed}", "live": False})
                return _read(uid, state)

            try:
                yield save
            finally:
                with contextlib.suppress(PrimordiaError):
                    await monitor.execute("remove-fd", {"fdset-id": handed})
        finally:
            os.close(writing)
    finally:
        os.close(state)


def _read(uid: str, state: int) -> bytes:
    size = os.fstat(state).st_size
    if not 0 < size <= LONGEST_STATE_BYTES:
        raise PermanentError(f"microVM {uid} cannot be frozen: QEMU wrote {size} bytes as the devices' state.")
    return os.pread(state, size, 0)


@contextlib.contextmanager
def _explained(uid: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"There is no room for the image of microVM {uid}.", remedy="Free disk space on the node."
            ) from error
        file = f" ({error.filename})" if error.filename else ""
        raise PermanentError(f"microVM {uid} cannot be frozen: {error.strerror}{file}.", reason="FreezeFailed") from error
