"""QEMU's command line, flag by flag."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu.argv import (
    Accelerator,
    Descriptors,
    kernel_command_line,
    launch_argv,
    memory_limit_bytes,
    qemu_argv,
    vcpus,
)
from primordia.kit.errors import PermanentError
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.wire.nodeconfig import Tools

TOOLS = Tools(qemu="/q/qemu-system-x86_64", qemu_data="/nowhere/qemu:/nowhere/seabios")
TCG, KVM = Accelerator("tcg", 2_596_124), Accelerator("kvm")
SPEC = MachineSpec("u1", Path("/run/u1"), 1500, 128 << 20, Path("/k"), Path("/i"), (), 1_700_000_001, "u1")
FILES = Descriptors(monitor=3, agent=4, kernel=5, initramfs=6)


def after(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == flag]


def test_the_machine_is_a_bare_microvm() -> None:
    argv = qemu_argv(SPEC, TOOLS, TCG, FILES)
    assert argv[0] == TOOLS.qemu
    assert {"-nodefaults", "-no-user-config", "-nographic", "-no-shutdown"} <= set(argv)
    assert after(argv, "-M")[0] == "microvm,acpi=on,x-option-roms=off,suppress-vmdesc=on,memory-backend=ram"
    assert after(argv, "-L") == ["/nowhere/qemu", "/nowhere/seabios"]
    assert after(argv, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]


def test_memory_is_shared_and_nameless() -> None:
    argv = qemu_argv(SPEC, TOOLS, TCG, FILES)
    assert "memory-backend-memfd,id=ram,size=134217728B,share=on" in after(argv, "-object")
    assert after(argv, "-m") == ["size=134217728B"]


def test_files_are_handed_over_and_no_path_is_opened() -> None:
    spec = replace(SPEC, drives=(Drive("root", Path("/secret/root.img"), read_only=True),), nic=Nic(9, "02:50:0a:80:00:01"))
    argv = qemu_argv(spec, TOOLS, TCG, replace(FILES, drives=(7,)))
    assert not [word for word in argv if "/secret" in word or "/run/u1" in word]
    assert after(argv, "-kernel") == ["/proc/self/fd/5"]
    assert after(argv, "-initrd") == ["/proc/self/fd/6"]
    assert after(argv, "-add-fd") == ["fd=7,set=1"]
    assert "tap,id=net,fd=9" in after(argv, "-netdev")
    assert "virtio-net-device,netdev=net,mac=02:50:0a:80:00:01,guest_announce=off" in after(argv, "-device")


@pytest.mark.parametrize(("durable", "no_flush"), [(True, False), (False, True)])
def test_flushes_reach_the_disk_of_durable_drives_only(durable: bool, no_flush: bool) -> None:
    spec = replace(SPEC, drives=(Drive("data", Path("/d"), durable=durable),))
    argv = qemu_argv(spec, TOOLS, TCG, replace(FILES, drives=(7,)))
    node = json.loads(after(argv, "-blockdev")[0])
    assert node["cache"] == {"direct": False, "no-flush": no_flush}
    assert node["read-only"] is False
    assert "virtio-blk-device,drive=drive1,serial=data" in after(argv, "-device")


@pytest.mark.parametrize("name", ["", "x" * 21, "a,serial=b"])
def test_a_serial_that_cannot_be_one_is_refused(name: str) -> None:
    spec = replace(SPEC, drives=(Drive(name, Path("/d")),))
    with pytest.raises(PermanentError, match="serial"):
        qemu_argv(spec, TOOLS, TCG, replace(FILES, drives=(7,)))


def test_kvm_is_handed_over_too() -> None:
    argv = qemu_argv(SPEC, TOOLS, KVM, replace(FILES, kvm=8))
    assert after(argv, "-accel") == ["kvm,device=/dev/fdset/1000"]
    assert after(argv, "-add-fd") == ["fd=8,set=1000"]
    assert after(argv, "-cpu") == ["host"]


def test_under_tcg_the_kernel_is_told_its_clock() -> None:
    words = kernel_command_line(SPEC, TCG).split()
    assert "tsc_early_khz=2596124" in words
    assert not [
        word for word in kernel_command_line(SPEC, KVM).split() if word.startswith(("tsc", "mitigations", "lsm", "psi"))
    ]
    assert "lsm=landlock,yama" in kernel_command_line(SPEC, TCG).split()
    assert not [word for word in kernel_command_line(SPEC, Accelerator("tcg")).split() if "tsc" in word]


def test_the_specs_own_kernel_arguments_come_last() -> None:
    assert kernel_command_line(replace(SPEC, kernel_args=("loglevel=7",)), TCG).endswith(" loglevel=7")


@pytest.mark.parametrize(("milli", "count"), [(0, 1), (1, 1), (250, 1), (1000, 1), (1001, 2), (4000, 4)])
def test_virtual_cpus_cover_the_cpu_time(milli: int, count: int) -> None:
    assert vcpus(replace(SPEC, cpu_milli=milli)) == count


def test_the_limit_leaves_room_for_qemu_itself() -> None:
    assert memory_limit_bytes(SPEC, KVM) == (128 + 96) << 20
    assert memory_limit_bytes(SPEC, TCG) == (128 + 96 + 64) << 20


def test_firmware_is_the_fast_one_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "qboot.rom").touch()
    argv = qemu_argv(SPEC, Tools(qemu="/q", qemu_data=str(tmp_path)), TCG, FILES)
    assert after(argv, "-bios") == [str(tmp_path / "qboot.rom")]
    assert "x-option-roms=on" in after(qemu_argv(SPEC, TOOLS, TCG, FILES), "-M")


def test_no_privilege_is_left() -> None:
    command = launch_argv("/l", 1_700_000_001, (5, 7), (Path("/c/procs"), Path("/m/procs")), ("/q", "-S"))
    assert command == ("/l", "500", "5,7", "1700000001", "/c/procs", "/m/procs", "--", "/q", "-S")
