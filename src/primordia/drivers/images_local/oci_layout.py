"""The documents of an OCI image layout: from a folder and a tag to one manifest for this machine's architecture.

The documents are a stranger's: small by rule, typed, and each is what the digest that led to it says. Docker's own media
types for lists and manifests are the same documents under older names, but a layout holds OCI's.
Source: OCI image specification 1.1, image-layout.md, image-index.md, manifest.md, config.md.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import TypeVar

import msgspec

from primordia.drivers.images_local.config import check_texts, parse_env
from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError
from primordia.kit.errors import NotFoundError, PermanentError, UnsupportedError
from primordia.wire.resources import ImageConfig

OS, ARCHITECTURE = "linux", "amd64"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

_LARGEST_DOCUMENT = 4 * 1024 * 1024
_MOST_LAYERS = 1024
_DEEPEST_INDEX = 4
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, rename="camel"):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """Names a blob: its kind, its digest, its size in bytes."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[Descriptor, ...] = ()


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()


class RuntimeConfig(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None


class ImageDocument(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    config: RuntimeConfig | None = None


class OciImage(msgspec.Struct, frozen=True):
    """One image of a layout, ready to be scanned and unpacked."""

    manifest: Descriptor
    layers: tuple[Descriptor, ...]
    config: ImageConfig


def blob_path(layout: Path, digest: str) -> Path:
    """Where a layout keeps a blob. HostileImageError when the digest is none."""
    if not _DIGEST.fullmatch(digest):
        raise HostileImageError(f"{digest[:80]!r} is not a sha256 digest.")
    return layout / "blobs" / "sha256" / digest[7:]


def open_regular(path: Path) -> int:
    """A descriptor of a plain file, never of a link's end, a pipe or a device. FileNotFoundError, HostileImageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise HostileImageError(f"{path.name} is not a plain file.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HostileImageError(f"{path.name} is not a plain file.")
    return descriptor


def resolve(layout: Path, tag: str) -> OciImage:
    """The image that a layout holds under a tag, for this architecture.

    Raises NotFoundError (no layout, no such tag), UnsupportedError (architecture, kind of layer), CorruptImageError and
    HostileImageError.
    """
    descriptor = _descend(layout, _choose_tag(layout, tag))
    manifest = _document(layout, descriptor, Manifest)
    _check_type(manifest.config, (CONFIG,), "configuration")
    document = _document(layout, manifest.config, ImageDocument)
    _check_platform(document.os, document.architecture)
    if len(manifest.layers) > _MOST_LAYERS:
        raise HostileImageError(f"The image has {len(manifest.layers)} layers; {_MOST_LAYERS} is the limit.")
    for layer in manifest.layers:
        _check_type(layer, (LAYER_TAR, LAYER_GZIP), "layer")
        blob_path(layout, layer.digest)
    return OciImage(descriptor, manifest.layers, image_config(document))


def image_config(document: ImageDocument) -> ImageConfig:
    """ENTRYPOINT, CMD, ENV, WORKDIR and USER of an image's configuration. An empty list says nothing."""
    given = document.config or RuntimeConfig()
    check_texts([*(given.entrypoint or ()), *(given.cmd or ()), *(given.env or ()), given.working_dir or "", given.user or ""])
    return ImageConfig(
        entrypoint=given.entrypoint or None,
        cmd=given.cmd or None,
        env=parse_env(given.env or ()),
        working_dir=given.working_dir or "",
        user=given.user or "",
    )


def _choose_tag(layout: Path, tag: str) -> Descriptor:
    try:
        index = _decode(_read(layout / "index.json"), Index, "index.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{layout} is not an OCI layout: it has no index.json.") from error
    manifests = index.manifests
    if tag:
        chosen = [each for each in manifests if (each.annotations or {}).get(REF_NAME) == tag]
    else:
        chosen = list(manifests) if len(manifests) == 1 else _of_platform(manifests)
    if len(chosen) == 1 or (chosen and len({each.digest for each in chosen}) == 1):
        return chosen[0]
    tags = sorted(name for each in manifests if (name := (each.annotations or {}).get(REF_NAME)))
    which = f"no image tagged {tag!r}" if tag else "several images"
    raise NotFoundError(
        f"The layout {layout} has {which}.", remedy=f"Its tags: {', '.join(tags[:20])}." if tags else "It has no tags at all."
    )


def _descend(layout: Path, descriptor: Descriptor) -> Descriptor:
    for _ in range(_DEEPEST_INDEX):
        _check_type(descriptor, (MANIFEST, INDEX), "manifest")
        if descriptor.media_type == MANIFEST:
            if descriptor.platform is not None and descriptor.platform.architecture:
                _check_platform(descriptor.platform.os, descriptor.platform.architecture)
            return descriptor
        index = _document(layout, descriptor, Index)
        fitting = _of_platform(index.manifests)
        if not fitting:
            _refuse_platforms(index.manifests)
        descriptor = fitting[0]
    raise HostileImageError(f"The image's indexes are nested more than {_DEEPEST_INDEX} deep.")


def _of_platform(manifests: tuple[Descriptor, ...]) -> list[Descriptor]:
    """Those for this machine; failing that, indexes that do not say, which may hold one."""
    fitting = [each for each in manifests if each.platform is not None and _fits(each.platform.os, each.platform.architecture)]
    return fitting or [each for each in manifests if each.platform is None and each.media_type == INDEX]


def _refuse_platforms(manifests: tuple[Descriptor, ...]) -> None:
    known = sorted({f"{each.platform.os}/{each.platform.architecture}" for each in manifests if each.platform is not None})
    raise UnsupportedError(
        f"The image is not made for {OS}/{ARCHITECTURE}, only for {', '.join(known)[:500] or 'nothing it names'}.",
        remedy="Use an image for x86-64.",
        reason="WrongArchitecture",
    )


def _fits(system: str, architecture: str) -> bool:
    return (system, architecture) == (OS, ARCHITECTURE)


def _check_platform(system: str, architecture: str) -> None:
    if not _fits(system, architecture):
        raise UnsupportedError(
            f"The image is made for {system or 'an unnamed system'}/{architecture or 'an unnamed architecture'}, "
            f"and this machine runs {OS}/{ARCHITECTURE}.",
            remedy="Use an image for x86-64.",
            reason="WrongArchitecture",
        )


def _check_type(descriptor: Descriptor, known: tuple[str, ...], what: str) -> None:
    if descriptor.media_type not in known:
        raise UnsupportedError(
            f"The image has a {what} of the kind {descriptor.media_type[:120]!r}, which is not read here.",
            remedy="Make it an OCI image with tar or gzip layers, e.g. with `skopeo copy --format oci`.",
        )


def _document(layout: Path, descriptor: Descriptor, kind: type[T]) -> T:
    """Read a JSON blob and hold it against its descriptor."""
    path = blob_path(layout, descriptor.digest)
    try:
        data = _read(path)
    except FileNotFoundError as error:
        raise CorruptImageError(
            f"The layout {layout} lacks the blob {descriptor.digest[:19]}... that its index names."
        ) from error
    if len(data) != descriptor.size or f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
        raise CorruptImageError(f"The blob {descriptor.digest[:19]}... of {layout} is not what its digest says.")
    return _decode(data, kind, f"blob {descriptor.digest[:19]}...")


def _read(path: Path) -> bytes:
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(_LARGEST_DOCUMENT + 1)
    if len(data) > _LARGEST_DOCUMENT:
        raise HostileImageError(f"The document {path.name} is larger than {_LARGEST_DOCUMENT >> 20} MiB.")
    return data


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PermanentError(
            f"The image's {what} is not the document that it should be ({error}).", reason="CorruptImage"
        ) from error
