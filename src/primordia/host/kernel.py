"""The guests' kernel: the distribution's own for virtual machines, taken out of its package, or one that was given.

Never installed: a kernel in /boot would enter the machine's boot menu. It is unpacked further to the bare ELF image where
that boots (host/vmlinux.py).
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from primordia.host.apt import PrivateApt, unpack
from primordia.host.decompress import decompress, program_needed
from primordia.host.vmlinux import boots_by_pvh, payload
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.kit.files import write_atomic
from primordia.kit.ids import short_hash

# The packages that name the newest kernel for virtual machines: Debian's, Ubuntu's.
_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
_PART = re.compile(r"^linux-(image|binary|modules)-(unsigned-)?\d")


@dataclass(frozen=True)
class Image:
    """A kernel to boot, and its `lib/modules/VERSION`."""

    path: Path
    modules: Path


def given() -> Image | None:
    """The kernel that PRIMORDIA_KERNEL and PRIMORDIA_KERNEL_MODULES name, if any.

    Raises NotFoundError when one of them is missing or leads nowhere.
    """
    path, modules = os.environ.get("PRIMORDIA_KERNEL", ""), os.environ.get("PRIMORDIA_KERNEL_MODULES", "")
    if not path:
        return None
    if not Path(path).is_file() or not Path(modules or "/nowhere").is_dir():
        raise NotFoundError(
            f"PRIMORDIA_KERNEL={path} and PRIMORDIA_KERNEL_MODULES={modules} do not name a kernel and its modules.",
            remedy="Set the first to a vmlinuz or vmlinux, the second to its lib/modules/VERSION.",
        )
    return Image(Path(path), Path(modules))


async def fetch(apt: PrivateApt, into: Path) -> None:
    """Download and unpack the distribution's kernel and its modules, and lz4 where the kernel needs it to be unpacked."""
    packages = await _packages(apt)
    debs = tuple([await apt.download(package, into / "debs") for package in packages])
    await unpack(debs, into)
    shutil.rmtree(into / "debs")
    packed = payload(unpacked(into).path.read_bytes()) or b""
    program = program_needed(packed)
    if program and shutil.which(program) is None:
        await unpack(await apt.closure(program), into)


async def _packages(apt: PrivateApt) -> tuple[str, ...]:
    """The versioned packages behind the distribution's name for its newest kernel."""
    for meta in _META_PACKAGES:
        found: dict[str, None] = {}
        waiting = [name for name in await apt.depends(meta) if _PART.match(name)]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = None
                waiting += [need for need in await apt.depends(name) if _PART.match(need)]
        if found:
            return tuple(found)
    raise PermanentError(
        f"The package sources have none of {', '.join(_META_PACKAGES)}.",
        remedy="Give a kernel by PRIMORDIA_KERNEL and PRIMORDIA_KERNEL_MODULES.",
    )


def unpacked(root: Path) -> Image:
    """The kernel in an unpacked tree. Raises NotFoundError."""
    images = sorted((root / "boot").glob("vmlinuz-*"))
    for image in images:
        version = image.name.removeprefix("vmlinuz-")
        for base in (root / "lib", root / "usr" / "lib"):
            if (base / "modules" / version).is_dir():
                return Image(image, base / "modules" / version)
    raise NotFoundError(f"{root} holds no kernel with its modules.", remedy="Delete it, so that it is fetched again.")


async def prepare(image: Image, folder: Path) -> Image:
    """The kernel as it is booted: its bare ELF image, kept in `folder`, where it has one that boots; else as it is."""
    packed = payload(image.path.read_bytes())
    if packed is None:
        return image
    place = folder / f"vmlinux-{image.modules.name}-{short_hash(f'{image.path} {image.path.stat().st_mtime_ns}')}"
    if place.exists():
        return Image(place, image.modules)
    try:
        bare = await decompress(packed, str(image.path), programs=folder / "kernel" / "usr" / "bin")
    except PermanentError:
        return image
    if not boots_by_pvh(bare):
        return image
    write_atomic(place, bare, mode=0o644)
    return Image(place, image.modules)
