"""The power of one node of a local soup: off as a machine goes off, and on again as one boots.

A killed process is no power cut: the kernel says goodbye to whoever it talked to, and keeps what was never flushed. So the
wire is cut first, everything of the node dies at once, and its pool goes on from a picture of the medium that was taken while
it was still mounted. What lies in memory only is gone with it: the run folder and the network.
"""

from __future__ import annotations

import asyncio
import shutil
import time

from primordia.drivers.volumes_btrfs import pool
from primordia.host import namespaces
from primordia.host.soup import SoupFile, netns_name
from primordia.host.up import spawn_supervisor
from primordia.kit import cgroup, command, files, netns
from primordia.kit.errors import ConflictError, TemporaryError
from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.supervisor.main import PID_FILE

_PATIENCE_S = 30.0
_PAUSE_S = 0.02
PICTURE = "pool.picture"


async def cut_power(soup: SoupFile, node: str) -> None:
    """Take the power from one node. What its pool was not told to keep is lost; nobody hears a word of it.

    Returns once nothing of it runs and its pool is unmounted. Harmless when it is off.
    """
    here = SoupPaths.of(soup.name).node(node)
    await _pull_the_wire(soup, node)
    await asyncio.to_thread(cgroup.kill_tree, _cgroup(soup, node))
    await _lose_what_was_not_flushed(here)
    await asyncio.to_thread(shutil.rmtree, here.run, True)
    if namespaces.exists(netns_name(soup.name, node)):
        await command.run(["ip", "netns", "delete", netns_name(soup.name, node)], timeout_s=20)


async def restore_power(soup: SoupFile, node: str) -> None:
    """Let it boot; returns when its supervisor has taken its place. Harmless when it is on.

    Raises TemporaryError when it does not start.
    """
    here = SoupPaths.of(soup.name).node(node)
    if running_pid(here.run / PID_FILE):
        return
    known = [(each.name, each.index) for each in soup.nodes]
    on = [each for each in known if each[0] == node or namespaces.exists(netns_name(soup.name, each[0]))]
    await namespaces.ensure(soup.name, on, pod_cidr=soup.pod_cidr)
    here.run.mkdir(parents=True, exist_ok=True, mode=0o711)
    process = spawn_supervisor(here)
    deadline = time.monotonic() + _PATIENCE_S
    while not running_pid(here.run / PID_FILE):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TemporaryError(f"The supervisor of {node} does not start.", remedy=f"See {here.state}/log/supervisor.log.")
        await asyncio.sleep(_PAUSE_S)
    process.returncode = 0  # it is nobody's child from here on


def _cgroup(soup: SoupFile, node: str) -> str:
    return f"primordia/{soup.name}/{node}"


async def _pull_the_wire(soup: SoupFile, node: str) -> None:
    """Before anything dies: else its kernel would close connections for it."""
    index = next(each.index for each in soup.nodes if each.name == node)
    argv = ["ip", "link", "set", f"port{index}", "down"]
    await command.run(netns.argv_in(netns_name(soup.name, namespaces.SWITCH), argv), check=False, timeout_s=20)


async def _lose_what_was_not_flushed(here: NodePaths) -> None:
    """Put a picture of the medium in the place of the pool's file, taken before the unmount, which would write everything."""
    if not any(each.point == here.volumes.resolve() for each in pool.mounted_pools()):
        return
    picture = here.pool_file.with_name(PICTURE)
    picture.unlink(missing_ok=True)
    await asyncio.to_thread(files.clone_file, here.pool_file, picture)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            await pool.unmount_pool(here.volumes)
            break
        except ConflictError:  # what has just died lets go of its files a moment later
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_PAUSE_S)
    picture.replace(here.pool_file)
