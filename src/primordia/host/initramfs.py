"""The initramfs every microVM boots from: our agent as /init, and the few kernel modules it has to load.

Distribution kernels keep the virtio drivers and overlayfs as modules, each its own set of them, compressed or not. So the
set is computed: what a wanted module needs is read from the module itself (`depends=` of its .modinfo section; the
packages carry no modules.dep before depmod has run), what the kernel has built in is left out, and `/modules.list` names
the rest, one file name per line, dependencies first. Modules are stored decompressed, so that the agent needs nothing but
finit_module. The archive is cpio's newc format (kernel documentation, `initramfs buffer format`), owned by root, with
times of zero: the same input gives the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from primordia.host.decompress import decompress
from primordia.kit.errors import PermanentError
from primordia.kit.files import write_atomic

WANTED = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "ext4", "overlay")
# File systems ask the kernel for checksums by name when they are mounted, xfs's library when it is loaded: no `depends=` says
# so, hence first. The agent ends a fork's inherited connections with the others; without them, they only cannot send any more.
WANTED_IF_THERE = ("crc32c_generic", "tcp_diag", "udp_diag")
WANTED_FOR_XFS = ("xfs",)
FOLDERS = ("dev", "modules", "newroot", "proc", "run", "sys")


def wanted_words(more: tuple[str, ...] = ()) -> str:
    """What `build_initramfs` is asked to put in, in words: another list makes another initramfs."""
    return " ".join((*WANTED_IF_THERE, *WANTED, *more))


@dataclass(frozen=True)
class Entry:
    """A file or folder of a cpio archive; `mode` has the type bits."""

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio_newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the newc format."""
    out = bytearray()
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4) + entry.content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def module_name(file_name: str) -> str:
    """A module's name from its file's: `virtio-rng.ko.xz` is `virtio_rng`."""
    return file_name.partition(".ko")[0].replace("-", "_")


def depends(module: bytes) -> tuple[str, ...]:
    """The modules that a decompressed module names as its dependencies, in its .modinfo section."""
    start = module.find(b"\0depends=")
    if start < 0:
        return ()
    value = module[start + len(b"\0depends=") :].split(b"\0", 1)[0].decode()
    return tuple(name.replace("-", "_") for name in value.split(",") if name)


def load_order(wanted: Iterable[str], needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The modules to load, each after what it needs. What is not in `needs` is built into the kernel and left out."""
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in order or name not in needs:
            return
        if name in path:
            raise PermanentError(f"Kernel modules depend on each other in a circle: {' -> '.join((*path, name))}.")
        for need in needs[name]:
            visit(need, (*path, name))
        order[name] = None

    for name in wanted:
        visit(name, ())
    return tuple(order)


async def read_modules(
    folder: Path, wanted: Iterable[str], *, if_there: Iterable[str] = (), programs: Path | None = None
) -> dict[str, bytes]:
    """The wanted modules of a kernel's `lib/modules/VERSION` and all they need, decompressed, in load order; before them those
    of `if_there` that the kernel has.

    Raises PermanentError when the kernel has one of them neither as a module nor built in.
    """
    try:
        builtin = {module_name(Path(line).name) for line in (folder / "modules.builtin").read_text().split()}
    except OSError as error:
        raise PermanentError(
            f"{folder} is not a kernel's modules folder: modules.builtin cannot be read ({error.strerror}).",
            remedy="Give the folder lib/modules/VERSION that belongs to the kernel.",
        ) from error
    files = {module_name(path.name): path for path in sorted(folder.rglob("*.ko*"))}
    contents: dict[str, bytes] = {}
    needs: dict[str, tuple[str, ...]] = {}
    wanted = [*(name for name in if_there if name in files), *wanted]
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in needs or name in builtin:
            continue
        if name not in files:
            raise PermanentError(
                f"The kernel of {folder} has no module {name}.",
                remedy="Give another kernel by PRIMORDIA_KERNEL and PRIMORDIA_KERNEL_MODULES.",
            )
        contents[name] = await decompress(files[name].read_bytes(), str(files[name]), programs=programs)
        needs[name] = depends(contents[name])
        waiting += needs[name]
    return {name: contents[name] for name in load_order(wanted, needs)}


async def build_initramfs(
    modules: Path,
    agent: Path,
    output: Path,
    *,
    interpreter: Path | None = None,
    programs: Path | None = None,
    more: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Write the initramfs to `output`, whole or not at all, and return the modules in it, in load order.

    `modules` is the kernel's `lib/modules/VERSION`, `agent` a static program, `interpreter` the Python file that the agent
    shows to programs, `programs` as for `decompress`, `more` modules that it has besides. Raises PermanentError when the kernel
    lacks a module or a file cannot be read.
    """
    found = await read_modules(modules, (*WANTED, *more), if_there=WANTED_IF_THERE, programs=programs)
    program = _read("guest agent", agent)
    entries = [Entry(folder, stat.S_IFDIR | 0o755) for folder in FOLDERS]
    # The kernel opens /dev/console for PID 1 before anything is mounted.
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    entries.append(Entry("init", stat.S_IFREG | 0o755, program))
    if interpreter is not None:
        entries.append(Entry("interpreter.py", stat.S_IFREG | 0o444, _read("guest's interpreter", interpreter)))
    entries.append(Entry("modules.list", stat.S_IFREG | 0o644, "".join(f"{name}.ko\n" for name in found).encode()))
    entries += [Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, content) for name, content in found.items()]
    write_atomic(output, cpio_newc(entries), mode=0o644)
    return tuple(found)


def _read(what: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PermanentError(f"The {what} {file} cannot be read ({error.strerror}).") from error
