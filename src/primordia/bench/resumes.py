"""How long QEMU takes to let a fork go on that waits as the pool's do: it has run, was greeted, and was paused again.

The forks are made by the driver, from the node's own template, beside the node: nothing but the monitor's `cont` and its
answer is timed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from primordia.bench import boot, lifeforms
from primordia.drivers import guest_channel
from primordia.drivers.vmm_qemu import QemuVmm
from primordia.host import accelerator
from primordia.kit import cgroup, ids
from primordia.kit.files import clone_file
from primordia.kit.units import parse_bytes
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.wire.nodeconfig import NodeConfig

_MAC = "02:50:0a:80:00:01"
_NOBODY = 65534
_HELLO_S = 30.0


async def measure(config: NodeConfig, root: Path, image: Path, rounds: int) -> list[float]:
    """Milliseconds of so many resumptions, each of another fork of the image, whose contexts have the disk `root`."""
    verdict = await accelerator.decide(Path(config.cache_dir), config.tools)
    group = f"primordia-bench-{ids.suffix()}"
    vmm = QemuVmm(config.tools, *verdict, cgroup_root=group)
    try:
        return [await _resumed_ms(vmm, config, root, image) for _ in range(rounds)]
    finally:
        cgroup.kill_tree(group)


async def _resumed_ms(vmm: QemuVmm, config: NodeConfig, root: Path, image: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="primordia-bench-") as name, boot.waiting_tap(config.netns) as tap:
        folder = Path(name)
        scratch = folder / "scratch"
        clone_file(image / "scratch", scratch)
        machine = await vmm.fork(_spec(config, folder / "run", root, scratch, tap), image)
        try:
            await machine.resume()
            guest = await guest_channel.connect(*await machine.open_channel(), timeout_s=_HELLO_S, name="bench")
            await machine.pause()
            begun = time.perf_counter()
            await machine.resume()
            taken_ms = (time.perf_counter() - begun) * 1000
            await guest.close()
        finally:
            await machine.kill()
    return taken_ms


def _spec(config: NodeConfig, run_dir: Path, root: Path, scratch: Path, tap: int) -> MachineSpec:
    return MachineSpec(
        uid=f"bench-{ids.suffix()}",
        run_dir=run_dir,
        cpu_milli=1000,
        memory_bytes=parse_bytes(lifeforms.MEMORY),
        kernel=Path(config.tools.kernel),
        initramfs=Path(config.tools.initramfs),
        drives=(Drive("root", root, read_only=True), Drive("scratch", scratch)),
        owner_id=_NOBODY,
        cgroup="vm",
        nic=Nic(tap, _MAC),
    )
