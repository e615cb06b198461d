"""KVM or TCG, decided by trying.

A /dev/kvm that exists and opens proves nothing: nested hosts run real-mode code and still never boot a kernel. So a guest
of our own kernel and initramfs is booted with KVM, and has a few seconds to let its agent open the byte channel. The
verdict holds for this boot of the host and is kept in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import msgspec

from primordia.drivers.vmm_qemu import QemuVmm
from primordia.kit import cgroup, identity, ids
from primordia.kit.errors import PrimordiaError
from primordia.kit.files import write_atomic
from primordia.ports.vmm import Exit, MachineSpec
from primordia.wire.nodeconfig import Tools

KVM = Path("/dev/kvm")
# A guest with KVM takes a fifth of a second; a busy machine may take twenty times that.
PROBE_TIMEOUT_S = 8.0
PROBE_OWNER_ID = 1_699_999_999
_PROBE_MEMORY_BYTES = 128 << 20


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and under which circumstances it stays true."""

    boot_id: str
    device: bool
    qemu: str
    kernel: str
    accelerator: str = ""
    reason: str = ""


async def decide(cache: Path, tools: Tools) -> tuple[str, str]:
    """`kvm` or `tcg`, and the sentence that says why. Takes a boot of a guest once for each boot of the host.

    Never raises for a KVM that does not work: that is the answer.
    """
    now = Verdict(boot_id=identity.boot_id(), device=KVM.exists(), qemu=tools.qemu, kernel=tools.kernel)
    file = cache / "accelerator.json"
    known = _read(file)
    if known is not None and msgspec.structs.replace(known, accelerator="", reason="") == now:
        return known.accelerator, known.reason
    accelerator, reason = await _try(tools) if now.device else ("tcg", "there is no /dev/kvm")
    found = msgspec.structs.replace(now, accelerator=accelerator, reason=reason)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomic(file, msgspec.json.encode(found), mode=0o644, durable=False)
    return accelerator, reason


async def _try(tools: Tools) -> tuple[str, str]:
    problem = await probe(tools, "kvm", timeout_s=PROBE_TIMEOUT_S)
    if problem:
        return "tcg", f"/dev/kvm is there, but {problem}"
    return "kvm", "a probe guest booted with it"


async def probe(tools: Tools, accelerator: str, *, timeout_s: float) -> str:
    """Boot a guest and throw it away; empty when its agent came up, else what went wrong."""
    group = f"primordia-probe-{ids.suffix(8)}"
    vmm = QemuVmm(tools, accelerator, "probe", group)
    with tempfile.TemporaryDirectory(prefix="primordia-probe-") as folder:
        spec = MachineSpec(
            uid=group,
            run_dir=Path(folder) / "vm",
            cpu_milli=1000,
            memory_bytes=_PROBE_MEMORY_BYTES,
            kernel=Path(tools.kernel),
            initramfs=Path(tools.initramfs),
            drives=(),
            owner_id=PROBE_OWNER_ID,
            cgroup="vm",
        )
        try:
            return await _boot(vmm, spec, timeout_s)
        except PrimordiaError as error:
            return error.message.partition(": ")[2] or error.message
        finally:
            with contextlib.suppress(PrimordiaError):
                cgroup.kill_tree(group)


async def _boot(vmm: QemuVmm, spec: MachineSpec, timeout_s: float) -> str:
    machine = await vmm.start(spec)
    waits = [asyncio.ensure_future(machine.booted()), asyncio.ensure_future(machine.wait())]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if waits[0] in done:
            return ""
        ended = waits[1].result() if waits[1] in done else None
        if isinstance(ended, Exit):
            return f"the probe guest ended: {ended.detail}"
        return f"a probe guest did not boot within {timeout_s:.0f} s"
    finally:
        for wait in waits:
            wait.cancel()
        await machine.kill()


def _read(file: Path) -> Verdict | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Verdict)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
