"""What it is worth to have data beside its lifeform: one load on three disks.

Raw: a folder of this machine's disk, by a process of the host. Local: a volume in the node's pool, cut every second as volumes
are, by a guest on that node. Remote: a file in the pool of another node, served to the same guest over the soup's network.
Local and remote differ in nothing but where the disk is; all three in turns. Reads are direct: past the cache of whose kernel
asks, and not past those behind it. All nodes of a local soup have one machine's disk and processors, and no wire between them:
between real machines remote is slower than here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from primordia.bench import boot, data_load, lifeforms, remote_disk
from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Ground, Progress
from primordia.drivers import guest_channel
from primordia.drivers.filesystems import make_filesystem
from primordia.drivers.guest_channel import ChannelGuest
from primordia.drivers.images_local.local import LocalImages
from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import Accelerator, drive_name, qemu_argv
from primordia.drivers.vmm_qemu.driver import environment
from primordia.drivers.vmm_qemu.handover import opened
from primordia.drivers.vmm_qemu.tsc import host_tsc_khz
from primordia.drivers.volumes_btrfs.layout import Layout
from primordia.kit import ids, netns
from primordia.kit.command import run
from primordia.kit.errors import PrimordiaError, UnsupportedError
from primordia.kit.units import parse_bytes
from primordia.node.settings import NodeSettings
from primordia.ports.guest import GuestConfig, Mount, Program
from primordia.ports.vmm import Drive, MachineSpec
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Lifeform, Node

ROUNDS = 5
_SECONDS = 2.0
_SIZE = 128 << 20
_BOOT_S = 120.0
_DATA = 3
"""The place of the data drive among the drives."""

Samples = dict[str, dict[str, list[float]]]


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """Operations a second; the ratios are of the medians."""
    if len(ground.nodes) < 2:
        raise UnsupportedError("Another node has to serve a disk, and there is one only.", remedy="Ask for --nodes 2.")
    near, far = ground.nodes[:2]
    samples: Samples = {where: {"read": [], "fsync": []} for where in ("raw", "local", "remote")}
    async with contextlib.AsyncExitStack() as stack:
        progress("locality: prepare the image")
        async with lifeforms.running(ground.client, _python()):
            root = await boot.root_disk(ground, ground.config)
        disks = [await stack.enter_async_context(_volume(ground, node)) for node in (near, far)]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=ground.paths.state))
        served = await stack.enter_async_context(remote_disk.served(_config(ground, far), disks[1]))
        progress("locality: boot the guests")
        local = await stack.enter_async_context(_guest(ground, root, {"driver": "file", "filename": str(disks[0])}))
        remote = await stack.enter_async_context(_guest(ground, root, served))
        for turn in range(min(rounds or ROUNDS, 20)):
            progress(f"locality: load, {turn + 1}")
            for where, work in (("raw", _raw(folder)), ("local", _inside(local)), ("remote", _inside(remote))):
                for part, value in (await work).items():
                    samples[where][part].append(value)
    return [
        each
        for part in ("read", "fsync")
        for each in (
            figure(f"guest_vs_raw_{part}", "1/s", samples["local"][part], samples["raw"][part]),
            figure(f"local_vs_remote_{part}", "1/s", samples["local"][part], samples["remote"][part]),
        )
    ]


# ---------------------------------------------------------------- the load


async def _raw(folder: str) -> dict[str, float]:
    done = await run(data_load.argv(sys.executable, folder, _SECONDS, "read", "fsync"), timeout_s=60)
    return data_load.results(done.stdout.encode() if isinstance(done.stdout, str) else done.stdout)


async def _inside(guest: ChannelGuest) -> dict[str, float]:
    argv = data_load.argv("python3", "/data", _SECONDS, "read", "fsync")
    session = await guest.exec(Program(tuple(argv), env=(("PATH", "/usr/local/bin:/usr/bin:/bin"),)), stdin=False)
    said = {"stdout": b"", "stderr": b""}
    async for stream, data in session.output():
        said[stream] += data
    if (await session.wait()).code:
        raise PrimordiaError(f"The load in the guest failed: {said['stderr'][-300:]!r}")
    return data_load.results(said["stdout"])


# ---------------------------------------------------------------- disks


@contextlib.asynccontextmanager
async def _volume(ground: Ground, node: str) -> AsyncIterator[Path]:
    """The disk of a new volume on that node, with an ext4 on it; destroyed afterwards."""
    name = f"bench-{ids.suffix()}"
    with tempfile.TemporaryDirectory(prefix="primordia-bench-") as folder:
        image = Path(folder) / "disk"
        with image.open("wb") as file:
            file.truncate(_SIZE)
        await make_filesystem(image, "ext4", "bench")
        made = await ground.client.import_volume(image, name, node=node)
    try:
        yield Layout(ground.paths_of(node).volumes / "volumes" / made.uid).live_disk
    finally:
        await lifeforms.destroy(ground.client, name)


def _config(ground: Ground, node: str) -> NodeConfig:
    return msgspec.json.decode(ground.paths_of(node).config.read_bytes(), type=NodeConfig)


# ---------------------------------------------------------------- guests


@contextlib.asynccontextmanager
async def _guest(ground: Ground, root: Path, data: dict[str, object]) -> AsyncIterator[ChannelGuest]:
    """A guest on the first node whose data is `data`, as QEMU's block layer is told of it: the driver's command line else."""
    config = ground.config
    found = (await ground.client.get(Node, ground.node)).status.accelerator
    accelerator = Accelerator(found, 0 if found == "kvm" else host_tsc_khz())
    with tempfile.TemporaryDirectory(prefix="primordia-bench-") as name:
        folder = Path(name)
        await LocalImages(Path(config.cache_dir)).scratch(folder / "scratch", NodeSettings().scratch_bytes)
        (folder / "unused").touch()
        spec = MachineSpec(
            uid=f"bench-{ids.suffix()}",
            run_dir=folder,
            cpu_milli=1000,
            memory_bytes=parse_bytes(lifeforms.MEMORY),
            kernel=Path(config.tools.kernel),
            initramfs=Path(config.tools.initramfs),
            drives=(
                Drive("root", root, read_only=True),
                Drive("scratch", folder / "scratch"),
                Drive("data", folder / "unused", durable=True),
            ),
            owner_id=0,
            cgroup="",
        )
        with opened(spec, accelerator, None) as files:
            argv = _with_data(qemu_argv(spec, config.tools, accelerator, files), data)
            process = await asyncio.create_subprocess_exec(
                *netns.argv_in(config.netns, argv),
                pass_fds=files.all(),
                env=environment(config.tools),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
            try:
                reader, writer = await asyncio.open_unix_connection(folder / rundir.AGENT)
                guest = await guest_channel.connect(reader, writer, timeout_s=_BOOT_S, name="bench")
                await guest.configure(_identity())
                yield guest
                await guest.close()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def _with_data(argv: tuple[str, ...], data: dict[str, object]) -> list[str]:
    """The command line with another file behind the data drive."""
    changed = list(argv)
    for place, word in enumerate(argv):
        if argv[place - 1] == "-blockdev" and (node := json.loads(word))["node-name"] == drive_name(_DATA):
            changed[place] = json.dumps(node | {"file": data})
    return changed


def _identity() -> GuestConfig:
    return GuestConfig(
        hostname="bench",
        machine_id=secrets.token_hex(16),
        wall_ns=time.time_ns(),
        entropy=secrets.token_bytes(64),
        root="root",
        scratch="scratch",
        mounts=(Mount("data", "/data"),),
    )


def _python() -> Lifeform:
    """A lifeform of the image that the guests have."""
    plain = lifeforms.manifest("x")
    context = msgspec.structs.replace(plain.spec.contexts[0], image="python")
    return msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, contexts=(context,)))
