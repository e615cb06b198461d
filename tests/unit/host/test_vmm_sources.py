"""The user's package sources: both forms, what is kept, what is added."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.host.apt import library_path, user_sources
from primordia.host.apt_sources import Source, backports, newer, own_sources, parse_deb822, parse_one_line

DEBIAN = """\
# the mirror
Types: deb deb-src
URIs: http://deb.example.org/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.example.org/debian-security
Suites: bookworm-security
Components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
Enabled: no
URIs: http://off.example
Suites: bookworm
Components: main

Types: deb-src
URIs: http://src.example
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb http://archive.ubuntu.com/ubuntu/ noble main universe # comment
deb [arch=amd64,i386 signed-by=/etc/k.gpg] https://mirror.example/ubuntu noble-updates main
# deb http://off.example noble main
deb-src http://archive.ubuntu.com/ubuntu noble main
deb https://download.docker.com/linux/ubuntu noble stable
nonsense
"""


def test_stanzas() -> None:
    first, second = parse_deb822(DEBIAN)
    assert first.uris == ("http://deb.example.org/debian",)
    assert first.suites == ("bookworm", "bookworm-updates")
    assert first.options == (("Signed-By", "/usr/share/keyrings/debian-archive-keyring.gpg"),)
    assert "mQINBF" in dict(second.options)["Signed-By"]


def test_a_stanza_survives_being_written_again() -> None:
    for source in parse_deb822(DEBIAN):
        assert list(parse_deb822(source.render())) == [source]


def test_lines() -> None:
    plain, optioned, docker = parse_one_line(ONE_LINE)
    assert plain == Source(("http://archive.ubuntu.com/ubuntu/",), ("noble",), ("main", "universe"))
    assert dict(optioned.options) == {"Architectures": "amd64 i386", "Signed-By": "/etc/k.gpg"}
    assert docker.components == ("stable",)


def test_only_the_releases_own_are_kept() -> None:
    kept = own_sources(parse_one_line(ONE_LINE), "noble")
    assert [source.suites for source in kept] == [("noble",), ("noble-updates",)]
    foreign = Source(("http://x",), ("bookworm", "trixie", "bookwormish"), ("main",))
    assert own_sources([foreign, foreign], "bookworm") == (Source(("http://x",), ("bookworm",), ("main",)),)
    assert own_sources([Source(("http://x",), ("cloud-sdk-bookworm",), ("main",))], "bookworm") == ()


def test_backports_come_from_the_same_mirror_with_the_same_key() -> None:
    added = backports(own_sources(parse_deb822(DEBIAN), "bookworm"), "bookworm")
    assert added is not None
    assert added.uris == ("http://deb.example.org/debian",)
    assert added.suites == ("bookworm-backports",)
    assert dict(added.options)["Signed-By"].endswith("debian-archive-keyring.gpg")


def test_backports_that_are_there_are_not_added() -> None:
    assert backports([Source(("http://x",), ("bookworm", "bookworm-backports"), ("main",))], "bookworm") is None
    assert backports([Source(("http://x",), ("bookworm-security",), ("main",))], "bookworm") is None


def test_all_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a x main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text("Types: deb\nURIs: http://b\nSuites: x\nComponents: main\n")
    (tmp_path / "sources.list.d" / "c.list").write_text("deb http://c x main\n")
    (tmp_path / "sources.list.d" / "d.list.disabled").write_text("deb http://d x main\n")
    assert [source.uris[0] for source in user_sources(tmp_path)] == ["http://a", "http://b", "http://c"]


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [("10.0.2", "7.2", True), ("7.2", "10.0.2", False), ("8.2.2", "8.2.2", False), ("8.2", "", True), ("", "8.2", False)],
)
def test_versions_are_compared_as_numbers(first: str, second: str, answer: bool) -> None:
    assert newer(first, second) is answer


def test_libraries_are_found_in_either_lib(tmp_path: Path) -> None:
    for place in (
        "lib/x86_64-linux-gnu/liba.so.1",
        "usr/lib/x86_64-linux-gnu/libb.so.2",
        "usr/lib/qemu/accel.so",
        "usr/share/x",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert library_path(tmp_path).split(":") == [
        str(tmp_path / "lib/x86_64-linux-gnu"),
        str(tmp_path / "usr/lib/x86_64-linux-gnu"),
    ]
