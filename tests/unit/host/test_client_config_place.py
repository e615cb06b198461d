"""Where `up` leaves the client's config is where the client looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primordia.client import config
from primordia.host.credentials import default_client_config


def test_both_sides_mean_the_same_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me = (os.geteuid(), os.getegid())
    monkeypatch.delenv("PRIMORDIA_CONFIG", raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_client_config(me) == config.default_path() == tmp_path / "primordia" / "config"
    monkeypatch.setenv("PRIMORDIA_CONFIG", str(tmp_path / "other"))
    assert default_client_config(me) == config.default_path() == tmp_path / "other"


def test_another_users_home_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PRIMORDIA_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tmp_path not in default_client_config((os.geteuid() + 1, 0)).parents
