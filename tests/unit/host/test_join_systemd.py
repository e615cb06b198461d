"""The systemd unit: what it promises, and that systemd understands it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from primordia.host import systemd
from primordia.kit.command import run
from primordia.kit.paths import SoupPaths

PACKAGED = Path(__file__).resolve().parents[3] / "packaging" / systemd.UNIT


def test_the_packaged_unit_is_the_one_that_is_installed() -> None:
    assert PACKAGED.read_text() == systemd.unit(systemd.INSTALLED_PYTHON)


def test_it_ends_the_supervisor_alone_and_starts_it_always() -> None:
    lines = systemd.unit("/usr/bin/python3").splitlines()
    for wanted in ("KillMode=process", "Restart=always", "Delegate=yes", "WantedBy=multi-user.target"):
        assert wanted in lines
    assert "ExecStart=/usr/bin/python3 -m primordia.supervisor /var/lib/primordia/%i/node.json" in lines
    assert "Environment=PYTHONPATH=/src" in systemd.unit("/usr/bin/python3", "/src").splitlines()
    assert systemd.instance("default") == "primordia-node@default.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
async def test_systemd_understands_it(tmp_path: Path) -> None:
    place = tmp_path / systemd.UNIT
    place.write_text(systemd.unit(sys.executable, "/src"))
    done = await run(["systemd-analyze", "verify", str(place)], check=False)
    assert done.status == 0, done.stderr
    assert str(place) not in done.stderr.decode()  # no warning about it either
    place.write_text(place.read_text().replace("KillMode=process", "KillMode=nonsense"))
    done = await run(["systemd-analyze", "verify", str(place)], check=False)
    assert str(place) in done.stderr.decode()  # the check can fail


def test_only_a_soup_at_the_usual_place_is_systemds(tmp_path: Path) -> None:
    assert not systemd.usable(SoupPaths(tmp_path / "default", tmp_path / "run"))


def test_the_link_leads_to_the_node_and_follows_it(tmp_path: Path) -> None:
    paths = SoupPaths(tmp_path / "default", tmp_path / "run")
    paths.state.mkdir()
    for name in ("a", "b", "b"):
        systemd.link(paths, paths.node(name).config)
        assert (paths.state / "node.json").readlink() == paths.node(name).config
