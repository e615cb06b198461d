"""Round trips, and everything that a hostile guest could put into a tar stream."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primordia.cli import tarballs
from primordia.cli.tarballs import HostileTarError
from primordia.kit.errors import PermanentError

Fill = Callable[[tarfile.TarFile], None]


def _member(name: str, kind: bytes = tarfile.REGTYPE, *, content: bytes = b"", link: str = "", mode: int = 0o644) -> Fill:
    def fill(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode, info.size = kind, link, mode, len(content)
        archive.addfile(info, io.BytesIO(content))

    return fill


def _tar(*fills: Fill) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for fill in fills:
            fill(archive)
    buffer.seek(0)
    return buffer


FOLDER = _member("data", tarfile.DIRTYPE, mode=0o755)


def test_round_trip_with_odd_names_links_and_modes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / ("n" * 200)).mkdir(parents=True)
    (source / "deep" / ("n" * 200) / "ü\n 'x'").write_bytes(b"content")
    (source / "program").write_bytes(b"#!")
    (source / "program").chmod(0o755)
    (source / "empty").mkdir()
    (source / "link").symlink_to("deep")
    os.link(source / "program", source / "same")
    os.mkfifo(source / "pipe")
    buffer = io.BytesIO()
    tarballs.pack(source, "other-name", buffer)
    buffer.seek(0)
    target = tmp_path / "target"
    done = tarballs.unpack(buffer, target)
    assert done.written == len(b"content") + len(b"#!")
    assert (target / "deep" / ("n" * 200) / "ü\n 'x'").read_bytes() == b"content"
    assert stat.S_IMODE((target / "program").stat().st_mode) == 0o755
    assert (target / "link").readlink() == Path("deep")
    assert (target / "same").samefile(target / "program")
    assert (target / "empty").is_dir()
    assert not (target / "pipe").exists()


def test_a_single_file_gets_the_name_that_was_asked_for(tmp_path: Path) -> None:
    tarballs.unpack(_tar(_member("hosts", content=b"x")), tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"x"


def test_a_stream_of_contents_is_the_folder_itself(tmp_path: Path) -> None:
    tarballs.unpack(_tar(_member(".", tarfile.DIRTYPE, mode=0o755), _member("./a", content=b"x")), tmp_path / "copied")
    assert (tmp_path / "copied" / "a").read_bytes() == b"x"


def test_what_is_there_stays_and_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    (tmp_path / "data" / "a").write_text("old")
    tarballs.unpack(_tar(FOLDER, _member("data/a", content=b"new")), tmp_path / "data")
    assert (tmp_path / "data" / "mine").read_text() == "mine"
    assert (tmp_path / "data" / "a").read_text() == "new"


def test_a_read_only_folder_takes_its_files_first(tmp_path: Path) -> None:
    tarballs.unpack(_tar(_member("data", tarfile.DIRTYPE, mode=0o555), _member("data/a", content=b"x")), tmp_path / "data")
    assert (tmp_path / "data" / "a").exists()


def test_set_uid_and_world_writable_bits_go(tmp_path: Path) -> None:
    tarballs.unpack(_tar(_member("su", content=b"x", mode=0o6777)), tmp_path / "su")
    assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "fills",
    [
        (_member("/etc/passwd", content=b"x"),),
        (FOLDER, _member("../evil", content=b"x")),
        (FOLDER, _member("data/../../evil", content=b"x")),
        (FOLDER, _member("elsewhere/evil", content=b"x")),
        (FOLDER, _member("data/here", tarfile.SYMTYPE, link="."), _member("data/here/evil", content=b"x")),
        (_member("data", tarfile.SYMTYPE, link="/tmp"), _member("data/evil", content=b"x")),
        (FOLDER, _member("data/same", tarfile.LNKTYPE, link="/etc/passwd")),
        (FOLDER, _member("data/same", tarfile.LNKTYPE, link="data/missing")),
        (FOLDER, _member("data/same", tarfile.LNKTYPE, link="../secret")),
        (FOLDER, _member("data/disk", tarfile.BLKTYPE)),
        (FOLDER, _member("data/null", tarfile.CHRTYPE)),
        (FOLDER, _member("data/pipe", tarfile.FIFOTYPE)),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, fills: tuple[Fill, ...]) -> None:
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "inside" / "data"
    target.parent.mkdir()
    with pytest.raises(HostileTarError) as refusal:
        tarballs.unpack(_tar(*fills), target)
    assert refusal.value.remedy
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "inside"}
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("link", ["/", "/etc/passwd", "..", "../..", "a/../../..", "a/..", "x/../y"])
def test_links_that_lead_out_are_left_out(tmp_path: Path, link: str) -> None:
    fills = (FOLDER, _member("data/out", tarfile.SYMTYPE, link=link), _member("data/out/a", content=b"x"))
    done = tarballs.unpack(_tar(*fills), tmp_path / "data")
    assert done.left_out == ["data/out"]
    assert (tmp_path / "data" / "out" / "a").read_bytes() == b"x"
    assert not (tmp_path / "data" / "out").is_symlink()


def test_links_within_stay(tmp_path: Path) -> None:
    fills = (FOLDER, _member("data/sub", tarfile.DIRTYPE, mode=0o755), _member("data/sub/up", tarfile.SYMTYPE, link="../a"))
    assert tarballs.unpack(_tar(*fills), tmp_path / "data").left_out == []
    assert (tmp_path / "data" / "sub" / "up").readlink() == Path("../a")


def test_an_endless_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    with pytest.raises(HostileTarError, match="header"):
        tarballs.unpack(io.BytesIO(info.tobuf() + bytes(4096)), tmp_path / "x")


def test_a_stream_that_ends_early_is_an_error(tmp_path: Path) -> None:
    whole = _tar(FOLDER, _member("data/a", content=b"x" * 100_000)).getvalue()
    with pytest.raises(PermanentError):
        tarballs.unpack(io.BytesIO(whole[:50_000]), tmp_path / "data")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(st.sampled_from("ab./\\"), min_size=1, max_size=8), max_size=6), links=st.data())
def test_nothing_ever_lands_outside(tmp_path_factory: pytest.TempPathFactory, names: list[str], links: st.DataObject) -> None:
    base = tmp_path_factory.mktemp("fuzz")
    fills = [FOLDER]
    for name in names:
        kind = links.draw(st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]))
        link = links.draw(st.text(st.sampled_from("ab./"), max_size=6)) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        fills.append(_member(f"data/{name}", kind, content=b"x" if kind == tarfile.REGTYPE else b"", link=link))
    target = base / "inside" / "data"
    target.parent.mkdir()
    with contextlib.suppress(PermanentError, OSError):
        tarballs.unpack(_tar(*fills), target)
    assert [path.name for path in base.iterdir()] == ["inside"]
    assert {path.name for path in (base / "inside").iterdir()} <= {"data"}
    for path in target.rglob("*"):
        with contextlib.suppress(OSError):  # a loop of links, or one that leads nowhere
            assert _opened(path).is_relative_to(target.resolve())


def _opened(path: Path) -> Path:
    """Where the kernel, not Python's idea of it, gets to by that path."""
    descriptor = os.open(path, os.O_PATH)
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    finally:
        os.close(descriptor)
