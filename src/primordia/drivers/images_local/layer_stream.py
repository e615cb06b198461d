"""Reading a stranger's layer: in one pass, forward only, with bounded memory, against its digest and the rules.

The standard library's tarfile does the parsing. It trusts more than we may: it reads extension headers whole, whatever
size they claim, remembers every entry, and takes a broken header for the end. What it sees here keeps it from that.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError, ImageScan
from primordia.kit.errors import PermanentError
from primordia.kit.units import human_bytes

_CHUNK = 128 * 1024


def scan_layer(scan: ImageScan, blob: BinaryIO, *, compressed: bool, size_bytes: int, digest: str) -> None:
    """Read one layer to its end: its bytes against its digest, its entries against the rules.

    Raises CorruptImageError, HostileImageError or CapacityError.
    """
    scan.start_layer()
    packed = _Packed(blob, size_bytes, digest)
    archive = _Archive(_Unpacked(scan, packed, compressed=compressed), scan.limits.header_bytes)
    try:
        tar = tarfile.TarFile(fileobj=archive, tarinfo=_StrictTarInfo)  # type: ignore[arg-type]
        while (info := tar.next()) is not None:
            scan.entry(info)
            tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every entry; a million of them would not fit
        archive.drain()
    except (tarfile.TarError, zlib.error, EOFError, PermanentError) as error:
        packed.check()  # a wrong digest explains more than what the damage did to the archive
        if isinstance(error, PermanentError):
            raise
        raise CorruptImageError(f"The layer {digest[:19]}... is not a sound archive ({error}).") from error
    packed.check()


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a broken header in the middle for the end of the archive, and what follows would go unseen."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise CorruptImageError(f"The layer has a broken header ({error}).") from error


class _Packed:
    """A layer's blob as it lies in the layout, never read further than its descriptor says."""

    def __init__(self, blob: BinaryIO, size_bytes: int, digest: str) -> None:
        self._blob, self._size_bytes, self._digest = blob, size_bytes, digest
        self._hash = hashlib.sha256()
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self._blob.read(size)
        self._hash.update(data)
        self.count += len(data)
        if self.count > self._size_bytes:
            raise self._other()
        return data

    def check(self) -> None:
        """Read it to its end; it is the blob that was named. CorruptImageError."""
        while self.read(_CHUNK):
            pass
        if self.count != self._size_bytes or f"sha256:{self._hash.hexdigest()}" != self._digest:
            raise self._other()

    def _other(self) -> CorruptImageError:
        return CorruptImageError(f"The layer {self._digest[:19]}... is not what its digest says.")


class _Unpacked(io.RawIOBase):
    """The bytes that come out of a layer, counted against what went in."""

    def __init__(self, scan: ImageScan, packed: _Packed, *, compressed: bool) -> None:
        super().__init__()
        self._scan, self._packed = scan, packed
        self._next: Callable[[int], bytes] = _Gzip(packed.read).read if compressed else packed.read
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        self._count += len(data)
        self._scan.grow(len(data))
        limits = self._scan.limits
        if self._count > limits.ratio_floor_bytes and self._count > self._packed.count * limits.ratio:
            raise HostileImageError(f"The layer grows more than {limits.ratio}-fold when unpacked, as only bombs do.")
        buffer[: len(data)] = data
        return len(data)


class _Archive:
    """The file that tarfile sees: it goes forward only, and gives at most a header's worth at a time.

    tarfile reads the payload of extension headers whole, whatever size they claim; all else it skips by `seek`.
    """

    def __init__(self, unpacked: _Unpacked, most_bytes: int) -> None:
        self._file = io.BufferedReader(unpacked, _CHUNK)
        self._most_bytes = most_bytes
        self._position = 0

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._most_bytes:
            raise HostileImageError(f"The layer has a header of {human_bytes(size)}.")
        return self._take(size)

    def seek(self, position: int) -> None:
        while self._position < position and self._take(min(_CHUNK, position - self._position)):
            pass

    def tell(self) -> int:
        return self._position

    def drain(self) -> None:
        """Read what follows the archive's end, which counts like the rest."""
        while self._take(_CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        self._position += len(data)
        return data


class _Gzip:
    """Gzip members one after the other, as RFC 1952 allows, never more than asked for at a time."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._member = zlib.decompressobj(wbits=31)
        self._begun = False

    def read(self, size: int) -> bytes:
        while True:
            packed = self._member.unconsumed_tail or self._next_packed()
            if not packed:
                if self._begun and not self._member.eof:
                    raise EOFError("the compressed data end too early")
                return b""
            self._begun = True
            data = self._member.decompress(packed, size)
            if data:
                return data

    def _next_packed(self) -> bytes:
        if not self._member.eof:
            return self._read(_CHUNK)
        rest = self._member.unused_data or self._read(_CHUNK)
        if rest:
            self._member, self._begun = zlib.decompressobj(wbits=31), False
        return rest
