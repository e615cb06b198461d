"""`up` and `down` of a soup on this machine.

Both are a list of steps, each of which looks first and does only what is missing, so that either may be killed at any
instant and be run again. `soup.json` is written before anything is made and removed after all is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from primordia import __version__
from primordia.domain.timings import Timings
from primordia.host import accelerator, credentials, namespaces, own_network, pool, systemd, toolchain
from primordia.host.answering import all_known, answers, last_words
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape, check_same, plan_nodes, with_shares
from primordia.host.soup import (
    API_PORT,
    SoupFile,
    SoupNode,
    free_slot,
    node_config,
    reach,
    read_config,
    read_soup,
    write_config,
    write_soup,
)
from primordia.host.stopping import stop_nodes
from primordia.kit import cgroup, ids
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError, PrimordiaError, TemporaryError
from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths, SoupPaths, cache_dir
from primordia.node.facts import LinuxHost
from primordia.supervisor.main import PID_FILE
from primordia.wire.nodeconfig import NodeConfig, Tools

SUPERVISOR_WITHIN_S = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class UpOptions:
    """What to bring up. `client_config` is written for `owner` (uid, gid), the person who will use it.

    Without `plain_templates` lifeforms boot instead of starting as forks: for who wants to measure boots. `timings` are
    those of `domain/timings.py` that shall differ; none of them leaves a soup with those that it has.
    """

    soup: str = "default"
    shape: Shape = field(default_factory=Shape)
    pod_cidr: str = "10.128.0.0/9"
    client_config: Path | None = None
    owner: tuple[int, int] = (0, 0)
    plain_templates: bool = True
    pool: PoolWish = field(default_factory=PoolWish)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class UpResult:
    """A soup that answers. `seconds` is how long each step took, in order."""

    soup: SoupFile
    servers: tuple[str, ...]
    client_config: Path
    seconds: tuple[tuple[str, float], ...]


def require_root() -> None:
    """Everything here makes namespaces, cgroups and devices."""
    if os.geteuid() != 0:
        raise PermanentError("Only root can bring a soup up or down.", remedy="Run the same command with sudo.")


@contextlib.asynccontextmanager
async def soup_lock(paths: SoupPaths) -> AsyncIterator[None]:
    """One `up` or `down` of a soup at a time; the next one waits for the one before."""
    paths.state.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    with (paths.state.parent / f".{paths.state.name}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        yield


async def up(options: UpOptions, progress: Progress, announce: Progress = lambda _: None) -> UpResult:
    """Bring a soup up, or finish bringing it up; harmless when it is up. Raises PrimordiaError naming step and cause.

    `announce` is told what will be downloaded, before it is; it is not called when nothing will be.
    """
    require_root()
    paths = SoupPaths.of(options.soup)
    seconds: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        progress(name)
        begun = time.monotonic()
        yield
        seconds.append((name, time.monotonic() - begun))

    async with soup_lock(paths):
        _check_shape(options.shape, paths)
        check_timings(options.timings, paths)
        cache = cache_dir()
        if downloads := toolchain.announcement(await toolchain.plan(cache), cache):
            announce(downloads)
        with step("unpack QEMU, kernel and engine"):
            tools = await toolchain.ensure(cache, progress)
        with step("choose the accelerator"):
            await accelerator.decide(cache, tools)
        with step("make identities and certificates"):
            soup = _identity(options, paths)
            credentials.ensure(soup, paths)
        if not soup.real:
            with step("build namespaces and links"):
                await namespaces.ensure(soup.name, [(node.name, node.index) for node in soup.nodes], pod_cidr=soup.pod_cidr)
        with step("make and mount the pools"):
            pools = await pool.ensure(soup, paths, options.pool, announce)
        with step("start the nodes"):
            await asyncio.gather(*(_start_node(soup, node, paths, cache, tools, pools[node.name]) for node in soup.nodes))
        config_path = options.client_config or credentials.default_client_config(options.owner)
        servers = tuple(f"https://{reach(soup, node)}:{API_PORT}" for node in soup.nodes)
        if not soup.joined:
            credentials.write_client_config(soup, paths, servers, config_path, options.owner)
        with step("wait until every node answers"):
            await asyncio.gather(*(answers(soup, node, paths) for node in soup.nodes))
        if not soup.joined:
            with step("wait until every node is Ready"):
                late = await all_known(config_path, [node.name for node in soup.nodes])
            if late:
                announce(f"Not Ready yet: {', '.join(late)}; `primordia node ls` shows when.")
    return UpResult(soup, servers, config_path, tuple(seconds))


def _check_shape(shape: Shape, paths: SoupPaths) -> None:
    """Before anything is fetched or made. Raises InvalidError."""
    known = read_soup(paths)
    if known is not None:
        check_same(shape, known)
    else:
        plan_nodes(shape)


def check_timings(wanted: dict[str, float], paths: SoupPaths) -> None:
    """Raises InvalidError: they are unsafe, or other ones for nodes that run."""
    Timings.of(wanted)
    known = read_soup(paths)
    if wanted and known is not None and known.phase == "up" and known.timings != wanted:
        raise InvalidError(
            "spec.timings",
            f"soup {known.name} is up with other timings, and all its nodes must change theirs together.",
            remedy=f"Take it down first: `primordia down --soup {known.name}`.",
        )


def _planned_nodes(shape: Shape, paths: SoupPaths) -> tuple[SoupNode, ...]:
    machine = LinuxHost()
    paths.state.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    disk_bytes, _ = machine.disk(paths.state.parent)
    return with_shares(plan_nodes(shape), machine.memory_total(), disk_bytes)


@contextlib.contextmanager
def _slots_lock(paths: SoupPaths) -> Iterator[None]:
    """Two new soups must not choose the same slot. Held for a moment only."""
    with (paths.state.parent / ".loopback-slots").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _identity(options: UpOptions, paths: SoupPaths) -> SoupFile:
    known = read_soup(paths)
    if known is not None:
        if known.phase != "up":
            known = msgspec.structs.replace(known, phase="up", timings=options.timings or known.timings)
            write_soup(paths, known)
        return known
    with _slots_lock(paths):
        soup = SoupFile(
            name=options.soup,
            uid=ids.new_uid(),
            slot=free_slot(paths.state.parent),
            pod_cidr=options.pod_cidr,
            nodes=_planned_nodes(options.shape, paths),
            created_by_version=__version__,
            plain_templates=options.plain_templates,
            timings=options.timings,
        )
        write_soup(paths, soup)
    return soup


async def _start_node(
    soup: SoupFile, node: SoupNode, paths: SoupPaths, cache: Path, tools: Tools, place: tuple[str, str]
) -> None:
    """Write the node's settings and start its supervisor unless it runs; returns when it has taken its place."""
    here = paths.node(node.name)
    here.logs.mkdir(parents=True, exist_ok=True)
    here.run.mkdir(parents=True, exist_ok=True, mode=0o711)
    settings = _settings(soup, node, paths, cache, tools)
    write_config(here.config, msgspec.structs.replace(settings, pool=place[0], pool_reason=place[1]))
    if running_pid(here.run / PID_FILE):
        return
    if node.address:
        systemd.link(paths, here.config)
    if node.address and systemd.usable(paths):
        await systemd.start(soup.name)
        process = None
    else:
        process = spawn_supervisor(here)
    try:
        await _has_its_place(node, here, process)
    except BaseException:
        if process is not None:
            process.kill()  # before it has its place, whoever takes the soup down does not find it
        raise
    if process is not None:
        process.returncode = 0  # it is nobody's child from here on


async def _has_its_place(node: SoupNode, here: NodePaths, process: subprocess.Popen[bytes] | None) -> None:
    deadline = time.monotonic() + SUPERVISOR_WITHIN_S
    while not running_pid(here.run / PID_FILE):
        if (process is not None and process.poll() is not None) or time.monotonic() > deadline:
            raise TemporaryError(
                f"The supervisor of node {node.name} does not start. {last_words(here.logs / 'supervisor.log')}",
                remedy=f"Look at {here.logs / 'supervisor.log'}, then run `primordia up` again.",
            )
        await asyncio.sleep(0.01)


def _settings(soup: SoupFile, node: SoupNode, paths: SoupPaths, cache: Path, tools: Tools) -> NodeConfig:
    """A local soup's follow from its identity. A real machine keeps what it was told when it joined, or since."""
    if not node.address:
        return node_config(soup, node, paths, cache, tools)
    known = read_config(paths.node(node.name).config)
    return msgspec.structs.replace(known, cache_dir=str(cache), tools=tools, timings=soup.timings or known.timings)


def spawn_supervisor(here: NodePaths) -> subprocess.Popen[bytes]:
    """A process of its own session, running this very code; it outlives us."""
    with (here.logs / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "primordia.supervisor", str(here.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            start_new_session=True,
        )


async def down(
    name: str,
    progress: Progress,
    *,
    destroy: bool = False,
    client_config: Path | None = None,
    owner: tuple[int, int] = (0, 0),
) -> None:
    """End everything of a soup that runs; its state stays unless `destroy`. Harmless when it is down.

    Raises NotFoundError when this machine has no such soup.
    """
    require_root()
    paths = SoupPaths.of(name)
    async with soup_lock(paths):
        soup = _damaged_or_known(paths, destroy)
        if soup is None:
            _end_strays(name, destroy)
            return
        if soup.real and systemd.usable(paths):
            await systemd.forget(name)
        # The engine of other machines goes on: there, a server of this one's hands over before it ends.
        await stop_nodes([paths.node(node.name) for node in soup.nodes], progress, engine=soup.real or not destroy)
        for node in soup.nodes:
            cgroup.kill_tree(f"primordia/{name}/{node.name}")
        if not soup.real:
            cgroup.remove_tree(f"primordia/{name}")
            progress("remove namespaces and links")
            await namespaces.remove(name)
        else:
            cgroup.remove_if_empty(f"primordia/{name}")
            await own_network.clear(soup.pod_cidr)
        for node in soup.nodes:
            await pool.unmount(paths.node(node.name))
        shutil.rmtree(paths.run, ignore_errors=True)
        if destroy:
            progress("delete state")
            credentials.forget_client_config(soup, client_config, owner)
            _delete_state(paths)
        else:
            write_soup(paths, msgspec.structs.replace(soup, phase="down"))


def _end_strays(name: str, destroy: bool) -> None:
    """What still runs, or has a cgroup, of a soup whose identity is gone. NotFoundError where there is nothing of it."""
    group = f"primordia/{name}"
    if not (destroy and cgroup.exists(group)):
        raise NotFoundError(f"There is no soup {name!r} on this machine.", remedy="Start one with `primordia up`.")
    cgroup.kill_tree(group)


def _damaged_or_known(paths: SoupPaths, destroy: bool) -> SoupFile | None:
    """The soup; with `destroy` also one whose identity file is damaged, known by its folders alone."""
    try:
        return read_soup(paths)
    except PrimordiaError:
        if not destroy:
            raise
    nodes = tuple(
        SoupNode(name=folder.name, index=0, rack="", segment="", engine=False)
        for folder in sorted((paths.state / "nodes").glob("*"))
    )
    return SoupFile(name=paths.state.name, uid="", slot=0, pod_cidr="", nodes=nodes, created_by_version="")


def _delete_state(paths: SoupPaths) -> None:
    """The identity goes last, so that an interrupted deletion can be taken up again."""
    for entry in sorted(paths.state.iterdir()):
        if entry.name == "soup.json":
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.rmtree(paths.state)
