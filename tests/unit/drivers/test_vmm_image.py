"""Images: the header in front of the devices' state, the note of a machine, and what an image depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from primordia.drivers.vmm_qemu.argv import Accelerator
from primordia.drivers.vmm_qemu.key import devices_digest, file_digest, host_processor, image_key
from primordia.drivers.vmm_qemu.layout import Disk, Layout, Note, describe, layout_of, pack, read_note, unpack, write_note
from primordia.kit.errors import PermanentError
from primordia.ports.vmm import DEVICES, MEMORY, Drive, MachineSpec, Nic

LAYOUT = Layout(memory_bytes=8192, cpus=2, network=True, disks=(Disk("root", 4096, True), Disk("scratch", 8192, False)))
STATE = bytes(range(256)) * 40 + b"\n{}\n"
CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\nstepping\t: 1\nflags\t\t: fpu sse\n\nprocessor\t: 1\nmodel name\t: Other\n"
TCG, KVM = Accelerator("tcg", 2_000_000), Accelerator("kvm")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / MEMORY).write_bytes(bytes(8192))
    (tmp_path / DEVICES).write_bytes(pack(LAYOUT, STATE))
    return tmp_path


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    for name, size in (("kernel", 10), ("initramfs", 20), ("root", 4096), ("scratch", 8192)):
        (tmp_path / name).write_bytes(bytes(size))
    drives = (Drive("root", tmp_path / "root", read_only=True), Drive("scratch", tmp_path / "scratch"))
    nic = Nic(5, "02:00:00:00:00:01")
    return MachineSpec("u", tmp_path, 1500, 8192, tmp_path / "kernel", tmp_path / "initramfs", drives, 1, "u", nic)


def test_what_is_packed_is_unpacked(image: Path) -> None:
    assert unpack(image, LAYOUT) == STATE


def test_every_flipped_byte_and_every_cut_is_noticed(image: Path) -> None:
    whole = (image / DEVICES).read_bytes()
    for place in (*range(0, len(whole), 97), *range(300), len(whole) - 1):
        (image / DEVICES).write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(PermanentError, match=str(image)):
            unpack(image, LAYOUT)
    for length in (0, 1, 100, whole.index(b"\n"), len(whole) - 1):
        (image / DEVICES).write_bytes(whole[:length])
        with pytest.raises(PermanentError, match="devices cannot be used"):
            unpack(image, LAYOUT)


@pytest.mark.parametrize("size", [0, 4096, 8191, 8193])
def test_memory_of_another_size_is_refused(image: Path, size: int) -> None:
    (image / MEMORY).write_bytes(bytes(size))
    with pytest.raises(PermanentError, match=f"memory cannot be used: it has {size} bytes, not 8192"):
        unpack(image, LAYOUT)


def test_a_folder_without_an_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="devices cannot be used: No such file"):
        unpack(tmp_path, LAYOUT)


def test_an_image_of_a_later_format_is_refused(image: Path) -> None:
    whole = (image / DEVICES).read_bytes()
    (image / DEVICES).write_bytes(whole.replace(b'"format":1', b'"format":2'))
    with pytest.raises(PermanentError, match="format 2"):
        unpack(image, LAYOUT)


def test_a_disk_of_another_size_is_another_machine(image: Path) -> None:
    other = Layout(memory_bytes=8192, cpus=2, network=True, disks=(Disk("root", 4097, True), Disk("scratch", 8192, False)))
    with pytest.raises(PermanentError, match=r"root=4096r scratch=8192w; asked for: .*root=4097r"):
        unpack(image, other)


def test_a_spec_says_what_the_guest_will_see(spec: MachineSpec) -> None:
    assert layout_of(spec) == LAYOUT
    assert describe(LAYOUT) == "memory=8192 cpus=2 network=yes root=4096r scratch=8192w"
    with pytest.raises(PermanentError, match=r"disk data .*gone\.img: No such file"):
        layout_of(replace(spec, drives=(Drive("data", Path("/gone.img")),)))


def test_a_note_is_kept(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="microVM u cannot be frozen"):
        read_note("u", tmp_path)
    write_note(tmp_path, Note(layout=LAYOUT, base_inode=9))
    assert read_note("u", tmp_path) == Note(layout=LAYOUT, base_inode=9)


def test_a_key_is_of_the_machine_and_not_of_its_bearer(spec: MachineSpec, tmp_path: Path) -> None:
    key = image_key(spec, TCG, "10.0.2", CPUINFO)
    other = replace(spec, uid="v", run_dir=Path("/x"), owner_id=7, cgroup="c", nic=Nic(9, "02:00:00:00:00:02"), cpu_milli=1001)
    assert image_key(other, Accelerator("tcg", 2_000_001), "10.0.2", CPUINFO) == key
    assert key["vmm"] == "qemu 10.0.2"
    assert key["processor"] == "max,la57=off on Some CPU"


@pytest.mark.parametrize("change", ["kernel", "initramfs"])
def test_a_key_changes_with_what_was_booted(spec: MachineSpec, change: str, tmp_path: Path) -> None:
    before = image_key(spec, TCG, "10.0.2", CPUINFO)
    (tmp_path / change).write_bytes(b"another")
    after = image_key(spec, TCG, "10.0.2", CPUINFO)
    assert [name for name in before if before[name] != after[name]] == [change]


def test_a_key_changes_with_size_devices_version_accelerator_and_processor(spec: MachineSpec) -> None:
    keys = [
        image_key(spec, TCG, "10.0.2", CPUINFO),
        image_key(spec, TCG, "10.0.3", CPUINFO),
        image_key(spec, KVM, "10.0.2", CPUINFO),
        image_key(spec, TCG, "10.0.2", CPUINFO.replace("Some", "Any")),
        image_key(replace(spec, nic=None), TCG, "10.0.2", CPUINFO),
        image_key(replace(spec, drives=spec.drives[:1]), TCG, "10.0.2", CPUINFO),
        image_key(replace(spec, cpu_milli=2001), TCG, "10.0.2", CPUINFO),
        image_key(replace(spec, memory_bytes=4096), TCG, "10.0.2", CPUINFO),
        image_key(replace(spec, kernel_args=("x",)), TCG, "10.0.2", CPUINFO),
    ]
    assert len({str(key) for key in keys}) == len(keys)
    assert devices_digest(spec, TCG) != devices_digest(replace(spec, nic=None), TCG)


def test_only_kvm_shows_the_hosts_features_to_the_guest() -> None:
    more = CPUINFO.replace("sse", "sse avx")
    assert host_processor(CPUINFO, TCG) == host_processor(more, TCG) == "Some CPU"
    assert host_processor(CPUINFO, KVM) != host_processor(more, KVM)


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"vmlinux cannot be read"):
        file_digest(tmp_path / "vmlinux")
