"""What a guest boots from: initramfs, modules, the bare kernel."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import struct
from pathlib import Path

import pytest

from primordia.host import kernel
from primordia.host.decompress import decompress, program_needed
from primordia.host.initramfs import Entry, build_initramfs, cpio_newc, depends, load_order, module_name, read_modules
from primordia.host.vmlinux import boots_by_pvh, payload
from primordia.kit.command import run
from primordia.kit.errors import NotFoundError, PermanentError


def module(*needs: str) -> bytes:
    return b"\x7fELF\0name=x\0depends=" + ",".join(needs).encode() + b"\0vermagic=6.1\0"


def modules_folder(root: Path) -> Path:
    folder = root / "lib/modules/6.1"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/crc16.ko\n")
    files = {
        "virtio.ko": module("virtio_ring"),
        "virtio_ring.ko.xz": lzma.compress(module()),
        "virtio_mmio.ko": module("virtio", "virtio_ring"),
        "virtio_blk.ko.gz": gzip.compress(module("virtio")),
        "virtio_console.ko": module("virtio"),
        "failover.ko": module(),
        "net_failover.ko": module("failover"),
        "virtio_net.ko": module("net_failover"),
        "virtio-rng.ko": module("virtio"),
        "overlay.ko": module(),
        "unrelated.ko": module("missing"),
    }
    for name, content in files.items():
        (folder / "kernel" / name).write_bytes(content)
    return folder


def test_the_archive_is_aligned_and_reproducible() -> None:
    entries = [Entry("a", stat.S_IFREG | 0o644, b"x"), Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))]
    archive = cpio_newc(entries)
    assert archive == cpio_newc(entries)
    assert len(archive) % 4 == 0
    assert archive.startswith(b"070701" + b"00000001" + b"000081A4")
    position = archive.index(b"a\0") - 110
    assert position == 0
    assert archive[112:113] == b"x"
    assert b"TRAILER!!!\0" in archive


def test_modules_name_their_needs() -> None:
    assert depends(module("a", "b-c")) == ("a", "b_c")
    assert depends(module()) == ()
    assert depends(b"no modinfo") == ()
    assert module_name("virtio-rng.ko.xz") == "virtio_rng"


def test_each_module_comes_after_what_it_needs() -> None:
    assert load_order(["c", "a"], {"a": (), "b": ("a", "builtin"), "c": ("b",)}) == ("a", "b", "c")
    with pytest.raises(PermanentError, match="a -> b -> a"):
        load_order(["a"], {"a": ("b",), "b": ("a",)})


async def test_the_set_is_computed(tmp_path: Path) -> None:
    found = await read_modules(modules_folder(tmp_path), ("virtio_net", "virtio_blk", "virtio_mmio", "ext4"))
    assert list(found) == ["failover", "net_failover", "virtio_net", "virtio_ring", "virtio", "virtio_blk", "virtio_mmio"]
    assert found["virtio_ring"] == module()
    assert found["virtio_blk"] == module("virtio")


async def test_what_others_ask_for_by_name_comes_first(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path)
    found = await read_modules(folder, ("virtio_mmio",), if_there=("overlay", "nowhere"))
    assert list(found) == ["overlay", "virtio_ring", "virtio", "virtio_mmio"]


async def test_a_kernel_without_a_module_is_refused(tmp_path: Path) -> None:
    folder = modules_folder(tmp_path)
    with pytest.raises(PermanentError, match="has no module missing"):
        await read_modules(folder, ("unrelated",))
    with pytest.raises(PermanentError, match=r"modules\.builtin"):
        await read_modules(tmp_path, ("virtio",))


async def test_the_initramfs_holds_agent_and_modules(tmp_path: Path) -> None:
    agent, output = tmp_path / "agent", tmp_path / "out.img"
    agent.write_bytes(b"AGENT")
    names = await build_initramfs(modules_folder(tmp_path), agent, output)
    content = output.read_bytes()
    assert "".join(f"{name}.ko\n" for name in names).encode() in content
    assert b"AGENT" in content
    assert all(f"modules/{name}.ko\0".encode() in content for name in names)
    assert stat.S_IMODE(output.stat().st_mode) == 0o644


async def test_without_an_agent_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="agent"):
        await build_initramfs(modules_folder(tmp_path), tmp_path / "gone", tmp_path / "out.img")
    assert not (tmp_path / "out.img").exists()


@pytest.mark.parametrize("program", ["zstd", "lz4"])
async def test_programs_unpack_what_python_cannot(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    packed = await run([program, "-qc", *(["-l"] if program == "lz4" else [])], stdin=b"k" * 9999)
    assert program_needed(packed.stdout) == program
    assert await decompress(packed.stdout, "it") == b"k" * 9999
    # As in a kernel: the packed data is followed by its size.
    assert await decompress(packed.stdout + struct.pack("<I", 9999), "it") == b"k" * 9999


async def test_what_is_damaged_is_named() -> None:
    for packed in (gzip.compress(b"x" * 99)[:-9], lzma.compress(b"x" * 99)[:9] + b"garbage" * 9):
        damaged = packed if packed.startswith(b"\xfd") else packed[:3] + b"\xff" * 20
        with pytest.raises(PermanentError, match="virtio"):
            await decompress(damaged, "virtio.ko")
    assert await decompress(b"plain", "x") == b"plain"


def bzimage(packed: bytes, *, protocol: int = 0x20F) -> bytes:
    image = bytearray(512 * 5)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, 16, len(packed))
    return bytes(image) + b"\0" * 16 + packed


def elf(notes: bytes) -> bytes:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 1)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    return bytes(header) + segment + notes


def note(name: bytes, kind: int, content: bytes) -> bytes:
    pad = lambda data: data + b"\0" * (-len(data) % 4)  # noqa: E731
    return struct.pack("<III", len(name), len(content), kind) + pad(name) + pad(content)


def test_the_packed_kernel_is_found() -> None:
    assert payload(bzimage(b"PACKED")) == b"PACKED"
    assert payload(bzimage(b"PACKED", protocol=0x206)) is None
    assert payload(b"\x7fELF" + bytes(600)) is None
    assert payload(bzimage(b"PACKED")[:-3]) is None
    assert payload(b"") is None


def test_the_pvh_note_is_found() -> None:
    pvh = note(b"Xen\0", 18, bytes(4))
    assert boots_by_pvh(elf(note(b"GNU\0", 3, b"build-id") + pvh))
    assert not boots_by_pvh(elf(note(b"Xen\0", 17, bytes(4))))
    assert not boots_by_pvh(b"MZ" + bytes(100))
    assert not boots_by_pvh(elf(pvh)[:70])


async def test_a_kernel_is_kept_bare_where_that_boots(tmp_path: Path) -> None:
    bare = elf(note(b"Xen\0", 18, bytes(4)))
    image = kernel.Image(tmp_path / "vmlinuz", tmp_path / "6.1")
    image.path.write_bytes(bzimage(gzip.compress(bare)))
    prepared = await kernel.prepare(image, tmp_path)
    assert prepared.path.read_bytes() == bare
    assert await kernel.prepare(image, tmp_path) == prepared

    image.path.write_bytes(bzimage(gzip.compress(elf(note(b"GNU\0", 18, b"")))))
    assert await kernel.prepare(image, tmp_path) == image
    image.path.write_bytes(bare)
    assert await kernel.prepare(image, tmp_path) == image


def test_a_kernel_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMORDIA_KERNEL", raising=False)
    assert kernel.given() is None
    monkeypatch.setenv("PRIMORDIA_KERNEL", str(tmp_path / "vmlinuz"))
    with pytest.raises(NotFoundError, match="PRIMORDIA_KERNEL"):
        kernel.given()
    (tmp_path / "vmlinuz").touch()
    monkeypatch.setenv("PRIMORDIA_KERNEL_MODULES", str(tmp_path))
    assert kernel.given() == kernel.Image(tmp_path / "vmlinuz", tmp_path)


def test_an_unpacked_package_is_searched(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        kernel.unpacked(tmp_path)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "vmlinuz-6.1").touch()
    (tmp_path / "usr/lib/modules/6.1").mkdir(parents=True)
    assert kernel.unpacked(tmp_path) == kernel.Image(tmp_path / "boot/vmlinuz-6.1", tmp_path / "usr/lib/modules/6.1")
