"""What a machine is made of, as far as its image depends on it: the driver's note in the run folder, and an image's header.

The devices' state is QEMU's own stream and means nothing to a machine with other devices; memory means nothing to one of
another size. Both are therefore written down beside what they describe: in the run folder for the daemon that adopts a
machine and freezes it without having seen its spec, and in front of the devices' state for the one that forks it.

An image's `devices` file is one line of JSON (`Header`) and then QEMU's stream. The header's digest and length make a
truncated or altered stream an error that names the file, instead of whatever QEMU would make of it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from primordia.drivers.vmm_qemu import rundir
from primordia.drivers.vmm_qemu.argv import drive_name, vcpus
from primordia.kit.errors import PermanentError
from primordia.kit.files import write_atomic
from primordia.ports.vmm import DEVICES, MEMORY, MachineSpec

_FORMAT = 1
_LONGEST_HEADER = 65536
LONGEST_STATE_BYTES = 16 << 20


class Disk(msgspec.Struct, frozen=True, rename="camel"):
    """A drive as the guest knows it; `bytes` is 0 for a durable one, whose size a fork's guest asks for anew."""

    id: str
    bytes: int
    read_only: bool


class Layout(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything that an image and its forks must have in common."""

    memory_bytes: int
    cpus: int
    network: bool
    disks: tuple[Disk, ...]


class Note(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A machine's note in its run folder. `base_inode` is that of the memory file it was forked from, 0 when it booted."""

    layout: Layout
    base_inode: int = 0


class Header(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The first line of an image's `devices`."""

    format: int
    layout: Layout
    state_bytes: int
    state_sha256: str


def layout_of(spec: MachineSpec) -> Layout:
    """What the spec asks for. Raises PermanentError naming a disk that is missing."""
    sizes = {drive.id: _size(spec, drive.id, drive.path) for drive in spec.drives}
    disks = tuple(Disk(drive.id, 0 if drive.durable else sizes[drive.id], drive.read_only) for drive in spec.drives)
    return Layout(memory_bytes=spec.memory_bytes, cpus=vcpus(spec), network=spec.nic is not None, disks=disks)


def write_note(run_dir: Path, note: Note) -> None:
    """Keep the note for as long as the machine."""
    write_atomic(run_dir / rundir.NOTE, msgspec.json.encode(note), durable=False)


def read_note(uid: str, run_dir: Path) -> Note:
    """The note of a machine. Raises PermanentError when it has none: an earlier version started it."""
    try:
        return msgspec.json.decode((run_dir / rundir.NOTE).read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError) as error:
        raise PermanentError(
            f"microVM {uid} cannot be frozen: it is not known what it was made of.",
            remedy="Restart it: an earlier version of Primordia started it.",
        ) from error


def drive_node(uid: str, layout: Layout, drive: str) -> str:
    """What QEMU calls the drive. Raises PermanentError when the machine has none of that id."""
    for index, disk in enumerate(layout.disks, start=1):
        if disk.id == drive:
            return drive_name(index)
    raise PermanentError(f"microVM {uid} has no drive {drive!r}.", reason="NoSuchDrive")


def describe(layout: Layout) -> str:
    """The layout in one line, the same for equal layouts."""
    disks = " ".join(f"{disk.id}={disk.bytes}{'r' if disk.read_only else 'w'}" for disk in layout.disks)
    return f"memory={layout.memory_bytes} cpus={layout.cpus} network={'yes' if layout.network else 'no'} {disks}".rstrip()


def pack(layout: Layout, state: bytes) -> bytes:
    """The content of an image's `devices`."""
    digest = hashlib.sha256(state).hexdigest()
    header = Header(format=_FORMAT, layout=layout, state_bytes=len(state), state_sha256=digest)
    return msgspec.json.encode(header) + b"\n" + state


def unpack(image: Path, wanted: Layout) -> bytes:
    """The devices' state of an image for a machine of that layout.

    Raises PermanentError naming the file when the image is incomplete, damaged, or of another layout.
    """
    state = _checked(image / DEVICES, wanted)
    try:
        found = (image / MEMORY).stat().st_size
    except OSError as error:
        raise damaged(image / MEMORY, str(error.strerror)) from error
    if found != wanted.memory_bytes:
        raise damaged(image / MEMORY, f"it has {found} bytes, not {wanted.memory_bytes}")
    return state


def damaged(file: Path, why: str) -> PermanentError:
    """An image that cannot be used, naming the file."""
    return PermanentError(
        f"The image file {file} cannot be used: {why}.",
        reason="ImageDamaged",
        remedy="Images are made again by themselves once the damaged one is removed.",
    )


def _checked(file: Path, wanted: Layout) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise damaged(file, str(error.strerror)) from error
    head, _, state = content.partition(b"\n")
    try:
        header = msgspec.json.decode(head[:_LONGEST_HEADER], type=Header)
    except msgspec.DecodeError as error:
        raise damaged(file, "its first line is not an image's") from error
    if header.format != _FORMAT:
        raise damaged(file, f"it has format {header.format}, and this version reads {_FORMAT}")
    if len(state) != header.state_bytes or hashlib.sha256(state).hexdigest() != header.state_sha256:
        raise damaged(file, "it is not what was written")
    if header.layout != wanted:
        raise PermanentError(
            f"The image {file.parent} is of another machine: {describe(header.layout)}; asked for: {describe(wanted)}.",
            reason="ImageDiffers",
        )
    return state


def _size(spec: MachineSpec, disk: str, path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PermanentError(f"The disk {disk} of microVM {spec.uid} cannot be opened: {path}: {error.strerror}.") from error
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
