"""What an image depends on beside its own bytes, as short texts: only where all are equal may it be used.

Under TCG the host's processor matters too: its time-stamp counter is the guest's, and the guest's kernel has been told its
frequency.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import replace
from pathlib import Path

from primordia.drivers.vmm_qemu.argv import Accelerator, Descriptors, kernel_command_line, processor, qemu_argv
from primordia.drivers.vmm_qemu.layout import describe, layout_of
from primordia.kit.errors import PermanentError
from primordia.ports.vmm import MachineSpec, Nic
from primordia.wire.nodeconfig import Tools

_DIGITS = 16


def image_key(spec: MachineSpec, accelerator: Accelerator, version: str, cpuinfo: str) -> dict[str, str]:
    """See ports/vmm.py. Reads kernel and initramfs, once for each state of the files: they block for a tenth of a second."""
    return {
        "vmm": f"qemu {version}",
        "accelerator": accelerator.name,
        "processor": f"{processor(accelerator)} on {host_processor(cpuinfo, accelerator)}",
        "kernel": file_digest(spec.kernel),
        "initramfs": file_digest(spec.initramfs),
        "arguments": kernel_command_line(spec, Accelerator(accelerator.name)),
        "devices": devices_digest(spec, accelerator),
        "layout": describe(layout_of(spec)),
    }


def host_processor(cpuinfo: str, accelerator: Accelerator) -> str:
    """The host's processor, from /proc/cpuinfo: its name, and with KVM, which shows the guest all of it, its features."""
    seen: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        seen.setdefault(name.strip(), value.strip())
    model = seen.get("model name", "unknown")
    if accelerator.name != "kvm":
        return model
    features = f"{seen.get('stepping')} {seen.get('microcode')} {seen.get('flags')}"
    return f"{model}, features {hashlib.sha256(features.encode()).hexdigest()[:_DIGITS]}"


def devices_digest(spec: MachineSpec, accelerator: Accelerator) -> str:
    """A digest of QEMU's devices as its command line names them, without what belongs to one machine."""
    nic = Nic(0, "") if spec.nic else None
    files = Descriptors(0, 0, 0, 0, drives=tuple(0 for _ in spec.drives))
    argv = qemu_argv(replace(spec, uid="", nic=nic), Tools(), accelerator, files)
    devices = [argv[index + 1] for index, word in enumerate(argv[:-1]) if word in ("-M", "-device", "-smp")]
    return hashlib.sha256("\n".join(devices).encode()).hexdigest()[:_DIGITS]


def file_digest(file: Path) -> str:
    """A digest of the file's content. Raises PermanentError when it cannot be read."""
    try:
        seen = file.stat()
        return _digest(file, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    except OSError as error:
        raise PermanentError(f"{file} cannot be read: {error.strerror}.") from error


@functools.lru_cache(maxsize=16)
def _digest(file: Path, inode: int, size: int, changed_ns: int) -> str:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:_DIGITS]
