"""Guests for tests: the real agent served inside namespaces of this host, and a small root made of busybox.

The hosted agent is the same program as in a microVM, built with the sanitizers; only the kernel is the host's. So the
whole contract runs in seconds, and a memory error in the agent fails a test. It needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from primordia.drivers.guest_channel import ChannelGuest, connect
from primordia.host.agent_build import find_sources
from primordia.kit import cgroup
from primordia.kit.command import run
from primordia.kit.ids import suffix
from primordia.kit.netns import call_in
from primordia.ports.guest import GuestConfig, GuestIdentity

DEADLINE_S = 120

T = TypeVar("T")

_PASSWD = "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:Worker:/home/worker:/bin/sh\n"
_GROUP = "root:x:0:\nworker:x:1000:\nextra:x:2000:worker\n"
_FOLDERS = ("bin", "dev", "etc", "home/worker", "proc", "root", "run", "sys", "tmp", "usr/local/bin", "data")


async def make_root(folder: Path) -> Path:
    """A root folder with busybox and all its applets, users and groups."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("these tests need busybox-static")
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, folder / "bin/busybox")
    for applet in (await run([busybox, "--list"])).text().split():
        if applet != "busybox":
            (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc/passwd").write_text(_PASSWD)
    (folder / "etc/group").write_text(_GROUP)
    os.chown(folder / "home/worker", 1000, 1000)
    return folder


async def make_disk(image: Path, size_mib: int, root: Path | None = None) -> Path:
    """An ext4 disk image, empty or with the content of a folder."""
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    content = ["-d", str(root)] if root is not None else []
    await run(["mke2fs", "-q", "-F", "-t", "ext4", *content, str(image)], timeout_s=120)
    return image


async def build_sanitized_agent(folder: Path) -> Path:
    """The agent under the address and undefined-behaviour sanitizers."""
    name = folder / "primordia-agent-sanitized"
    await run(["make", "-C", str(find_sources()), f"BUILD={folder}", str(name)], timeout_s=300)
    return name


def basic_identity(**changes: object) -> GuestIdentity:
    """An identity as a node would send it, without a network card."""
    return GuestIdentity(**{**_basic(), **changes})  # type: ignore[arg-type]


def basic_config(**changes: object) -> GuestConfig:
    """The same with the drives' names, for a cold boot."""
    return GuestConfig(**{**_basic(), "root": "root", "scratch": "scratch", **changes})  # type: ignore[arg-type]


def _basic() -> dict[str, object]:
    return {
        "hostname": "shop-redis",
        "machine_id": "0123456789abcdef0123456789abcdef",
        "wall_ns": 1_800_000_000 * 10**9,
        "entropy": os.urandom(64),
    }


class HostedGuests:
    """A running hosted agent; each `connect` is a host that opens the port, and the newest wins."""

    def __init__(self, path: Path, log: Path, pid: int) -> None:
        self.path = path
        self.log = log
        self._pid = pid
        self._opened: list[ChannelGuest] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The raw channel."""
        return await asyncio.open_unix_connection(str(self.path))

    async def connect(self) -> ChannelGuest:
        """A greeted connection, closed at the end of the test."""
        guest = await connect(*await self.open(), timeout_s=60)
        self._opened.append(guest)
        return guest

    @contextlib.contextmanager
    def network(self) -> Iterator[int]:
        """A descriptor of the guest's network namespace."""
        child = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()[0]
        descriptor = os.open(f"/proc/{child}/ns/net", os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def inside(self, function: Callable[[], T]) -> T:
        """The result of `function` called in the guest's network."""
        with self.network() as descriptor:
            return call_in(descriptor, function)

    async def close(self) -> None:
        """Close every connection."""
        for guest in self._opened:
            await guest.close()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def hosted_agent(agent: Path, root: Path, run_dir: Path) -> AsyncIterator[HostedGuests]:
    """Serve `agent` inside new namespaces with `root` as its root. Fails when a sanitizer complained."""
    path, log = run_dir / "agent.sock", run_dir / "agent.log"
    group = f"primordia-test-guest-{suffix(8)}"
    unified = cgroup.hierarchies().unified
    assert unified is not None, "the agent freezes by cgroup v2"
    cgroup.make(group)
    with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as output, _opened(unified / group) as descriptor:
        listener.bind(str(path))
        listener.listen(8)
        process = await asyncio.create_subprocess_exec(
            # should the test's process be killed, the kernel kills the guest
            *[
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--net",
                "--uts",
                "--ipc",
                "--kill-child=KILL",
                "--",
            ],
            *[str(agent), "serve", str(listener.fileno()), str(root), str(descriptor)],
            pass_fds=(listener.fileno(), descriptor),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
        )
    guests = HostedGuests(path, log, process.pid)
    try:
        yield guests
    finally:
        await guests.close()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        cgroup.kill_tree(group)
        path.unlink(missing_ok=True)
    words = log.read_text(errors="replace")
    if "ERROR: " in words or "runtime error" in words:
        raise AssertionError(f"the agent was caught by a sanitizer:\n{words}")


@pytest.fixture(scope="session")
def sanitized_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent built for tests, once."""
    return asyncio.run(build_sanitized_agent(tmp_path_factory.mktemp("agent")))


@pytest.fixture
async def guests(sanitized_agent: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostedGuests]:
    """A fresh hosted guest, not configured yet."""
    folder = tmp_path_factory.mktemp("g")
    root = await make_root(folder / "root")
    async with hosted_agent(sanitized_agent, root, folder) as guests:
        yield guests


@pytest.fixture
async def deadline() -> AsyncIterator[None]:
    """Cancels a test that hangs, whose own task a timeout in a fixture would not reach."""

    def ring() -> None:
        for task in asyncio.all_tasks():
            task.cancel("the test did not end in time")

    alarm = asyncio.get_running_loop().call_later(DEADLINE_S, ring)
    yield
    alarm.cancel()
