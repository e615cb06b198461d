"""Roots from OCI images: skopeo fetches, our own scan judges, umoci unpacks.

Whatever is unpacked has been read to its end before, against its digests and our rules. The unpacker gets a layout of
our own making, with one image in it and the blobs by reference; it checks the digests again, so a layout that somebody
changes in between is refused, not believed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from primordia.drivers.images_local.disk import full, has_no_room, says_full, want_room
from primordia.drivers.images_local.hostile import CorruptImageError, Limits
from primordia.drivers.images_local.oci_layout import ARCHITECTURE, MANIFEST, OS, REF_NAME, OciImage
from primordia.drivers.images_local.reference import RegistryReference
from primordia.drivers.images_local.worker import scan_layers
from primordia.kit.command import run
from primordia.kit.errors import InvalidError, NotFoundError, PermanentError, PrimordiaError, TemporaryError, UnsupportedError

BUILDER = 1  # counts changes of what an unpacking leaves
PULLED_TAG = "image"
_POLICIES = (Path("/etc/containers/policy.json"), Path("/root/.config/containers/policy.json"))


def reference_key(reference: RegistryReference) -> str:
    """The cache's key for what a name in a registry gave."""
    return _key("reference", str(reference))


def manifest_key(digest: str) -> str:
    """The cache's key for what a manifest gave; it never changes its meaning."""
    return _key("manifest", digest)


def _key(kind: str, name: str) -> str:
    return hashlib.sha256(msgspec.json.encode(("oci", BUILDER, OS, ARCHITECTURE, kind, name))).hexdigest()


def skopeo_argv(reference: RegistryReference, layout: Path, *, tls_verify: bool, policy: bool) -> list[str]:
    """Copy one image, for this architecture, into a layout. Without a signature policy on the machine, none applies."""
    argv = ["skopeo", "--override-os", OS, "--override-arch", ARCHITECTURE, "--tmpdir", str(layout.parent)]
    if not policy:
        argv.append("--insecure-policy")
    argv += ["copy", "--quiet", "--retry-times", "2", f"--src-tls-verify={'true' if tls_verify else 'false'}"]
    return [*argv, f"docker://{reference}", f"oci:{layout}:{PULLED_TAG}"]


async def pull(reference: RegistryReference, work: Path, *, tls_verify: bool, netns: int | None) -> Path:
    """Fetch an image into a layout below `work` and return that; its tag is PULLED_TAG.

    Raises NotFoundError, TemporaryError, UnsupportedError, CapacityError, PermanentError.
    """
    layout = work / "pulled"
    policy = any(path.is_file() for path in _POLICIES)
    argv = skopeo_argv(reference, layout, tls_verify=tls_verify, policy=policy)
    done = await run(argv, timeout_s=3600, netns=netns, check=False)
    if done.status != 0:
        raise explain_pull(done.stderr.decode(errors="replace"), reference, work)
    return layout


async def unpack(image: OciImage, layout: Path, work: Path, limits: Limits) -> Path:
    """Scan and unpack an image of a layout below `work`; returns the tree. Raises what the scan raises."""
    found = await scan_layers(layout, image.layers, limits)
    # Asked before, not after: on a disk that fills up umoci may die of a race of its own before it can say why.
    want_room(work, found.unpacked_bytes)
    tree = work / "tree"
    argv = ["umoci", "raw", "unpack", "--image", f"{pin(image, layout, work)}:{PULLED_TAG}", str(tree)]
    done = await run(argv, timeout_s=3600, check=False)
    if done.status != 0:
        raise explain_unpacking(done.stderr.decode(errors="replace"), work)
    tree.chmod(0o755)
    return tree


def explain_unpacking(words: str, folder: Path) -> PrimordiaError:
    """What umoci's words mean: the first line that is no progress is the sentence, a trace of its own source follows.

    The disk is asked too: on a full one umoci may die of a race between its hash and its writer, before it says why.
    """
    if says_full(words) or has_no_room(folder):
        return full(folder)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    sentence = next((line.strip(" \t\u2a2f") for line in lines if not line.startswith("\u2022")), "umoci said nothing")
    return PermanentError(f"The image cannot be unpacked ({sentence[:300]}).", reason="CorruptImage")


def pin(image: OciImage, layout: Path, work: Path) -> Path:
    """A layout that holds just that manifest, its blobs being those of `layout`."""
    pinned = work / "pinned"
    pinned.mkdir(mode=0o700)
    (pinned / "blobs").symlink_to((layout / "blobs").resolve())
    descriptor = {
        "mediaType": MANIFEST,
        "digest": image.manifest.digest,
        "size": image.manifest.size,
        "annotations": {REF_NAME: PULLED_TAG},
    }
    (pinned / "oci-layout").write_bytes(msgspec.json.encode({"imageLayoutVersion": "1.0.0"}))
    (pinned / "index.json").write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [descriptor]}))
    return pinned


def _corrupt(name: str, told: str) -> PrimordiaError:
    return CorruptImageError(f"What the registry sent for {name} is not what its digests say ({told}).")


def _architecture(name: str, told: str) -> PrimordiaError:
    return UnsupportedError(
        f"The image {name} is not made for {OS}/{ARCHITECTURE} ({told}).",
        remedy="Use an image for x86-64.",
        reason="WrongArchitecture",
    )


def _denied(name: str, told: str) -> PrimordiaError:
    return PermanentError(
        f"The registry gives {name} to nobody without a login, or has no such image ({told}).",
        remedy="Log in as root with `skopeo login`, or check the name.",
        reason="Unauthorized",
    )


def _missing(name: str, told: str) -> PrimordiaError:
    return NotFoundError(f"There is no image {name} ({told}).", remedy="Check its name and tag.")


def _plain_http(name: str, told: str) -> PrimordiaError:
    return InvalidError("spec.oci.tlsVerify", f"the registry of {name} speaks plain HTTP ({told})", remedy="Set it to false.")


def _certificate(name: str, told: str) -> PrimordiaError:
    return PermanentError(
        f"The certificate of the registry of {name} is not trusted ({told}).",
        remedy="Install its CA on this machine, or set spec.oci.tlsVerify to false.",
    )


def _unreachable(name: str, told: str) -> PrimordiaError:
    return TemporaryError(f"The registry of {name} cannot be reached ({told}).", retry_after_s=10)


# What skopeo says, and what it means; the first that is found counts.
_SIGNS: tuple[tuple[str, Callable[[str, str], PrimordiaError]], ...] = (
    (
        r"digest did not match|does not match.*digest|digest mismatch|unexpected EOF|corrupt|size mismatch|gzip: invalid",
        _corrupt,
    ),
    (r"no image found in (?:manifest list|image index)|choosing image instance", _architecture),
    (r"unauthorized|authentication required|denied", _denied),
    (r"manifest unknown|name unknown|repository name not known|not found|404", _missing),
    (r"server gave HTTP response to HTTPS client|first record does not look like a TLS handshake", _plain_http),
    (r"x509:|certificate", _certificate),
    (
        r"no such host|connection refused|i/o timeout|dial tcp|network is unreachable|EOF|50[0234]|too many requests",
        _unreachable,
    ),
)


def explain_pull(words: str, reference: RegistryReference, folder: Path) -> PrimordiaError:
    """What the words of a failed pull mean to the one who asked for it."""
    if says_full(words):
        return full(folder)
    told = (words.strip() or "skopeo said nothing").splitlines()[-1][-300:]
    for sign, meaning in _SIGNS:
        if re.search(sign, words, re.IGNORECASE):
            return meaning(str(reference), told)
    return PermanentError(f"The image {reference} cannot be pulled ({told}).")
