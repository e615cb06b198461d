"""Unix sockets in folders with long names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from primordia.kit.unix import short_address
from primordia.supervisor import control


def test_a_path_longer_than_an_address_is_bound_and_connected(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    with control.listen(folder / "s") as listener, socket.socket(socket.AF_UNIX) as client:
        with short_address(folder / "s") as address:
            client.connect(address)
        listener.accept()[0].close()
    with pytest.raises(ConnectionRefusedError):
        control.ask(folder / "s", "status")


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), short_address(tmp_path / "none/s"):
        raise AssertionError
