"""Manifests from files, folders and standard input, in an order in which they can be applied.

Whether a field may be there is the server's to say; here a document is only found, read and named, so that an error says
which file and which document of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primordia.kit.errors import PermanentError
from primordia.wire import documents
from primordia.wire.resources import BY_KIND, Image, Node, Resource, Secret, Soup, Template

if TYPE_CHECKING:
    from primordia.host.shape import SoupManifest

SUFFIXES = (".yaml", ".yml", ".json")
# What others refer to comes first, and goes last.
_FIRST: tuple[type[Resource], ...] = (Soup, Node, Secret, Image, Template)
_LARGEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """One document: `source` says where it was, for people."""

    source: str
    content: dict[str, Any]

    @property
    def kind(self) -> type[Resource]:
        """The kind it is of. Raises PermanentError."""
        word = self.content.get("kind")
        if word not in BY_KIND:
            known = ", ".join(BY_KIND)
            raise PermanentError(f"{self.source}: there is no kind {word!r}.", remedy=f"There are {known}.")
        return BY_KIND[str(word)]

    @property
    def name(self) -> str:
        """Its metadata.name; empty when it has none."""
        metadata = self.content.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        return name if isinstance(name, str) else ""

    @property
    def namespace(self) -> str:
        """Its metadata.namespace; empty when it says none."""
        metadata = self.content.get("metadata")
        namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
        return namespace if isinstance(namespace, str) else ""


def load(places: Iterable[str]) -> list[Manifest]:
    """The manifests of files, folders (not those below) and `-`, in order of kind, then as they were given.

    Raises PermanentError naming the file, and the document where there are several.
    """
    found: list[Manifest] = []
    for place in places:
        if place == "-":
            found += parse(sys.stdin.buffer.read(_LARGEST_BYTES + 1), "standard input")
            continue
        for path in _files(Path(place)):
            found += parse(_read(path), str(path))
    if not found:
        raise PermanentError(
            f"There is no manifest in {', '.join(places)}.", remedy="Name a .yaml or .json file, or a folder of them."
        )
    return ordered(found)


def ordered(manifests: Iterable[Manifest]) -> list[Manifest]:
    """What others refer to first."""
    ranks = {kind: rank for rank, kind in enumerate(_FIRST)}
    return sorted(manifests, key=lambda manifest: ranks.get(manifest.kind, len(_FIRST)))


def parse(content: bytes, source: str) -> list[Manifest]:
    """The manifests in a text; a List counts as its items. Raises PermanentError."""
    if len(content) > _LARGEST_BYTES:
        raise PermanentError(f"{source} is larger than 16 MiB.", remedy="Split it.")
    try:
        plain: Sequence[Any]
        plain = [documents.parse_json(content)] if content.lstrip()[:1] == b"{" else documents.parse_yaml(content)
    except documents.DocumentError as error:
        raise PermanentError(f"{source} cannot be read: {error.message}", remedy=error.remedy) from error
    found = []
    for number, document in enumerate(plain, 1):
        if document is None:
            continue
        name = f"{source}, document {number}" if len(plain) > 1 else source
        found += [Manifest(name, each) for each in _objects(document, name)]
    return found


def _objects(document: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(document, dict):
        raise PermanentError(f"{name} is no object.", remedy="A manifest begins with apiVersion, kind and metadata.")
    if document.get("kind") == "List":
        items = document.get("items")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise PermanentError(f"{name}: items: a List needs a list of objects.")
        return items
    return [document]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and entry.is_file())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise PermanentError(
            f"{path} cannot be read ({error.strerror}).", remedy="Check the name and its permissions."
        ) from error


def read_soup(folder: Path) -> tuple[SoupManifest | None, list[Manifest]]:
    """A configuration folder: `soup.yaml`, and the manifests of its folders secrets, images and lifeforms.

    Raises PermanentError when there is neither, or when soup.yaml is no Soup.
    """
    if not folder.is_dir():
        raise PermanentError(
            f"There is no folder {folder}.", remedy="--config takes a folder with soup.yaml and lifeforms/*.yaml."
        )
    manifests: list[Manifest] = []
    for part in ("secrets", "images", "lifeforms"):
        for path in _files(folder / part) if (folder / part).is_dir() else []:
            manifests += parse(_read(path), str(path))
    file = folder / "soup.yaml"
    soup = _soup(parse(_read(file), str(file)), file) if file.exists() else None
    if soup is None and not manifests:
        raise PermanentError(f"{folder} has neither soup.yaml nor lifeforms/*.yaml.", remedy="See examples/ in the source.")
    return soup, ordered(manifests)


def _soup(found: list[Manifest], file: Path) -> SoupManifest:
    import msgspec

    from primordia.host.shape import SoupManifest

    if len(found) != 1 or found[0].content.get("kind") != Soup.KIND:
        raise PermanentError(f"{file} must hold one Soup and nothing else.", remedy="Put lifeforms into lifeforms/*.yaml.")
    try:
        return msgspec.convert(found[0].content, SoupManifest)
    except msgspec.ValidationError as error:
        words = str(error).replace("`$.", "`")
        raise PermanentError(f"{file}: {words}.", remedy="See examples/soup.yaml in the source.") from error
