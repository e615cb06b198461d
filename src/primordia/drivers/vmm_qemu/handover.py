"""The open files that QEMU is handed: it opens nothing itself, so its user needs no way into any folder."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import Accelerator, Descriptors
from primordia.drivers.vmm_qemu.layout import damaged, layout_of, unpack
from primordia.kit.errors import PermanentError
from primordia.ports.vmm import MEMORY, Drive, MachineSpec


@contextlib.contextmanager
def opened(spec: MachineSpec, accelerator: Accelerator, image: Path | None) -> Iterator[Descriptors]:
    """What a machine is handed, open for as long as the block runs; with an image, a fork. Raises PermanentError naming
    the file."""
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(rundir.listen(spec.run_dir, rundir.MONITOR)).fileno()
        agent = stack.enter_context(rundir.listen(spec.run_dir, rundir.AGENT)).fileno()
        drives = tuple(stack.enter_context(opened_drive(spec.uid, drive)) for drive in spec.drives)
        kvm = _open(stack, Path("/dev/kvm"), "KVM device", False) if accelerator.name == "kvm" else -1
        if image is None:
            kernel = _open(stack, spec.kernel, f"kernel of microVM {spec.uid}", True)
            initramfs = _open(stack, spec.initramfs, f"initramfs of microVM {spec.uid}", True)
            yield Descriptors(monitor, agent, kernel, initramfs, drives=drives, kvm=kvm)
        else:
            state = _state(stack, unpack(image, layout_of(spec)))
            memory = _open(stack, image / MEMORY, "image's memory", True)
            _check_memory(image / MEMORY, memory)
            yield Descriptors(monitor, agent, memory=memory, state=state, drives=drives, kvm=kvm)


@contextlib.contextmanager
def opened_drive(uid: str, drive: Drive) -> Iterator[int]:
    """The file of a microVM's drive, open for as long as the block runs. Raises PermanentError naming the file."""
    with contextlib.ExitStack() as stack:
        yield _open(stack, drive.path, f"disk {drive.id} of microVM {uid}", drive.read_only)


def _open(stack: contextlib.ExitStack, path: Path, what: str, read_only: bool) -> int:
    try:
        descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise PermanentError(f"The {what} cannot be opened: {path}: {error.strerror}.") from error
    stack.callback(functools.partial(os.close, descriptor))
    return descriptor


def _state(stack: contextlib.ExitStack, content: bytes) -> int:
    """The devices' state in a file of its own: QEMU reads the very bytes that were checked, and no more."""
    descriptor = os.memfd_create("devices", os.MFD_CLOEXEC)
    stack.callback(functools.partial(os.close, descriptor))
    os.write(descriptor, content)
    return _open(stack, Path(f"/proc/self/fd/{descriptor}"), "devices' state", True)


def _check_memory(file: Path, descriptor: int) -> None:
    """QEMU opens the descriptor anew, as its own user. What is not in the page cache is read on the way."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) or not mode & stat.S_IROTH:
        raise damaged(file, "it is not a file that everyone may read")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
