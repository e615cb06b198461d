"""From a MachineSpec to QEMU's command line. Pure, so that every flag has a test and a reason.

Flags were chosen by measuring boot under TCG (docs/design/0002-qemu-microvm.md has the figures):
- `qboot.rom` instead of SeaBIOS, and an uncompressed kernel by its PVH entry: no firmware menus, no decompression in
  emulation. It costs the guest kernel its own address randomisation, as it does in other microVM managers.
- `pit`, `pic` and `rtc` stay on: the kernel waits for each of them when they are missing.
- Under TCG the kernel is told the frequency of the time-stamp counter (`tsc_early_khz`). Measuring it against the
  emulated PIT fails whenever the host is busy, and a kernel on ACPI's reduced hardware that has no usable TSC hangs.
- Under TCG page tables have four levels (`la57=off`), not five: every miss walks them in emulation.
- A guest that reboots, or panics, does it by a triple fault (`reboot=t`), which QEMU hears at once. Left to itself the kernel
  ends up jumping into the firmware, which a fork has not: it would turn there for ever.
- Guest memory is a memfd, shared: it needs no file and no tmpfs, it vanishes with the process, and its pages can be read
  or saved through /proc/PID/fd while the machine is paused, which a template needs.
- QEMU opens nothing by itself but its own program files: sockets, disks, the TAP, /dev/kvm (QEMU 8.2 and newer), kernel
  and initramfs are passed as descriptors, so that its user needs no way into any folder of ours and no group.
- A fork maps its image's memory file privately (`share=off`): QEMU may write to the mapping and not to the file
  (`readonly=on,rom=off`, QEMU 8.2). It has neither kernel nor initramfs, for nothing boots. `-incoming` makes it load the
  devices' state as it starts and leave memory alone, which it would else fill with firmware; the state has no section of
  settings (`send-configuration=off`) and no description (`suppress-vmdesc`), and nothing is announced to any network.
- The network card has no announcements of its own either (`guest_announce=off`). With them and `announce-rounds=0` QEMU frees
  the card's timer as it loads it and still uses it at the card's next reset, which every guest does that powers off.
- A fork to whom nobody talks while it loads stands afterwards (`-S`). Else it goes on by itself, and finds what was said to it
  waiting in the agent's socket: not to ask the monitor first, nor to connect later, is 10 ms of its start.
- A fork that resets has ended (`-no-reboot`). One that boots gets the same once its agent's channel is open (`machine.py`).
- `-no-shutdown` keeps the process when the guest has ended, until the driver has read the last words of its console.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from primordia.kit.errors import PermanentError
from primordia.ports.vmm import Drive, MachineSpec
from primordia.wire.nodeconfig import Tools

AGENT_PORT = "primordia.agent"
AGENT_DEVICE = "agent-port"
CONSOLE = "console"
CONSOLE_BYTES = 65536
TRANSLATION_CACHE_MIB = 64
MEMORY_OVERHEAD_BYTES = 96 << 20
OOM_SCORE_ADJ = 500
_LONGEST_SERIAL = 20
_KVM_SET = 1000
_STATE_SET = 1001
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True)
class Accelerator:
    """`name` is kvm or tcg. `tsc_khz` is the host's time-stamp counter's frequency, 0 when not known."""

    name: str
    tsc_khz: int = 0


@dataclass(frozen=True)
class Descriptors:
    """Numbers of the open files that QEMU inherits; `drives` in the order of the spec's, `kvm` is -1 without KVM.

    A machine that boots has `kernel` and `initramfs`, a fork `memory` and the devices' `state`; the others are -1.
    """

    monitor: int
    agent: int
    kernel: int = -1
    initramfs: int = -1
    memory: int = -1
    state: int = -1
    drives: tuple[int, ...] = ()
    kvm: int = -1

    def all(self) -> tuple[int, ...]:
        """Every descriptor there is."""
        one = (self.monitor, self.agent, self.kernel, self.initramfs, self.memory, self.state, self.kvm)
        return (*(number for number in one if number >= 0), *self.drives)


def qemu_argv(
    spec: MachineSpec, tools: Tools, accelerator: Accelerator, files: Descriptors, *, stands: bool = True
) -> tuple[str, ...]:
    """QEMU's command line for the machine; a fork `stands` when it is loaded, or goes on by itself."""
    argv = [
        tools.qemu,
        *(word for folder in tools.qemu_data.split(":") if folder for word in ("-L", folder)),
        *("-name", f"guest={spec.uid}"),
        *("-M", "microvm,acpi=on,x-option-roms=off,suppress-vmdesc=on,memory-backend=ram"),
        *firmware(tools),
        *_processor(accelerator, files),
        *("-smp", str(vcpus(spec))),
        *("-m", f"size={spec.memory_bytes}B"),
        *(_booting(spec, accelerator, files) if files.kernel >= 0 else _forking(spec, files, stands)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-shutdown"),
        *("-sandbox", _SANDBOX),
        *("-chardev", f"socket,id=monitor,fd={files.monitor},server=on,wait=off", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"ringbuf,id={CONSOLE},size={CONSOLE_BYTES}", "-serial", f"chardev:{CONSOLE}"),
        *("-device", "virtio-serial-device,max_ports=2"),
        *("-chardev", f"socket,id=agent,fd={files.agent},server=on,wait=off"),
        *("-device", f"virtserialport,id={AGENT_DEVICE},chardev=agent,name={AGENT_PORT}"),
        *("-object", "rng-builtin,id=entropy", "-device", "virtio-rng-device,rng=entropy"),
    ]
    for index, (drive, descriptor) in enumerate(zip(spec.drives, files.drives, strict=True), start=1):
        argv += _drive(index, drive, descriptor)
    if spec.nic is not None:
        argv += ["-netdev", f"tap,id=net,fd={spec.nic.tap_fd}"]
        argv += ["-device", f"virtio-net-device,netdev=net,mac={spec.nic.mac},guest_announce=off"]
    return tuple(argv)


def _booting(spec: MachineSpec, accelerator: Accelerator, files: Descriptors) -> tuple[str, ...]:
    memory = ("-object", f"memory-backend-memfd,id=ram,size={spec.memory_bytes}B,share=on")
    programs = ("-kernel", f"/proc/self/fd/{files.kernel}", "-initrd", f"/proc/self/fd/{files.initramfs}")
    return (*memory, *programs, "-append", kernel_command_line(spec, accelerator))


def _forking(spec: MachineSpec, files: Descriptors, stands: bool) -> tuple[str, ...]:
    file = f"mem-path=/proc/self/fd/{files.memory},share=off,readonly=on,rom=off"
    memory = ("-object", f"memory-backend-file,id=ram,size={spec.memory_bytes}B,{file}")
    stream = ("-global", "migration.send-configuration=off", "-global", "migration.announce-rounds=0")
    state = ("-add-fd", f"fd={files.state},set={_STATE_SET}", "-incoming", f"file:/dev/fdset/{_STATE_SET}")
    return (*memory, *stream, *state, *(("-S",) if stands else ()), "-no-reboot")


def _processor(accelerator: Accelerator, files: Descriptors) -> tuple[str, ...]:
    if accelerator.name == "kvm":
        handed = ("-add-fd", f"fd={files.kvm},set={_KVM_SET}")
        return (*handed, "-accel", f"kvm,device=/dev/fdset/{_KVM_SET}", "-cpu", processor(accelerator))
    return ("-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", processor(accelerator))


def processor(accelerator: Accelerator) -> str:
    """The guest's processor: the host's own with KVM, else all that can be emulated."""
    return "host" if accelerator.name == "kvm" else "max,la57=off"


def drive_name(index: int) -> str:
    """What QEMU calls the drive of that place in the spec, counted from 1."""
    return f"drive{index}"


def _drive(index: int, drive: Drive, descriptor: int) -> list[str]:
    if not 0 < len(drive.id.encode()) <= _LONGEST_SERIAL or "," in drive.id:
        raise PermanentError(f"The drive id {drive.id!r} cannot be a disk's serial: 1 to {_LONGEST_SERIAL} bytes, no comma.")
    node = drive_options(drive_name(index), drive, file_options(index))
    argv = ["-add-fd", f"fd={descriptor},set={index}", "-blockdev", json.dumps(node)]
    return [*argv, "-device", f"virtio-blk-device,drive={drive_name(index)},serial={drive.id}"]


def drive_options(name: str, drive: Drive, file: object) -> dict[str, object]:
    """What QEMU is told of a drive; `file` are options, or the name of what lies below it."""
    return {
        "driver": "raw",
        "node-name": name,
        "read-only": drive.read_only,
        "discard": "unmap",
        "cache": {"direct": False, "no-flush": not drive.durable},
        "file": file,
    }


def file_options(number: int) -> dict[str, object]:
    """What QEMU is told of an open file that it was handed as that set."""
    return {"driver": "file", "filename": f"/dev/fdset/{number}", "aio": "threads"}


def kernel_command_line(spec: MachineSpec, accelerator: Accelerator) -> str:
    """The guest kernel's parameters; the spec's own come last and win."""
    words = ["quiet", "console=ttyS0", "panic=-1", "reboot=t", "random.trust_cpu=on", "no_timer_check"]
    words += ["cryptomgr.notests", "8250.nr_uarts=1"]
    if accelerator.name != "kvm":
        # Mitigations guard against the speculation of a processor that the guest does not have, and cost emulation much.
        # So do security modules for which nothing in a guest has rules, asked at each open and send: 15 % of a fork's start.
        words += ["mitigations=off", "lsm=landlock,yama", "psi=0"]
        if accelerator.tsc_khz:
            words += [f"tsc_early_khz={accelerator.tsc_khz}", "tsc=reliable"]
    return " ".join((*words, *spec.kernel_args))


def firmware(tools: Tools) -> tuple[str, ...]:
    """qboot where QEMU's data folders have it; else QEMU's default, which needs its option ROMs back."""
    for folder in tools.qemu_data.split(":"):
        place = Path(folder) / "qboot.rom"
        if folder and place.exists():
            return ("-bios", str(place))
    return ("-M", "x-option-roms=on")


def vcpus(spec: MachineSpec) -> int:
    """Virtual CPUs: as many as the CPU time needs, at least one."""
    return max(1, -(-spec.cpu_milli // 1000))


def boot_cpu_milli(spec: MachineSpec) -> int:
    """CPU time while it boots: a boot costs two seconds of a CPU, which a tenth of one would take twenty for."""
    return max(1000, spec.cpu_milli)


def memory_limit_bytes(spec: MachineSpec, accelerator: Accelerator) -> int:
    """What the process may use: the guest's memory, QEMU's own, and its translation cache under TCG."""
    cache = 0 if accelerator.name == "kvm" else TRANSLATION_CACHE_MIB << 20
    return spec.memory_bytes + MEMORY_OVERHEAD_BYTES + cache


def launch_argv(
    launcher: str, owner_id: int, kept: Iterable[int], groups: Iterable[Path], command: tuple[str, ...]
) -> tuple[str, ...]:
    """Run the command in those cgroups (their `procs` files), with those descriptors, as uid = gid = `owner_id`, in no group,
    with no capability and no way to gain one. See launch.c."""
    descriptors = ",".join(str(number) for number in kept)
    return (launcher, str(OOM_SCORE_ADJ), descriptors, str(owner_id), *(str(file) for file in groups), "--", *command)
