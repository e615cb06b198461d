"""A process that outlives us: started detached, named by pid, start time and boot id, watched by its pidfd.

Works the same for a child and for a process of an earlier daemon, except that only a parent learns the exit status. The
pidfd is opened first and the identity checked afterwards, so it can never stand for another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from primordia.kit import identity
from primordia.kit.tasks import to_the_end
from primordia.ports.vmm import MachineIdentity

_TELL = "LAUNCH_TELL"


def spawn(argv: Sequence[str], *, env: Mapping[str, str], stderr: str, inherit: Sequence[int]) -> int:
    """Start a program in a session of its own and return its pid; the program's path must be absolute.

    It gets `env` and nothing else, standard error opened from the path `stderr` without ever blocking, and the
    descriptors in `inherit` under their own numbers. Raises OSError.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, stderr, os.O_RDWR | os.O_NONBLOCK, 0),
        *((os.POSIX_SPAWN_DUP2, number, number) for number in inherit),
    ]
    return os.posix_spawn(
        argv[0], list(argv), env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGINT)
    )


async def launch(argv: Sequence[str], *, env: Mapping[str, str], stderr: str, inherit: Sequence[int]) -> int:
    """Start a program by the launcher (launch.c), as `spawn` does, and return the pid of the process that becomes it.

    Not cut off: whoever is cancelled meanwhile goes when it is known which process there is to end. Raises OSError.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        started = spawn(argv, env={**env, _TELL: str(writing)}, stderr=stderr, inherit=(*inherit, writing))
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return await to_the_end(_told(reading, started))


async def _told(reading: int, started: int) -> int:
    """Who closes it without a word is the process itself: as in an earlier version, or without a v2 cgroup to be born into."""
    loop, ready, said = asyncio.get_running_loop(), asyncio.Event(), b""
    loop.add_reader(reading, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                part = os.read(reading, 64)
                said += part
                if not part:
                    break
    finally:
        loop.remove_reader(reading)
        os.close(reading)
    if not said:
        return started
    _bury(started)
    return int(said)


def _bury(pid: int) -> None:
    """It has closed what it had open, so it is just ending."""
    os.waitpid(pid, 0)


class Process:
    """A running process. `close` lets go of it; nothing here ends it unless told to."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self._fd = os.pidfd_open(pid)
        self.identity = MachineIdentity(pid, identity.start_ticks(pid), identity.boot_id())
        self._ended: asyncio.Future[int | None] | None = None

    @classmethod
    def find(cls, wanted: MachineIdentity) -> Process | None:
        """The process of that very identity, or None when it has ended."""
        try:
            found = cls(wanted.pid)
        except ProcessLookupError:
            return None
        if found.identity == wanted and wanted.start_ticks:
            return found
        found.close()
        return None

    async def wait(self) -> int | None:
        """Wait for its end; the exit code, minus a signal's number, or None when it was not our child."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            self._ended = loop.create_future()
            loop.add_reader(self._fd, self._on_end)
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        with contextlib.suppress(ProcessLookupError, OSError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it. Waiters are left waiting: their owner cancels them."""
        if self._fd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(self._reap())

    def _reap(self) -> int | None:
        try:
            found = os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
