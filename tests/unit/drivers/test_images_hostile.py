"""Each hostile layer here is refused by one rule; without that rule its test fails."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile

import pytest

from primordia.drivers.images_local.hostile import CorruptImageError, HostileImageError, ImageScan, Limits
from primordia.drivers.images_local.layer_stream import scan_layer
from primordia.kit.errors import CapacityError, PermanentError
from primordia.testing.images import Layer, small_layer


def scan(*layers: Layer | bytes, limits: Limits | None = None, compressed: bool = False) -> ImageScan:
    judge = ImageScan(limits or Limits())
    for layer in layers:
        data = layer if isinstance(layer, bytes) else layer.tar()
        read(judge, gzip.compress(data) if compressed else data, compressed=compressed)
    return judge


def read(judge: ImageScan, blob: bytes, *, compressed: bool, digest: str = "") -> None:
    named = digest or f"sha256:{hashlib.sha256(blob).hexdigest()}"
    scan_layer(judge, io.BytesIO(blob), compressed=compressed, size_bytes=len(blob), digest=named)


def test_an_honest_layer_passes_and_is_counted() -> None:
    judge = scan(small_layer(), small_layer(), compressed=True)
    assert judge.entries == 14
    assert judge.unpacked_bytes == 2 * len(small_layer().tar())


HONEST = {
    "an absolute link alone": Layer().symlink("etc/localtime", "/usr/share/zoneinfo/UTC"),
    "a climbing link alone": Layer().symlink("a/b", "../../../../x"),
    "through a relative link": Layer().folder("usr/bin").symlink("bin", "usr/bin").add("bin/tool", b"x"),
    "a link up and down inside": Layer().folder("a/b").symlink("a/c", "../d").add("a/c/file"),
    "a hard link to a link": Layer().symlink("one", "/etc").hardlink("two", "one"),
    "a fifo": Layer().add("pipe", kind=tarfile.FIFOTYPE),
    "an overlay whiteout": Layer().add("gone", kind=tarfile.CHRTYPE, devmajor=0, devminor=0),
    "whiteouts": Layer().add("d/.wh.gone").add("d/.wh..wh..opq"),
    "the root itself": Layer().folder("./").add("./etc/motd"),
    "a long name": Layer().add("/".join(["x" * 250] * 15)),
    "names that are not UTF-8": Layer().add("caf\udce9", b"x"),
    "a dot dot in a name": Layer().add("etc/..data").add("a..b"),
}


@pytest.mark.parametrize("layer", HONEST.values(), ids=HONEST.keys())
def test_honest(layer: Layer) -> None:
    assert scan(layer).entries > 0


HOSTILE = {
    "climbs": (Layer().add("../evil"), "'..'"),
    "climbs inside": (Layer().add("a/../../evil"), "'..'"),
    "climbs and returns": (Layer().add("a/../b"), "'..'"),
    "absolute": (Layer().add("/etc/passwd"), "absolute"),
    "hard link climbs": (Layer().hardlink("a", "../../etc/shadow"), "'..'"),
    "hard link absolute": (Layer().hardlink("a", "/etc/shadow"), "absolute"),
    "hard link through a link": (Layer().symlink("a", "/etc").hardlink("b", "a/shadow"), "symbolic link"),
    "file through an absolute link": (Layer().symlink("a", "/etc").add("a/evil", b"x"), "symbolic link"),
    "folder through an absolute link": (Layer().symlink("a", "/etc").folder("a/b"), "symbolic link"),
    "link through an absolute link": (Layer().symlink("a", "/etc").symlink("a/b", "x"), "symbolic link"),
    "through a climbing link": (Layer().folder("d").symlink("d/a", "../../etc").add("d/a/evil"), "leads out"),
    "through two links": (Layer().symlink("b", "/etc").symlink("a", "b").add("a/evil"), "symbolic link"),
    "through links in a ring": (Layer().symlink("a", "b").symlink("b", "a").add("a/evil"), "symbolic link"),
    "through another name of a link": (Layer().symlink("a", "/etc").hardlink("b", "a").add("b/evil"), "symbolic link"),
    "over a link of its own": (Layer().symlink("a", "/etc/passwd").add("a", b"evil"), "overwrites"),
    "hides a link of its own": (Layer().symlink("a", "/etc").add(".wh.a").add("a/evil"), "hides"),
    "hides a folder itself": (Layer().add("d/.wh.."), "hides"),
    "hides a parent": (Layer().add("d/.wh..."), "hides"),
    "a block device": (Layer().add("sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0), "device"),
    "a character device": (Layer().add("mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1), "device"),
    "a block device 0, 0": (Layer().add("z", kind=tarfile.BLKTYPE, devmajor=0, devminor=0), "device"),
    "a contiguous file": (Layer().add("c", kind=tarfile.CONTTYPE), "kind"),
    "a name too long": (Layer().add("/".join(["x" * 250] * 16)), "file system"),
    "a part too long": (Layer().add("x" * 256), "255"),
    "a target too long": (Layer().symlink("a", "/".join(["x" * 250] * 17)), "file system"),
    "too deep": (Layer().add("/".join("x" * 257)), "deep"),
    "a root that is a link": (Layer().symlink("./", "/etc"), "root"),
    "an impossible owner": (Layer().add("a", pax_headers={"uid": str(2**32 - 1)}), "owner"),
    "a zero in a name": (Layer().add("a", pax_headers={"path": "evil\0.txt"}), "file system"),
    "a sparse file": (Layer().add("a", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "99"}), "kind"),
}


@pytest.mark.parametrize(("layer", "word"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "gzip"])
def test_hostile(layer: Layer, word: str, compressed: bool) -> None:
    with pytest.raises(HostileImageError, match=word) as refused:
        scan(layer, compressed=compressed)
    assert refused.value.reason == "HostileImage"


def test_a_link_of_a_lower_layer_is_remembered() -> None:
    with pytest.raises(HostileImageError, match="symbolic link"):
        scan(Layer().symlink("a", "/etc"), Layer().add("a/evil"))


@pytest.mark.parametrize(
    "between",
    [Layer().add(".wh.a"), Layer().folder("a"), Layer().symlink("a", "b")],
    ids=["hidden", "replaced by a folder", "replaced by a harmless link"],
)
def test_a_link_that_is_gone_does_not_count(between: Layer) -> None:
    assert scan(Layer().symlink("a", "/etc"), between, Layer().add("a/file")).entries == 3


def test_too_many_entries() -> None:
    layers = [Layer().add("a").add("b"), Layer().add("c").add("d")]
    assert scan(*layers, limits=Limits(entries=4)).entries == 4
    with pytest.raises(HostileImageError, match="more than 3 entries"):
        scan(*layers, limits=Limits(entries=3))


def test_too_large_over_all_layers() -> None:
    layers = [Layer().add("a", bytes(40_000)), Layer().add("b", bytes(40_000))]
    scan(*layers, limits=Limits(unpacked_bytes=200_000))
    with pytest.raises(CapacityError, match="larger than"):
        scan(*layers, limits=Limits(unpacked_bytes=70_000))


def test_a_bomb_is_stopped_early() -> None:
    bomb = Layer().add("zeros", bytes(8_000_000))
    limits = Limits(ratio=200, ratio_floor_bytes=1_000_000)
    with pytest.raises(HostileImageError, match="bombs"):
        scan(bomb, limits=limits, compressed=True)
    scan(bomb, limits=limits, compressed=False)


def test_a_bomb_after_the_archive_counts_too() -> None:
    with pytest.raises(HostileImageError, match="bombs"):
        scan(Layer().add("a").tar() + bytes(8_000_000), limits=Limits(ratio_floor_bytes=1_000_000), compressed=True)


def test_a_huge_extension_header_is_not_read() -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**9
    with pytest.raises(HostileImageError, match="header of"):
        scan(header.tobuf() + bytes(10_240))


def test_an_old_sparse_header_is_refused() -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(HostileImageError, match="kind"):
        scan(header.tobuf() + bytes(10_240))


def test_a_broken_header_is_not_the_end() -> None:
    """tarfile alone would stop there without a word, and what follows would go unseen."""
    data = bytearray(Layer().add("a").add("b").add("c").tar())
    data[512] ^= 0xFF
    with pytest.raises(CorruptImageError, match="header"):
        scan(bytes(data))


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "gzip"])
def test_every_flipped_byte_is_seen(compressed: bool) -> None:
    blob = small_layer().tar()
    blob = gzip.compress(blob, mtime=0) if compressed else blob
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    for place in range(0, len(blob), max(1, len(blob) // 97)):
        damaged = bytearray(blob)
        damaged[place] ^= 0x55
        with pytest.raises(CorruptImageError):
            read(ImageScan(Limits()), bytes(damaged), compressed=compressed, digest=digest)


@pytest.mark.parametrize("compressed", [False, True], ids=["tar", "gzip"])
def test_a_layer_cut_short_is_corrupt(compressed: bool) -> None:
    blob = Layer().add("a", bytes(range(256)) * 200).tar()
    blob = gzip.compress(blob) if compressed else blob
    with pytest.raises(CorruptImageError):
        read(ImageScan(Limits()), blob[: len(blob) // 2], compressed=compressed)


def test_a_longer_blob_than_described_is_corrupt() -> None:
    blob = small_layer().tar()
    with pytest.raises(CorruptImageError, match="digest"):
        scan_layer(
            ImageScan(Limits()),
            io.BytesIO(blob + bytes(512)),
            compressed=False,
            size_bytes=len(blob),
            digest=f"sha256:{hashlib.sha256(blob + bytes(512)).hexdigest()}",
        )


def test_a_blob_without_end_is_not_read_to_it() -> None:
    class Endless(io.BytesIO):
        given = 0

        def read(self, size: int | None = -1) -> bytes:
            assert self.given < 10_000_000, "still reading"
            self.given += size or 0
            return super().read(size) or bytes(size or 0)

    blob = small_layer().tar()
    with pytest.raises(CorruptImageError):
        scan_layer(ImageScan(Limits()), Endless(blob), compressed=False, size_bytes=len(blob), digest="sha256:")


def test_a_compressed_layer_without_its_checksum_is_corrupt() -> None:
    blob = gzip.compress(small_layer().tar())
    with pytest.raises(CorruptImageError, match="too early"):
        read(ImageScan(Limits()), blob[:-8], compressed=True)


def test_damage_that_looks_like_malice_is_called_damage() -> None:
    blob = Layer().add("/etc/passwd").tar()
    with pytest.raises(CorruptImageError, match="digest"):
        read(ImageScan(Limits()), blob, compressed=False, digest="sha256:" + "0" * 64)


def test_several_gzip_members_are_one_layer() -> None:
    data = small_layer().tar()
    blob = gzip.compress(data[:1000]) + gzip.compress(data[1000:])
    judge = ImageScan(Limits())
    read(judge, blob, compressed=True)
    assert judge.entries == 7


def test_what_is_no_archive_at_all_is_corrupt() -> None:
    for blob in (b"", b"hello", bytes(100)):
        with pytest.raises(CorruptImageError):
            read(ImageScan(Limits()), blob, compressed=False)
        with pytest.raises(CorruptImageError):
            read(ImageScan(Limits()), blob, compressed=True)


def test_every_refusal_is_permanent() -> None:
    assert issubclass(HostileImageError, PermanentError)
    assert issubclass(CorruptImageError, PermanentError)
