"""The uncompressed kernel inside a distribution's bzImage, and whether it can be booted as it is. Pure.

A kernel that needs no decompression saves a fifth of the boot under emulation and a copy of itself in guest memory, and
its file is shared by all microVMs through the page cache. See the kernel's Documentation/arch/x86/boot.rst for the header
and Xen's PVH note (type 18, XEN_ELFNOTE_PHYS32_ENTRY), which QEMU boots an ELF kernel by.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER_MAGIC = b"HdrS"
_PAYLOAD_SINCE_PROTOCOL = 0x0208
_PT_NOTE = 4
_PVH_NOTE = 18


def payload(image: bytes) -> bytes | None:
    """The packed kernel in a bzImage, or None when this is no bzImage that has one."""
    if len(image) < 0x260 or image[0x202:0x206] != _HEADER_MAGIC:
        return None
    protocol = struct.unpack_from("<H", image, 0x206)[0]
    if protocol < _PAYLOAD_SINCE_PROTOCOL:
        return None
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length] if length and start + length <= len(image) else None


def boots_by_pvh(kernel: bytes) -> bool:
    """Whether an ELF kernel has the PVH entry note."""
    return any(name == b"Xen\0" and kind == _PVH_NOTE for name, kind in _notes(kernel))


def _notes(kernel: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and type of each ELF note (elf(5)) of a 64-bit little-endian file; a damaged file has none."""
    if kernel[:6] != b"\x7fELF\x02\x01" or len(kernel) < 64:
        return
    table, entry_size, entries = struct.unpack_from("<Q", kernel, 32)[0], *struct.unpack_from("<HH", kernel, 54)
    for index in range(entries):
        try:
            kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", kernel, table + index * entry_size)
        except struct.error:
            return
        if kind == _PT_NOTE:
            yield from _segment_notes(kernel[offset : offset + size])


def _segment_notes(segment: bytes) -> Iterator[tuple[bytes, int]]:
    position = 0
    while position + 12 <= len(segment):
        name_size, content_size, kind = struct.unpack_from("<III", segment, position)
        position += 12
        yield segment[position : position + name_size], kind
        position += (name_size + 3 & ~3) + (content_size + 3 & ~3)
