"""Ending nodes: with the engine only where something of it stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.host.stopping import stop_nodes
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.supervisor.main import SOCKET_FILE
from primordia.testing.down import HalfDown


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodePaths:
    monkeypatch.setenv("PRIMORDIA_RUN", str(tmp_path / "run"))
    made = SoupPaths.of("s").node("n1")
    made.run.mkdir(parents=True)
    return made


@pytest.fixture
def supervisor(here: NodePaths) -> Iterator[HalfDown]:
    made = HalfDown(here.run / SOCKET_FILE)
    yield made
    made.close()


async def test_without_the_engine_nobody_waits_for_it(here: NodePaths, supervisor: HalfDown) -> None:
    supervisor.may_end.clear()
    said: list[str] = []
    await stop_nodes([here], said.append, engine=False)
    assert said == ["stop microVMs and daemons"]
    assert supervisor.second_half.wait(60) and not supervisor.may_end.is_set()
    supervisor.may_end.set()


async def test_with_it_the_end_of_its_servers_is_waited_for(here: NodePaths, supervisor: HalfDown) -> None:
    said: list[str] = []
    await stop_nodes([here], said.append)
    assert said == ["stop microVMs and daemons", "stop the engine"] and supervisor.second_half.is_set()
