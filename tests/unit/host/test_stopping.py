"""Ending nodes: with the engine only where something of it stays."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from primordia.host.stopping import stop_nodes
from primordia.kit.paths import SoupPaths
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE


class Supervisor:
    """As far as `down` goes: its daemon ends at once, its engine server never by itself."""

    def __init__(self, place: Path) -> None:
        self.engine_is_ending = threading.Event()
        self.engine_has_ended = threading.Event()
        self._server = control.listen(place)
        self._server.setblocking(True)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        control.receive(connection)
        control.held(connection, timeout_s=60)
        self.engine_is_ending.set()
        self.engine_has_ended.wait(60)
        control.answer(connection, {"ok": True})

    def close(self) -> None:
        self._thread.join(60)
        self._server.close()


async def test_without_the_engine_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMORDIA_RUN", str(tmp_path / "run"))
    here = SoupPaths.of("s").node("n1")
    here.run.mkdir(parents=True)
    supervisor, said = Supervisor(here.run / SOCKET_FILE), []
    await stop_nodes([here], said.append, engine=False)
    assert said == ["stop microVMs and daemons"]
    assert supervisor.engine_is_ending.wait(60) and not supervisor.engine_has_ended.is_set()
    supervisor.engine_has_ended.set()
    supervisor.close()


async def test_with_it_the_end_of_its_servers_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMORDIA_RUN", str(tmp_path / "run"))
    here = SoupPaths.of("s").node("n1")
    here.run.mkdir(parents=True)
    supervisor, said = Supervisor(here.run / SOCKET_FILE), []
    supervisor.engine_has_ended.set()
    await stop_nodes([here], said.append)
    assert said == ["stop microVMs and daemons", "stop the engine"] and supervisor.engine_is_ending.is_set()
    supervisor.close()
