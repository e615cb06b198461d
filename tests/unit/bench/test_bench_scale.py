"""The scale benchmark in small: what it measures happens, and what it says has the right names."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.bench import scale, scale_node
from primordia.wire.resources import Context, Lifeform


async def test_lifeforms_are_placed_told_of_and_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "NODES", 20)
    soup = scale.Soup(1)
    async with soup.running():
        assert await soup.place(60) > 0
        contexts = (await soup.registry.list(Context)).items
        assert len(contexts) == 60
        assert len({context.spec.node for context in contexts}) == 20
        assert await soup.tell(30, 1) > 0
        phases = [lifeform.status.phase for lifeform in (await soup.registry.list(Lifeform)).items]
        assert phases.count("Running") == 30
        taken_s, memory_mb = await soup.take_over()
        assert taken_s > 0 and 0.05 < memory_mb < 50


async def test_a_node_looks_at_all_of_its_contexts(tmp_path: Path) -> None:
    daemon = scale_node.Daemon(tmp_path)
    async with daemon.running():
        await daemon.fill(12)
        looked: list[str] = []
        for live in daemon.node.fleet.lives.values():
            monitor = live.wish
            live.wish = lambda live=live, monitor=monitor: (looked.append(live.uid), monitor())[1]  # type: ignore[method-assign]
        await daemon.node.look()
        assert sorted(set(looked)) == sorted(daemon.node.fleet.lives)


async def test_every_promised_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NODES", 10), ("LIFEFORMS", 40), ("FEW", 20), ("BATCH", 20), ("EVENTS", 10)):
        monkeypatch.setattr(scale, name, value)
    monkeypatch.setattr(scale_node, "CONTEXTS", 5)
    figures = {figure.name: figure for figure in await scale.measure(2, lambda line: None)}
    assert {
        "placements_per_s",
        "controller_memory_mb",
        "event_cost_ratio",
        "rack_loss_plan",
        "node_5000_contexts_tick",
        "node_5000_contexts_lag",
        "node_5000_contexts_memory_mb",
    } <= figures.keys()
    assert figures["event_cost_ratio"].baseline == 1.0
    assert figures["placements_per_s"].n == 2
