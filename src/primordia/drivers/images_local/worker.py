"""The heavy or dangerous reading, in a process of its own: `python -m ...worker scan|digest`, JSON in and out.

A stranger's archive is read by Python's tarfile at the speed of one core; done inside the daemon it would slow every
other context, and a flaw in the reading would be the daemon's. The worker has a limit on its memory, writes nothing, and
is killed with its group when the caller is cancelled.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import msgspec

from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError, ImageScan, Limits
from primordia.drivers.images_local.layer_stream import scan_layer
from primordia.drivers.images_local.oci_layout import LAYER_GZIP, Descriptor, blob_path, open_regular
from primordia.drivers.images_local.tree import tree_digest
from primordia.kit.command import CommandError, run
from primordia.kit.errors import CapacityError, PermanentError

_MEMORY_BYTES = 1024**3
_KINDS: dict[str, type[PermanentError]] = {kind.__name__: kind for kind in (PermanentError, CapacityError)}


class ScanRequest(msgspec.Struct, frozen=True):
    layout: str
    layers: tuple[Descriptor, ...]
    limits: Limits


class DigestRequest(msgspec.Struct, frozen=True):
    tree: str
    config: bytes


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the worker found, or the error that it met."""

    digest: str = ""
    entries: int = 0
    unpacked_bytes: int = 0
    error: str = ""
    kind: str = ""
    remedy: str = ""
    reason: str = ""


async def scan_layers(layout: Path, layers: tuple[Descriptor, ...], limits: Limits) -> Answer:
    """Judge all layers of an image. Raises the scan's errors."""
    return await _ask("scan", msgspec.json.encode(ScanRequest(str(layout), layers, limits)))


async def digest_tree(tree: Path, config: bytes) -> str:
    """`tree_digest`, outside this process."""
    return (await _ask("digest", msgspec.json.encode(DigestRequest(str(tree), config)))).digest


async def _ask(what: str, request: bytes) -> Answer:
    argv = [sys.executable, "-m", __name__, what]
    try:
        done = await run(argv, stdin=request, timeout_s=1800)
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except (CommandError, msgspec.DecodeError) as error:
        words = error.stderr if isinstance(error, CommandError) else str(error)
        told = (words.strip() or str(error)).splitlines()[-1][:300]
        raise PermanentError(
            f"The image worker could not {what} ({told}).", remedy="This is a defect; please report it."
        ) from error
    if answer.error:
        raise _KINDS.get(answer.kind, PermanentError)(answer.error, remedy=answer.remedy, reason=answer.reason)
    return answer


def answer(what: str, request: bytes) -> Answer:
    """What the worker answers to one request."""
    try:
        if what == "scan":
            return _scan(msgspec.json.decode(request, type=ScanRequest))
        wanted = msgspec.json.decode(request, type=DigestRequest)
        return Answer(digest=tree_digest(Path(wanted.tree), wanted.config))
    except MemoryError:
        return _failed(HostileImageError("Reading the image takes more memory than any honest image needs."))
    except OSError as error:
        return _failed(PermanentError(f"{error.filename or 'The image'} cannot be read ({error.strerror or error})."))
    except PermanentError as error:
        return _failed(error)


def _failed(error: PermanentError) -> Answer:
    kind = CapacityError if isinstance(error, CapacityError) else PermanentError
    return Answer(error=error.message, kind=kind.__name__, remedy=error.remedy, reason=error.reason)


def _scan(request: ScanRequest) -> Answer:
    scan = ImageScan(request.limits)
    for layer in request.layers:
        try:
            descriptor = open_regular(blob_path(Path(request.layout), layer.digest))
        except FileNotFoundError as error:
            raise CorruptImageError(f"The layer {layer.digest[:19]}... is missing.") from error
        with os.fdopen(descriptor, "rb") as blob:
            compressed = layer.media_type == LAYER_GZIP
            scan_layer(scan, blob, compressed=compressed, size_bytes=layer.size, digest=layer.digest)
    return Answer(entries=scan.entries, unpacked_bytes=scan.unpacked_bytes)


def main() -> None:
    """Read a request, write the answer."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.stdout.buffer.write(msgspec.json.encode(answer(sys.argv[1], sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
