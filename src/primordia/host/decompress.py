"""What kernels and their modules are packed with, told by the first bytes: gzip, xz, zstd, lz4, or not at all."""

from __future__ import annotations

import lzma
import shutil
import zlib
from pathlib import Path

from primordia.kit.command import CommandError, run
from primordia.kit.errors import PermanentError

GZIP, XZ, ZSTD, LZ4 = b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18"
_PROGRAMS = {ZSTD: "zstd", LZ4: "lz4"}
_TIMEOUT_S = 120.0


def program_needed(content: bytes) -> str:
    """The program that unpacks this content, empty when Python can do it itself."""
    return next((program for magic, program in _PROGRAMS.items() if content.startswith(magic)), "")


async def decompress(content: bytes, what: str, *, programs: Path | None = None) -> bytes:
    """The unpacked content; what is not packed comes back as it is. Bytes after the end of the packed data are ignored.

    `programs` is a folder searched for zstd and lz4 where the machine has none. Raises PermanentError, naming `what`.
    """
    program = program_needed(content)
    try:
        if content.startswith(GZIP):
            return zlib.decompressobj(wbits=31).decompress(content)
        if content.startswith(XZ):
            return lzma.LZMADecompressor().decompress(content)
        if not program:
            return content
        found = shutil.which(program) or (shutil.which(program, path=str(programs)) if programs else None)
        if found is None:
            raise PermanentError(f"{what} is packed with {program}.", remedy=f"Install the package {program}.")
        # Without check: a kernel's payload is followed by its size, which these programs take for a broken frame.
        done = await run([found, "-dcq", "-"], stdin=content, timeout_s=_TIMEOUT_S, check=False)
    except (zlib.error, lzma.LZMAError, CommandError) as error:
        raise PermanentError(
            f"{what} cannot be unpacked ({error}).", remedy="Delete it, so that it is fetched again."
        ) from error
    if not done.stdout:
        raise PermanentError(f"{what} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
