"""References to OCI images, read strictly before any program sees them.

The grammar of names, tags and digests is that of the OCI distribution specification; that the first part of a name is
a host when it has a dot or a port or is `localhost` is Docker's rule, which every registry client follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from primordia.kit.errors import InvalidError

FIELD = "spec.oci.reference"
_LONGEST = 4096
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|(?:[a-zA-Z0-9-]+\.)*[a-zA-Z0-9-]+|\[[0-9a-fA-F:]+\])(?::\d{1,5})?"
_NAME = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*")


@dataclass(frozen=True)
class RegistryReference:
    """An image in a registry. With a digest the tag does not count."""

    name: str
    tag: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


@dataclass(frozen=True)
class LayoutReference:
    """An image in a folder of the node that is an OCI layout; an empty tag means its only image."""

    folder: Path
    tag: str

    def __str__(self) -> str:
        return f"oci:{self.folder}:{self.tag}" if self.tag else f"oci:{self.folder}"


def parse_reference(text: str) -> RegistryReference | LayoutReference:
    """The reference that `text` writes. Raises InvalidError."""
    if len(text) > _LONGEST or any(ord(character) <= 0x20 for character in text):
        raise InvalidError(FIELD, f"{text[:80]!r} is too long or holds spaces")
    if text.startswith("oci:"):
        return _parse_layout(text[4:])
    return _parse_registry(text)


def _parse_layout(text: str) -> LayoutReference:
    folder, separator, tag = text.rpartition(":")
    if not separator or "/" in tag:
        folder, tag = text, ""
    if tag and not _TAG.fullmatch(tag):
        raise InvalidError(FIELD, f"{tag!r} is not a tag")
    if not folder.startswith("/"):
        raise InvalidError(FIELD, f"oci:{folder} is not an absolute path", remedy="Write it as oci:/FOLDER[:TAG].")
    return LayoutReference(Path(folder), tag)


def _parse_registry(text: str) -> RegistryReference:
    rest, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise InvalidError(FIELD, f"{digest[:80]!r} is not a digest", remedy="Write it as sha256: and 64 hex digits.")
    name, separator, tag = rest.rpartition(":")
    if not separator or "/" in tag:
        name, tag = rest, "latest"
    if not _NAME.fullmatch(name):
        raise InvalidError(
            FIELD,
            f"{name[:80]!r} is not an image name",
            remedy="Write it as HOST[:PORT]/NAME[:TAG][@DIGEST], in small letters.",
        )
    if not _TAG.fullmatch(tag):
        raise InvalidError(FIELD, f"{tag[:80]!r} is not a tag")
    return RegistryReference(name, tag, digest)
