"""A running microVM: its process, its monitor, its end.

Two tasks watch it. One follows the monitor and connects again when it is lost; when the guest has ended it reads the last
of the console and tells QEMU to quit. The other waits for the process, however it ends, clears up and gives the verdict.
Neither needs the other: a monitor that is dead or lies can delay no kill, and hide no end.

A guest's kernel that finds no timer that works, as happens on a host that is very busy, starts again before it opens the
agent's channel. So a machine that boots may reset a few times until then; from then on a reset is its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import AGENT_DEVICE, CONSOLE_BYTES, drive_options, file_options
from primordia.drivers.vmm_qemu.endings import Evidence, exit_of, panic_text, start_error
from primordia.drivers.vmm_qemu.freeze import take_image
from primordia.drivers.vmm_qemu.handover import opened_drive
from primordia.drivers.vmm_qemu.layout import drive_node, read_note
from primordia.drivers.vmm_qemu.process import Process
from primordia.drivers.vmm_qemu.qmp import Monitor
from primordia.drivers.vmm_qemu.standing import Standing
from primordia.kit import cgroup
from primordia.kit.errors import PermanentError, PrimordiaError, TemporaryError
from primordia.kit.tasks import TaskSet
from primordia.ports.vmm import Drive, Exit, Frozen, MachineIdentity

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 20.0
_RECONNECT_AFTER_S = 0.2
_LOADING_POLL_S = 0.001
_QUIT_WITHIN_S = 5.0
_DEAD_WITHIN_S = 20.0
_MOST_RESTARTS = 3
# Run states of a guest that will never run again, by the reason they mean when the event itself was missed.
_ENDED_STATES = {"shutdown": "guest-ended", "guest-panicked": "guest-panic", "internal-error": "internal-error"}


class QemuMachine:
    """A microVM started or adopted by the QEMU driver."""

    def __init__(self, uid: str, run_dir: Path, group: str, process: Process, stderr: int) -> None:
        self._uid = uid
        self._run_dir = run_dir
        self._group = group
        self._process = process
        self._stderr = stderr
        self._monitor: Monitor | None = None
        self._console = ""
        self._shutdown = ""
        self._requested = False
        self._evidence: Evidence | None = None
        self._guest_ended = asyncio.Event()
        self._booted = asyncio.Event()
        self._restarts = 0
        self._connected = asyncio.Event()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._channel: asyncio.StreamWriter | None = None
        self._tasks = TaskSet(f"microvm-{uid}")
        self._standing = Standing(uid, run_dir, self._ask, self._tasks)
        self._follower = self._tasks.start(self._follow_monitor(), name="monitor")
        self._tasks.start(self._await_end(), name="end")

    @property
    def identity(self) -> MachineIdentity:
        """Which process it is."""
        return self._process.identity

    async def open_channel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the agent's byte channel; drops the connection made here before. Raises TemporaryError.

        QEMU serves one connection at a time: one left open by another process is served first.
        """
        await self._drop_channel()
        try:
            connection = rundir.connect(self._run_dir, rundir.AGENT)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except OSError as error:
            raise TemporaryError(f"The agent's channel of microVM {self._uid} cannot be opened ({error.strerror}).") from error
        self._channel = writer
        return reader, writer

    async def pause(self) -> None:
        """Stop the virtual CPUs. Raises TemporaryError while the monitor is away, PermanentError after the guest's end."""
        async with self._standing.lock:
            await self._ask("stop")

    async def resume(self) -> None:
        """Let the virtual CPUs go on; raises as `pause`."""
        async with self._standing.lock:
            await self._ask("cont")

    async def freeze(
        self,
        folder: Path,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        during: Callable[[], Awaitable[None]] | None = None,
        go_on: bool = True,
    ) -> Frozen:
        """Write an image of it; what the port says. One at a time; `pause` and `resume` wait until it is done."""
        async with self._standing.lock:
            monitor = self._needs_monitor()
            ran = await monitor.status() == "running"
            note, pid = read_note(self._uid, self._run_dir), self.identity.pid

            def standing() -> contextlib.AbstractAsyncContextManager[None]:
                return self._standing.stopped(go_on) if ran else contextlib.nullcontext()

            return await take_image(self._uid, pid, note, monitor, folder, standing=standing, before=before, during=during)

    async def limit_cpu(self, cpu_milli: int) -> None:
        """Bind the process to so much CPU time. Raises PermanentError when it has ended or the cgroup takes no limit."""
        self._check_life()
        cgroup.limit(self._group, cgroup.Limits(cpu_milli=cpu_milli))

    async def resize_drive(self, drive: str, size_bytes: int) -> None:
        """Tell the guest its drive's size; what the port says."""
        monitor = self._needs_monitor()
        node = drive_node(self._uid, read_note(self._uid, self._run_dir).layout, drive)
        await monitor.execute("block_resize", {"node-name": node, "size": size_bytes})

    async def replace_drive(self, drive: Drive) -> None:
        """Give a drive that was never used another file; what the port says."""
        async with self._standing.lock:
            monitor = self._needs_monitor()
            node = drive_node(self._uid, read_note(self._uid, self._run_dir).layout, drive.id)
            with opened_drive(self._uid, drive) as descriptor:
                number = await monitor.hand_over(descriptor)
            below = f"file{number}"
            options = {"node-name": below, "read-only": drive.read_only, "discard": "unmap", **file_options(number)}
            await monitor.execute("blockdev-add", {**options, "cache": {"direct": False, "no-flush": not drive.durable}})
            await monitor.execute("blockdev-reopen", {"options": [drive_options(node, drive, below)]})

    async def write_again(self) -> bool:
        """Let it go on where it stands for want of room; what the port says."""
        async with self._standing.lock:
            if await self._needs_monitor().status() != "io-error":
                return False
            await self._ask("cont")
            return True

    async def kill(self) -> None:
        """End it now and wait until nothing of it is left. Raises TemporaryError when its process does not die."""
        if self._exit.done() and not self._exit.cancelled():
            return
        self._requested = True
        self._process.kill()
        cgroup.signal_kill(self._group)
        try:
            async with asyncio.timeout(_DEAD_WITHIN_S):
                # When this program's own end has cancelled the task that would clear up, clear up here.
                await (self._end() if self._exit.cancelled() else self.wait())
        except TimeoutError:
            raise TemporaryError(
                f"microVM {self._uid} (process {self.identity.pid}) was killed and does not die.",
                remedy="It waits for a disk or the kernel; try again, or reboot the machine.",
            ) from None

    async def wait(self) -> Exit:
        """Wait until it has ended and nothing of it is left. Cancelled by `release`."""
        return await asyncio.shield(self._exit)

    async def console(self) -> str:
        """The last 64 KiB of what the guest's kernel wrote since this process has known it."""
        if self._monitor is not None:
            with contextlib.suppress(PrimordiaError):
                await self._read_console(self._monitor)
        return self._console

    async def booted(self) -> None:
        """Wait until a program in the guest has opened the agent's channel; not seen by one who comes later."""
        await self._booted.wait()

    async def running(self) -> None:
        """Wait until the monitor answers: QEMU has accepted all its flags and runs.

        Raises, with what QEMU said, when it has ended instead or does neither in a minute.
        """
        connected = self._tasks.start(self._connected.wait(), name="connected")
        try:
            waits: list[asyncio.Future[Any]] = [connected, self._exit]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=START_TIMEOUT_S)
        finally:
            connected.cancel()
        if not self._connected.is_set():
            seen = self._evidence or Evidence(stderr=self.last_words())
            raise start_error(self._uid, seen.status, seen.stderr, over_memory=seen.over_memory)

    async def loaded(self) -> None:
        """Wait until a fork has the devices' state of its image. Raises PermanentError with what QEMU said."""
        await self.running()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                while True:
                    if await self._needs_monitor().status() != "inmigrate":
                        break
                    await asyncio.sleep(_LOADING_POLL_S)
        except (TimeoutError, PrimordiaError) as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if isinstance(error, TimeoutError) else _QUIT_WITHIN_S):
                    await self.wait()
            seen = self._evidence or Evidence(stderr=self.last_words())
            raise start_error(self._uid, seen.status, seen.stderr, over_memory=seen.over_memory) from error

    def last_words(self) -> str:
        """What QEMU wrote to its standard error and nobody has read yet."""
        return rundir.read_stderr(self._stderr)

    def release(self) -> None:
        """Let go of it without stopping it: its end is then for the next process to find."""
        self._tasks.cancel()
        if self._channel is not None:
            self._channel.close()
        self._let_go()

    def adopted(self) -> None:
        """It is an earlier daemon's: let it go on if it stands for a freeze that was not ended; it counts as booted."""
        self._booted.set()
        self._standing.go_on_after_death()

    def _check_life(self) -> None:
        if self._exit.done() or self._guest_ended.is_set():
            raise PermanentError(f"microVM {self._uid} has ended.", reason="Ended")

    async def _ask(self, command: str) -> None:
        await self._needs_monitor().execute(command)

    def _needs_monitor(self) -> Monitor:
        self._check_life()
        if self._monitor is None:
            raise TemporaryError(f"The monitor of microVM {self._uid} is away.", remedy="It is connected again; try again.")
        return self._monitor

    async def _drop_channel(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            channel.close()
            with contextlib.suppress(OSError):
                await channel.wait_closed()

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._ended_by(str(data.get("reason", "guest-shutdown")))
        elif name == "GUEST_PANICKED":
            self._ended_by("guest-panic")
        elif name == "RESET" and data.get("guest"):
            self._restarts += 1
            self._tasks.start(self._judge_reset(), name="reset")
        elif name == "VSERPORT_CHANGE" and data.get("id") == AGENT_DEVICE and data.get("open"):
            self._booted.set()
            self._tasks.start(self._end_at_resets(), name="booted")

    async def _judge_reset(self) -> None:
        """A kernel that panicked, one that starts again and again, and one that had started already, have ended."""
        if self._monitor is not None:
            with contextlib.suppress(PrimordiaError):
                await self._read_console(self._monitor)
        if self._booted.is_set() or self._restarts > _MOST_RESTARTS or panic_text(self._console):
            self._ended_by("guest-reset")
        else:
            log.warning("microVM %s starts again, by itself, before it was up", self._uid)

    async def _end_at_resets(self) -> None:
        if self._monitor is not None:
            with contextlib.suppress(PrimordiaError):
                await self._monitor.end_at_resets()

    def _ended_by(self, reason: str) -> None:
        """The first reason is the true one: our own `quit` raises the same event afterwards."""
        self._shutdown = self._shutdown or reason
        self._guest_ended.set()

    async def _follow_monitor(self) -> None:
        while True:
            try:
                await self._monitor_session()
            except (PrimordiaError, OSError) as error:
                log.debug("monitor of %s: %s", self._uid, error)
            except Exception:
                # Without a follower a guest's own end would never be noticed: whatever it was, try again.
                log.exception("monitor of %s", self._uid)
            await asyncio.sleep(_RECONNECT_AFTER_S)

    async def _monitor_session(self) -> None:
        monitor = await Monitor.connect(rundir.connect(self._run_dir, rundir.MONITOR), self._on_event)
        try:
            state = await monitor.status()
            if state in _ENDED_STATES:
                self._ended_by(_ENDED_STATES[state])
            if self._booted.is_set():
                await monitor.end_at_resets()
            self._monitor = monitor
            self._connected.set()
            await self._until_ended_or_lost(monitor)
            if self._guest_ended.is_set():
                await self._finish(monitor)
        finally:
            self._monitor = None
            await monitor.close()

    async def _until_ended_or_lost(self, monitor: Monitor) -> None:
        waits = [
            self._tasks.start(self._guest_ended.wait(), name="guest ended"),
            self._tasks.start(monitor.lost(), name="monitor lost"),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _finish(self, monitor: Monitor) -> None:
        """The guest has ended: keep its last words and let QEMU go, by force if it does not."""
        with contextlib.suppress(PrimordiaError):
            await self._read_console(monitor)
        with contextlib.suppress(PrimordiaError):
            await monitor.execute("quit")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIT_WITHIN_S):
                await self._process.wait()
        self._process.kill()

    async def _read_console(self, monitor: Monitor) -> None:
        self._console = (self._console + await monitor.take_console())[-CONSOLE_BYTES:]

    async def _await_end(self) -> None:
        try:
            self._exit.set_result(await self._end())
        finally:
            if not self._exit.done():
                self._exit.cancel()

    async def _end(self) -> Exit:
        """Wait for the process, clear up after it, and judge. May be begun again when it was cancelled."""
        status = await self._process.wait()
        self._follower.cancel()
        self._evidence = self._evidence or Evidence(
            requested=self._requested,
            shutdown=self._shutdown,
            status=status,
            console=self._console,
            stderr=self.last_words(),
            over_memory=cgroup.oom_kills(self._group) > 0,
        )
        await self._drop_channel()
        try:
            await asyncio.to_thread(cgroup.kill_tree, self._group)
            rundir.clear(self._run_dir)
        except (PrimordiaError, OSError) as error:
            log.error("microVM %s has ended and something of it is left: %s", self._uid, error)
        self._let_go()
        return exit_of(self._evidence)

    def _let_go(self) -> None:
        self._process.close()
        if self._stderr >= 0:
            os.close(self._stderr)
            self._stderr = -1
