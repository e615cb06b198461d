"""The pure parts of the image driver: references, apt configuration, command lines, what programs' last words mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.drivers.images_local.apt import Sources, select_settings, select_sources
from primordia.drivers.images_local.config import overlay
from primordia.drivers.images_local.debian import (
    BUILDER,
    DebianPlan,
    Distribution,
    explain_build,
    mmdebstrap_argv,
    plan,
    read_distribution,
)
from primordia.drivers.images_local.discard import mounts_below
from primordia.drivers.images_local.disk import TreeSize, disk_bytes, root_argv
from primordia.drivers.images_local.hostile import CorruptImageError
from primordia.drivers.images_local.oci import explain_pull, skopeo_argv
from primordia.drivers.images_local.reference import LayoutReference, RegistryReference, parse_reference
from primordia.kit.errors import CapacityError, InvalidError, NotFoundError, PermanentError, TemporaryError, UnsupportedError
from primordia.wire.resources import DebianSource, EnvVar, ImageConfig

DIGEST = "sha256:" + "ab" * 32
BOOKWORM = Distribution("debian", "bookworm")


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "name", "written"),
    [
        ("redis", "redis", "redis:latest"),
        ("redis:7", "redis", "redis:7"),
        ("example.org:5000/a/b-c:v1.2_x", "example.org:5000/a/b-c", "example.org:5000/a/b-c:v1.2_x"),
        ("localhost/x", "localhost/x", "localhost/x:latest"),
        ("[::1]:5000/x:1", "[::1]:5000/x", "[::1]:5000/x:1"),
        (f"redis:7@{DIGEST}", "redis", f"redis@{DIGEST}"),
        (f"127.0.0.1:5000/x@{DIGEST}", "127.0.0.1:5000/x", f"127.0.0.1:5000/x@{DIGEST}"),
    ],
)
def test_registry_references(text: str, name: str, written: str) -> None:
    reference = parse_reference(text)
    assert isinstance(reference, RegistryReference)
    assert reference.name == name
    assert str(reference) == written


def test_layout_references() -> None:
    assert parse_reference("oci:/a/b:v1") == LayoutReference(Path("/a/b"), "v1")
    assert parse_reference("oci:/a/b") == LayoutReference(Path("/a/b"), "")
    assert parse_reference("oci:/a:b/c") == LayoutReference(Path("/a:b/c"), "")


BAD_REFERENCES = [
    *("", " ", "redis 7", "Redis", "redis:", "redis:a b", "redis@sha256:12", f"redis@{DIGEST}0", "redis@", "-x", "--help"),
    *("a//b", "../x", "/x", "x/../y", "oci:relative", "oci:", "oci:/x:-bad", "x" * 5000, "redis\n", "redis:\x00", "http://x/y"),
]


@pytest.mark.parametrize("text", BAD_REFERENCES)
def test_bad_references(text: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_reference(text)
    assert refused.value.field == "spec.oci.reference"


# ---------------------------------------------------------------- what runs


def test_overlay_follows_docker() -> None:
    source = ImageConfig(
        entrypoint=("/e",), cmd=("c",), env=(EnvVar(name="A", value="1"), EnvVar(name="B")), working_dir="/w", user="u"
    )
    assert overlay(source, ImageConfig()) == source
    assert overlay(source, ImageConfig(cmd=("d",))).entrypoint == ("/e",)
    assert overlay(source, ImageConfig(cmd=("d",))).cmd == ("d",)
    assert overlay(source, ImageConfig(entrypoint=("/f",))).cmd is None
    assert overlay(source, ImageConfig(entrypoint=(), cmd=("d",))).entrypoint == ()
    merged = overlay(source, ImageConfig(env=(EnvVar(name="A", value="2"), EnvVar(name="C", value="3")))).env
    assert merged == (EnvVar(name="A", value="2"), EnvVar(name="B"), EnvVar(name="C", value="3"))


# ---------------------------------------------------------------- apt

DEB822 = """\
# a comment
Types: deb
# another
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://vendor.test
Suites: nodistro
Components: main

Types: deb-src
URIs: http://mirror.test/source
Suites: bookworm

Enabled: no
Types: deb
URIs: http://off.test
Suites: bookworm
"""


def test_only_the_distributions_own_sources_are_used() -> None:
    own = "deb http://one.test/debian bookworm main\ndeb [arch=amd64 signed-by=/k] http://two.test/x bookworm-security main\n"
    others = "# deb http://off.test x\ndeb-src http://src.test bookworm main\ndeb http://vendor.test stable-vendor main\n"
    chosen = select_sources([own, others], [DEB822], "bookworm")
    assert chosen.one_line == own
    assert "mirror.test/debian" in chosen.deb822
    assert " .\n abc" in chosen.deb822
    for word in ("vendor", "source", "off.test", "#"):
        assert word not in chosen.deb822


def test_sources_of_other_names_are_all_used_when_there_are_no_own() -> None:
    assert "company" in select_sources(["deb http://company.test frozen-2026 main"], [], "bookworm").one_line
    assert select_sources([], [], "bookworm") == Sources("", "")


def test_aliases_of_a_suite_are_its_own() -> None:
    assert (
        select_sources(["deb http://a.test stable main", "deb http://b.test odd main"], [], "bookworm").one_line.count("deb ")
        == 1
    )


def test_only_settings_of_fetching_are_kept() -> None:
    wanted = 'Acquire::http::Proxy "http://p:1";\nAcquire::Retries "3";\n'
    assert select_settings(f'APT::Architecture "amd64";\n{wanted}Dir::Etc "x";\nAcquire::Languages:: "none";\n') == wanted


# ---------------------------------------------------------------- packages


def test_a_plan_is_named_by_what_it_depends_on() -> None:
    one = plan(DebianSource(packages=("bb", "a2", "bb")), BOOKWORM)
    assert one.packages == ("a2", "bb")
    assert one.key == plan(DebianSource(packages=("a2", "bb")), BOOKWORM).key
    others = [
        plan(DebianSource(packages=("a2",)), BOOKWORM),
        plan(DebianSource(packages=("a2", "bb")), Distribution("debian", "trixie")),
        plan(DebianSource(packages=("a2", "bb")), Distribution("ubuntu", "bookworm")),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4
    assert BUILDER >= 1


@pytest.mark.parametrize(
    "name",
    ["", "a", "-o", "Redis", "redis;rm", "re dis", "?name(x)", "./x.deb", "/x", "redis-", "a,b", "x" * 300, "a=1", "a\n"],
)
def test_names_that_are_no_packages(name: str) -> None:
    with pytest.raises(InvalidError) as refused:
        plan(DebianSource(packages=("redis-server", name)), BOOKWORM)
    assert refused.value.field == "spec.debian.packages[1]"


def test_no_package_or_too_many() -> None:
    for packages in ((), ("ab",) * 501):
        with pytest.raises(InvalidError):
            plan(DebianSource(packages=packages), BOOKWORM)


def test_the_distribution_is_read_or_refused() -> None:
    assert read_distribution('ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian"\n') == BOOKWORM
    assert read_distribution("ID=ubuntu\nVERSION_CODENAME=noble\n") == Distribution("ubuntu", "noble")
    for text in ("", 'ID=fedora\nPRETTY_NAME="Fedora Linux 42"\n', "ID=debian\n", "ID=debian\nVERSION_CODENAME=../x\n"):
        with pytest.raises(UnsupportedError, match="OCI image"):
            read_distribution(text)


def test_the_command_of_a_build() -> None:
    sources = Sources("deb http://x bookworm main\n", "")
    argv = mmdebstrap_argv(
        DebianPlan(BOOKWORM, ("redis-server",)), Path("/w/tree"), Path("/w/in"), sources, merged_usr_hook=True
    )
    assert argv[-3:] == ["bookworm", "/w/tree", "/w/in/apt.list"]
    assert {"--mode=root", "--variant=essential", "--include=redis-server", "--aptopt=/w/in/apt.conf"} <= set(argv)
    alone = mmdebstrap_argv(
        DebianPlan(BOOKWORM, ("busybox-static",)), Path("/t"), Path("/i"), Sources("", "x"), merged_usr_hook=True
    )
    assert "--variant=extract" in alone
    assert not any(word.startswith("--hook-dir") for word in alone)
    assert alone[-1] == "/i/apt.sources"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("E: Unable to locate package nosuch", NotFoundError),
        ("E: Package 'old' has no installation candidate", NotFoundError),
        ("E: Failed to fetch http://x  Could not resolve 'x'", TemporaryError),
        ("Err:1 http://x  Temporary failure resolving 'x'", TemporaryError),
        ("dpkg: error: cannot copy: No space left on device", CapacityError),
        ("E: Sub-process returned an error code", PermanentError),
        ("", PermanentError),
    ],
)
def test_what_apt_says_and_means(words: str, kind: type[Exception]) -> None:
    error = explain_build(words, DebianPlan(BOOKWORM, ("nosuch",)), Path("/cache"))
    assert type(error) is kind


# ---------------------------------------------------------------- registries


def test_the_command_of_a_pull() -> None:
    reference = parse_reference("x.test/a:1")
    assert isinstance(reference, RegistryReference)
    argv = skopeo_argv(reference, Path("/w/pulled"), tls_verify=False, policy=False)
    assert argv[-2:] == ["docker://x.test/a:1", "oci:/w/pulled:image"]
    assert "--insecure-policy" in argv
    assert "--src-tls-verify=false" in argv
    strict = skopeo_argv(reference, Path("/w/pulled"), tls_verify=True, policy=True)
    assert "--insecure-policy" not in strict
    assert "--src-tls-verify=true" in strict


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("reading manifest 7 in x.test/a: manifest unknown: manifest unknown", NotFoundError),
        ("Error reading manifest: name unknown: repository name not known to registry", NotFoundError),
        ("unauthorized: authentication required", PermanentError),
        ("requested access to the resource is denied", PermanentError),
        ("dial tcp 127.0.0.1:1: connect: connection refused", TemporaryError),
        ("dial tcp: lookup x.test: no such host", TemporaryError),
        ("http: server gave HTTP response to HTTPS client", InvalidError),
        ("x509: certificate signed by unknown authority", PermanentError),
        ("happened during read: Digest did not match, expected sha256:a, got sha256:b", CorruptImageError),
        ('no image found in manifest list for architecture amd64, variant "", OS linux', UnsupportedError),
        ("writing blob: no space left on device", CapacityError),
        ("something new", PermanentError),
        ("", PermanentError),
    ],
)
def test_what_skopeo_says_and_means(words: str, kind: type[Exception]) -> None:
    reference = RegistryReference("x.test/a", "7", "")
    assert type(explain_pull(words, reference, Path("/cache"))) is kind


# ---------------------------------------------------------------- disks


def test_a_disk_has_room_to_spare() -> None:
    for size in (TreeSize(4096, 1), TreeSize(10**9, 50_000), TreeSize(4096, 300_000)):
        whole = disk_bytes(size)
        assert whole % 2**20 == 0
        assert whole >= size.content_bytes + size.inodes * 256 + 8 * 2**20


def test_a_disk_is_named_by_its_digest_alone() -> None:
    one = root_argv(Path("/d"), Path("/t"), "sha256:1", 10)
    assert one == root_argv(Path("/d"), Path("/t"), "sha256:1", 10)
    assert one != root_argv(Path("/d"), Path("/t"), "sha256:2", 10)


def test_mounts_below_a_folder_are_told_from_its_neighbours() -> None:
    text = (
        "22 1 0:21 / / rw - ext4 /dev/vda rw\n"
        "30 22 0:5 / /w/a rw shared:1 - proc proc rw\n"
        "31 30 0:5 / /w/a/tree/dev rw - tmpfs t rw\n"
        "32 31 0:5 / /w/a/tree/dev/pts\\040x rw - devpts d rw\n"
        "33 22 0:5 / /w/ab rw - proc proc rw\n"
    )
    assert mounts_below(Path("/w/a"), text) == ["/w/a/tree/dev/pts x", "/w/a/tree/dev", "/w/a"]
    assert mounts_below(Path("/w/a/tree/dev/pts"), text) == []
