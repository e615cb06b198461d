"""For tests of images: a tiny real root, small OCI layouts (good and hostile), and a real registry on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gzip
import hashlib
import io
import json
import shutil
import socket
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primordia.drivers.images_local.busybox import furnish_busybox
from primordia.drivers.images_local.cache import Cache
from primordia.drivers.images_local.local import Built, LocalImages
from primordia.drivers.images_local.oci_layout import CONFIG, INDEX, LAYER_GZIP, LAYER_TAR, MANIFEST, REF_NAME
from primordia.kit.command import run
from primordia.kit.paths import cache_dir
from primordia.ports.images import RootImage
from primordia.wire.catalogue import builtin_image
from primordia.wire.resources import ImageConfig

# ---------------------------------------------------------------- a tiny root


async def busybox_root(cache: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> RootImage:
    """A root disk of nothing but busybox (two megabytes), made once for each cache.

    Of the machine's own busybox when that is static, in half a second; else of the distribution's package, in four.
    """
    images = LocalImages(cache or cache_dir())
    program = shutil.which("busybox")
    if program is not None and is_static(Path(program)):
        return await images.build(_key(Path(program)), lambda work: _busybox_tree(work, Path(program)), progress)
    image = builtin_image("busybox")
    assert image is not None
    return await images.ensure(image.spec, progress)


async def _busybox_tree(work: Path, program: Path) -> Built:
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(program, tree / "bin/busybox")
    await furnish_busybox(tree)
    return Built(tree, ImageConfig(cmd=("/bin/sh",), working_dir="/"), "the machine's own busybox")


def _key(program: Path) -> str:
    return hashlib.sha256(b"busybox" + program.read_bytes()).hexdigest()


def is_static(program: Path) -> bool:
    """Whether an x86-64 ELF program runs without an interpreter (has no PT_INTERP header)."""
    data = program.read_bytes()[:4096]
    if data[:5] != b"\x7fELF\x02":
        return False
    start, size, count = (int.from_bytes(data[at : at + width], "little") for at, width in ((32, 8), (54, 2), (56, 2)))
    headers = [data[start + index * size :][:4] for index in range(count)]
    return int.to_bytes(3, 4, "little") not in headers


# ---------------------------------------------------------------- mounts


def mount(kind: str, target: Path, *, source: Path | None = None, options: str = "") -> None:
    """mount(2), for machines without the program. `kind` is a file system, or `bind` with a `source`. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = 4096 if kind == "bind" else 0  # MS_BIND
    words = [str(word).encode() for word in (source or kind, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount {kind} on {target}")


def unmount(target: Path) -> None:
    """umount2(2) without flags. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(str(target).encode(), 0) != 0:
        raise OSError(ctypes.get_errno(), f"cannot unmount {target}")


# ---------------------------------------------------------------- OCI layouts


@dataclass
class Layer:
    """A tar archive under construction. `add` takes whatever a TarInfo can say, also what no honest tool writes."""

    entries: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def add(self, name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: Any) -> Layer:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mode = kind, len(content), 0o755 if kind == tarfile.DIRTYPE else 0o644
        for key, value in fields.items():
            setattr(info, key, value)
        self.entries.append((info, content))
        return self

    def folder(self, name: str) -> Layer:
        return self.add(name, kind=tarfile.DIRTYPE)

    def symlink(self, name: str, target: str) -> Layer:
        return self.add(name, kind=tarfile.SYMTYPE, linkname=target)

    def hardlink(self, name: str, target: str) -> Layer:
        return self.add(name, kind=tarfile.LNKTYPE, linkname=target)

    def tar(self) -> bytes:
        """The archive's bytes."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for info, content in self.entries:
                archive.addfile(info, io.BytesIO(content) if content else None)
        return buffer.getvalue()


class Layout:
    """An OCI image layout in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: list[dict[str, Any]] = []
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self._write_index()

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Store a blob; returns its descriptor."""
        hexdigest = hashlib.sha256(data).hexdigest()
        self.path(f"sha256:{hexdigest}").write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{hexdigest}", "size": len(data)}

    def path(self, digest: str) -> Path:
        return self.folder / "blobs/sha256" / digest.removeprefix("sha256:")

    def manifest(
        self,
        layers: Iterable[Layer | bytes],
        config: Mapping[str, Any] | None = None,
        *,
        architecture: str = "amd64",
        compress: bool = True,
        layer_type: str = "",
    ) -> dict[str, Any]:
        """Store an image with these layers (tar archives) and this runtime configuration; returns its descriptor."""
        tars = [layer if isinstance(layer, bytes) else layer.tar() for layer in layers]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        }
        kind = layer_type or (LAYER_GZIP if compress else LAYER_TAR)
        blobs = [self.blob(gzip.compress(tar, 6, mtime=0) if compress else tar, kind) for tar in tars]
        config_blob = self.blob(json.dumps(document).encode(), CONFIG)
        return self._document({"schemaVersion": 2, "mediaType": MANIFEST, "config": config_blob, "layers": blobs}, MANIFEST)

    def index(self, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Store an index over descriptors; returns its own."""
        return self._document({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}, INDEX)

    def tag(self, name: str, descriptor: dict[str, Any]) -> str:
        """Give a descriptor a name; returns the reference."""
        self._entries.append({**descriptor, "annotations": {REF_NAME: name}})
        self._write_index()
        return f"oci:{self.folder}:{name}"

    def _document(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(document).encode(), media_type)

    def _write_index(self) -> None:
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._entries}))


def platform(descriptor: dict[str, Any], architecture: str, system: str = "linux") -> dict[str, Any]:
    """The descriptor, saying for which platform it is."""
    return {**descriptor, "platform": {"architecture": architecture, "os": system}}


def small_layer() -> Layer:
    """A layer with a program's usual surroundings, a few bytes each."""
    layer = (
        Layer()
        .folder("etc")
        .add("etc/motd", b"hello\n")
        .folder("bin")
        .add("bin/tool", b"#!/bin/sh\n", mode=0o4755, uid=7, gid=8)
    )
    return layer.symlink("sbin", "bin").symlink("etc/link", "/etc/motd").hardlink("bin/tool2", "bin/tool")


# ---------------------------------------------------------------- a registry


@dataclass(frozen=True)
class LocalRegistry:
    """Debian's own registry server on the loopback, plain HTTP. `storage` is where it keeps blobs."""

    address: str
    storage: Path

    async def push(self, layout_reference: str, name: str) -> str:
        """Copy an image of a layout into the registry; returns its reference there."""
        argv = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
        await run([*argv, layout_reference, f"docker://{self.address}/{name}"], timeout_s=60)
        return f"{self.address}/{name}"

    def blob(self, digest: str) -> Path:
        """The file in which the registry keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"


async def packaged_program(package: str, program: str, folder: Path | None = None) -> Path:
    """A program of the distribution's package, unpacked (never installed) into a cache. `program` is its path below /."""
    place = (folder or cache_dir()) / "programs" / package
    if not (place / program).exists():
        cache = Cache(folder or cache_dir())
        cache.prepare()
        async with cache.workspace() as work:
            # The download user of apt cannot enter a private folder, and need not: root writes here.
            await run(
                ["env", "-C", str(work), "apt-get", "-o", "APT::Sandbox::User=root", "download", package],
                timeout_s=300,
            )
            (archive,) = work.glob("*.deb")
            await run(["dpkg-deb", "-x", str(archive), str(work / "tree")])
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another test run may have been first
                (work / "tree").rename(place)
    return place / program


@contextlib.asynccontextmanager
async def local_registry(folder: Path) -> AsyncIterator[LocalRegistry]:
    """Run a registry with its storage and configuration in `folder`; it has ended when the block is left."""
    storage, log = folder / "storage", folder / "registry.log"
    storage.mkdir(parents=True)
    program = await packaged_program("docker-registry", "usr/bin/docker-registry")
    address = f"127.0.0.1:{_free_port()}"
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\n"
        "log: {level: warn, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(program), "serve", str(config), stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL
        )
    try:
        await _answers(address, process, log)
        yield LocalRegistry(address, storage)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answers(address: str, process: asyncio.subprocess.Process, log: Path) -> None:
    host, _, port = address.partition(":")
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, log.read_text()
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            await writer.wait_closed()
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
