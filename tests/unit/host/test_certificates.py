"""Certificates that end: made anew by `up` in time, and told by the doctor before they do."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest

from primordia.host import certificates, credentials
from primordia.host.shape import Shape, plan_nodes
from primordia.host.soup import SoupFile, write_soup
from primordia.kit import pki
from primordia.kit.paths import SoupPaths

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
SOUP = SoupFile(name="t", uid="u" * 8, slot=0, pod_cidr="10.128.0.0/9", nodes=plan_nodes(Shape(2, 2)), created_by_version="0")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoupPaths:
    monkeypatch.setenv("PRIMORDIA_STATE", str(tmp_path))
    made = SoupPaths.of(SOUP.name)
    write_soup(made, SOUP)
    credentials.ensure(SOUP, made)
    return made


def files(paths: SoupPaths) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(paths.state.rglob("*.crt"))}


def with_days(paths: SoupPaths, days: int) -> Path:
    """One node's certificate, good for so long yet."""
    home, here = paths.state / "pki", paths.node("n1").pki
    authority = pki.KeyPair.read(home / "ca.crt", home / "ca.key")
    pki.issue(authority, "n1", days=days).write(here / "node.crt", here / "node.key")
    return here / "node.crt"


def test_up_keeps_those_that_last_and_renews_those_that_do_not(paths: SoupPaths) -> None:
    before = files(paths)
    credentials.ensure(SOUP, paths)
    assert files(paths) == before
    short = with_days(paths, 200)
    credentials.ensure(SOUP, paths)
    assert pki.expires(short.read_bytes()) > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=800)
    pki.KeyPair.read(short, short.with_suffix(".key"))
    assert {path for path, content in files(paths).items() if content != before[path]} == {short}


def test_the_doctor_warns_in_time(paths: SoupPaths) -> None:
    (well,) = certificates.look()
    assert well.level == "ok" and "soup t" in well.message
    short = with_days(paths, 20)
    (warned,) = certificates.look()
    assert warned.level == "warn" and str(short) in warned.message and "primordia up" in warned.remedy
    (paths.state / "soup.json").write_text("{")
    assert certificates.look() == ()


@pytest.mark.parametrize(("days", "level"), [(61, "ok"), (59, "warn"), (1, "warn"), (-1, "fail")])
def test_what_is_said_is_what_ends_first(days: int, level: str) -> None:
    ends = {Path("/a.crt"): NOW + datetime.timedelta(days=days), Path("/b.crt"): NOW + datetime.timedelta(days=800)}
    said = certificates.check(SOUP, ends, NOW)
    assert said.level == level and (level == "ok" or "/a.crt" in said.message)


def test_a_machine_that_joined_joins_again() -> None:
    joined = msgspec.structs.replace(SOUP, joined=True)
    said = certificates.check(joined, {Path("/a.crt"): NOW}, NOW)
    assert said.level == "fail" and "join again" in said.remedy
