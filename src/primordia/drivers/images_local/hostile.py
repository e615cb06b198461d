"""What a stranger's layer may hold. Every entry is looked at before any program unpacks one.

The rules alone; `layer_stream.py` reads the layers and asks. Refused: names that are absolute or climb, hard
links that leave the image, entries written *through* a symbolic link that is absolute or climbs (a link alone is
harmless and common: inside the guest it means the guest's own files), devices, sparse files, names that no file system
takes, whiteouts of a folder's own dot names, more entries or bytes than the limits, and contents that a few bytes
blow up. The unpacker has its own defences; these do not depend on them.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass

from primordia.kit.errors import CapacityError, PermanentError
from primordia.kit.units import human_bytes

_MOST_LINKS_FOLLOWED = 40  # as the kernel does (MAXSYMLINKS)
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_LARGEST_OWNER = 2**32 - 2


class HostileImageError(PermanentError):
    """An image that no honest tool makes."""

    reason = "HostileImage"

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="It was not unpacked. Take the image from a source that you trust.")


class CorruptImageError(PermanentError):
    """An image whose bytes are not what its own digests say."""

    reason = "CorruptImage"

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Pull or copy the image again.")


@dataclass(frozen=True)
class Limits:
    """How large an image may be. A layer may grow `ratio`-fold, once it is past `ratio_floor_bytes`."""

    entries: int = 1_000_000
    unpacked_bytes: int = 8 * 1024**3
    ratio: int = 200
    ratio_floor_bytes: int = 64 * 1024**2
    path_bytes: int = 3840  # PATH_MAX, less the folder in which a tree is built
    target_bytes: int = 4095
    depth: int = 256
    name_bytes: int = 255
    header_bytes: int = 1024**2


class ImageScan:
    """The state of a look through one image: what was counted, and which symbolic links stand where."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.entries = 0
        self.unpacked_bytes = 0
        self._links: dict[str, str] = {}
        self._links_of_layer: set[str] = set()

    def start_layer(self) -> None:
        """The next entries belong to the next layer."""
        self._links_of_layer = set()

    def grow(self, count: int) -> None:
        """Account for unpacked bytes. CapacityError past the limit."""
        self.unpacked_bytes += count
        if self.unpacked_bytes > self.limits.unpacked_bytes:
            raise CapacityError(
                f"The image is larger than {human_bytes(self.limits.unpacked_bytes)} when unpacked.",
                remedy="Use a smaller image.",
                reason="ImageTooLarge",
            )

    def entry(self, info: tarfile.TarInfo) -> None:
        """Judge one entry. HostileImageError."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise HostileImageError(f"The image has more than {self.limits.entries} entries.")
        path = "/".join(self._parts(info.name))
        self._check_kind(info, path)
        self._check_way(path)
        name = path.rpartition("/")[2]
        if name.startswith(_WHITEOUT):
            self._whiteout(path, name)
            return
        if path in self._links_of_layer and not info.issym():
            raise HostileImageError(f"Entry {path!r} overwrites a symbolic link of its own layer.")
        target = self._link_target(info, path)
        if target is None:
            self._links.pop(path, None)
        else:
            self._links[path] = target
            self._links_of_layer.add(path)

    def _link_target(self, info: tarfile.TarInfo, path: str) -> str | None:
        """Where the entry leads if it is a symbolic link, or another name of one."""
        if info.issym():
            self._check_text(info.linkname, path, self.limits.target_bytes)
            return info.linkname
        if info.islnk():
            same = "/".join(self._parts(info.linkname))
            self._check_way(same)
            return self._links.get(same)
        return None

    def _parts(self, name: str) -> list[str]:
        """The parts of a name, relative to the image's root. HostileImageError when it does not stay inside."""
        self._check_text(name, name, self.limits.path_bytes)
        if name.startswith("/"):
            raise HostileImageError(f"Entry {name[:200]!r} has an absolute path.")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise HostileImageError(f"Entry {name[:200]!r} climbs out by '..'.")
        if len(parts) > self.limits.depth:
            raise HostileImageError(f"Entry {name[:200]!r} lies more than {self.limits.depth} folders deep.")
        return parts

    def _check_text(self, text: str, name: str, most_bytes: int) -> None:
        data = text.encode(errors="surrogateescape")
        if not data or b"\0" in data or len(data) > most_bytes:
            raise HostileImageError(f"Entry {name[:200]!r} has a name or target that no file system takes.")
        if any(len(part) > self.limits.name_bytes for part in data.split(b"/")):
            raise HostileImageError(f"Entry {name[:200]!r} has a name of more than {self.limits.name_bytes} bytes.")

    def _check_kind(self, info: tarfile.TarInfo, path: str) -> None:
        if not path and not info.isdir():
            raise HostileImageError("The image's root is an entry that is no folder.")
        if info.ischr() and (info.devmajor, info.devminor) == (0, 0):
            return  # how overlayfs writes that a file is gone
        if info.ischr() or info.isblk():
            raise HostileImageError(f"Entry {path!r} is a device ({info.devmajor}, {info.devminor}).")
        if info.sparse is not None or info.type not in _PLAIN_TYPES:
            raise HostileImageError(f"Entry {path!r} is of a kind that no image needs ({info.type!r}).")
        if not (0 <= info.uid <= _LARGEST_OWNER and 0 <= info.gid <= _LARGEST_OWNER):
            raise HostileImageError(f"Entry {path!r} has the owner {info.uid}:{info.gid}, which cannot be.")

    def _check_way(self, path: str) -> None:
        """Follow the folders of a path, not its end, through the links known so far."""
        pending = path.split("/")[:-1]
        place: list[str] = []
        followed = 0
        while pending:
            part = pending.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                if not place:
                    raise HostileImageError(f"Entry {path!r} leads out of the image through a symbolic link.")
                place.pop()
                continue
            target = self._links.get("/".join([*place, part]))
            if target is None:
                place.append(part)
                continue
            followed += 1
            if target.startswith("/") or followed > _MOST_LINKS_FOLLOWED:
                raise HostileImageError(f"Entry {path!r} goes through the symbolic link {part!r} to {target[:200]!r}.")
            pending = [*target.split("/"), *pending]

    def _whiteout(self, path: str, name: str) -> None:
        if name == _OPAQUE:
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise HostileImageError(f"Entry {path!r} hides a folder's own {hidden!r}.")
        gone = f"{path.rpartition('/')[0]}/{hidden}".lstrip("/")
        if gone in self._links_of_layer:
            raise HostileImageError(f"Entry {path!r} hides a symbolic link of its own layer.")
        self._links.pop(gone, None)
