"""From asking for a lifeform to the end of its first command, against the bare machine.

The baseline is the same QEMU, kernel, initramfs, flags and disks, started by nothing but this page until the agent says hello:
the command line is the driver's own. The two take turns, and turns at being first, so a busy machine slows both. Everything
of ours, from validation to scratch disk to the command and its answer, is in the ratio. What is measured is a boot: the soup
that the benchmark brings up keeps no templates for lifeforms to start from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from primordia.bench import lifeforms
from primordia.bench.figures import Figure, paired
from primordia.bench.ground import Ground, Progress
from primordia.client import answers
from primordia.drivers import guest_channel
from primordia.drivers.images_local.local import LocalImages
from primordia.drivers.net_linux import taps
from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import Accelerator, qemu_argv
from primordia.drivers.vmm_qemu.driver import environment
from primordia.drivers.vmm_qemu.handover import opened
from primordia.drivers.vmm_qemu.tsc import host_tsc_khz
from primordia.kit import ids, netns
from primordia.kit.errors import NotFoundError
from primordia.kit.units import parse_bytes
from primordia.node.settings import NodeSettings
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Context, Lifeform, Node

ROUNDS = 10
_WITHIN_S = 120.0
_MAC = "02:50:0a:80:00:01"


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figure boot_first_command."""
    rounds = rounds or ROUNDS
    progress("boot: prepare the image")
    config = ground.config
    async with lifeforms.running(ground.client):  # builds the image, warms every cache
        root = await root_disk(ground, config)
    accelerator = (await ground.client.get(Node, ground.node)).status.accelerator
    ours, bare = [], []
    for number in range(rounds):
        progress(f"boot: {number + 1} of {rounds}")
        if number % 2:
            bare.append(await _bare_ms(config, root, accelerator))
        ours.append(await _ours_ms(ground))
        if number % 2 == 0:
            bare.append(await _bare_ms(config, root, accelerator))
    return [paired("boot_first_command", "ms", ours, bare)]


async def _ours_ms(ground: Ground) -> float:
    """Create, wait until it runs, run a command."""
    client = ground.client
    name = f"bench-{ids.suffix()}"
    begun = time.perf_counter()
    await client.create(lifeforms.manifest(name))
    try:
        await client.wait(Lifeform, name, answers.phase("Running"), timeout_s=_WITHIN_S)
        result = await client.exec(name, ["/bin/true"])
        taken = (time.perf_counter() - begun) * 1000
        assert result.code == 0, result
    finally:
        await lifeforms.delete(client, name)
    return taken


# ---------------------------------------------------------------- the bare machine


async def root_disk(ground: Ground, config: NodeConfig) -> Path:
    """The root disk that the running context has."""
    digests = [each.status.image_digest for each in (await ground.client.list(Context)).items if each.status.image_digest]
    found = await LocalImages(Path(config.cache_dir)).find(digests[0]) if digests else None
    if found is None:
        raise NotFoundError("The benchmark's image is not in the cache.", remedy="Run it on a soup of this machine.")
    return found.path


async def _bare_ms(config: NodeConfig, root: Path, accelerator: str) -> float:
    """From the start of QEMU to the agent's hello."""
    with tempfile.TemporaryDirectory(prefix="primordia-bench-") as name, waiting_tap(config.netns) as tap:
        folder = Path(name)
        scratch = folder / "scratch"
        await LocalImages(Path(config.cache_dir)).scratch(scratch, NodeSettings().scratch_bytes)
        spec = MachineSpec(
            uid="bench",
            run_dir=folder,
            cpu_milli=1000,
            memory_bytes=parse_bytes(lifeforms.MEMORY),
            kernel=Path(config.tools.kernel),
            initramfs=Path(config.tools.initramfs),
            drives=(Drive("root", root, read_only=True), Drive("scratch", scratch)),
            owner_id=0,
            cgroup="",
            nic=Nic(tap, _MAC),
        )
        same = Accelerator(accelerator, 0 if accelerator == "kvm" else host_tsc_khz())
        with opened(spec, same, None) as files:
            argv = qemu_argv(spec, config.tools, same, files)
            return await _hello_ms(argv, (*files.all(), tap), folder / rundir.AGENT, environment(config.tools))


async def _hello_ms(argv: tuple[str, ...], descriptors: tuple[int, ...], agent: Path, env: dict[str, str]) -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *argv, pass_fds=descriptors, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        reader, writer = await asyncio.open_unix_connection(agent)
        guest = await guest_channel.connect(reader, writer, timeout_s=_WITHIN_S, name="bench")
        taken = (time.perf_counter() - begun) * 1000
        await guest.close()
        return taken
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.contextmanager
def waiting_tap(namespace: str) -> Iterator[int]:
    """A network card of the node that leads nowhere, gone with its descriptor."""
    home = netns.open_named(namespace)
    try:
        tap: int = netns.call_in(home, lambda: taps.create("bench0"))
    finally:
        os.close(home)
    try:
        yield tap
    finally:
        os.close(tap)
