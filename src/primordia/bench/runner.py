"""Benchmarks by name: each on the ground it is given, each giving figures."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence

from primordia.bench import api, boot, data, density, exec, failover, fork, idle, locality, ready, scale
from primordia.bench.figures import Figure
from primordia.bench.ground import ONE_NODE, Ground, Progress, ground
from primordia.host.shape import Shape
from primordia.kit.paths import SoupPaths

Measure = Callable[[Ground, int, Progress], Awaitable[list[Figure]]]
MeasureAlone = Callable[[int, Progress], Awaitable[list[Figure]]]

# Idle first: what it measures must not remember the others.
BENCHES: dict[str, Measure] = {
    "idle": idle.measure,
    "api": api.measure,
    "exec": exec.measure,
    "boot": boot.measure,
    "fork": fork.measure,
    "density": density.measure,
    "data": data.measure,
    "locality": locality.measure,
    "ready": ready.measure,
}

ALONE: dict[str, MeasureAlone] = {"failover": failover.measure, "scale": scale.measure}
"""Those that bring their own world, and spare every other soup."""

SHAPES: dict[str, Shape] = {
    "ready": Shape(nodes=6, racks=3, segments=2),
    "locality": Shape(nodes=2, racks=2),
    "data": Shape(nodes=3, racks=3),
}
"""The soups of those that one node is not enough for."""

BOOTING = frozenset({"boot", "fork"})
"""Those whose lifeforms must boot, and not start as forks: it is what they measure, or measure against."""


LARGE_POOL = 5 << 30


async def run(names: Sequence[str], soup: str, shape: Shape, rounds: int, progress: Progress) -> list[tuple[str, list[Figure]]]:
    """The figures of each benchmark, on one soup for each shape that is needed. Raises PrimordiaError."""
    done = []
    wanted = [name for name in BENCHES if name in names or "all" in names]
    for (there, templates), group in grounds(wanted, soup, shape):
        pool_bytes = _pool_bytes(group, there)
        async with ground(soup, progress, there, templates=templates, pool_bytes=pool_bytes) as here:
            for name in group:
                done.append((name, await BENCHES[name](here, rounds, progress)))
    for name in [name for name in ALONE if name in names or "all" in names]:
        done.append((name, await ALONE[name](rounds, progress)))
    return done


def _pool_bytes(group: Sequence[str], shape: Shape) -> int:
    """The size of each node's pool where one of them copies much and the disk has room for it; else 0, the usual one."""
    if "data" not in group:
        return 0
    there = SoupPaths.of("bench").state
    place = next(each for each in (there, *there.parents) if each.exists())
    return LARGE_POOL if shutil.disk_usage(place).free >= 2 * (shape.nodes or 1) * LARGE_POOL else 0


def grounds(wanted: Sequence[str], soup: str, shape: Shape) -> Iterator[tuple[tuple[Shape, bool], list[str]]]:
    """Which benchmarks share which soup: the one that runs, or one of the shape asked for, or of the shape that each needs.

    With each shape comes whether lifeforms may start as forks there.
    """
    groups: dict[tuple[Shape, bool], list[str]] = {}
    for name in wanted:
        if soup:
            groups.setdefault((shape, True), []).append(name)
        else:
            there = shape if shape != ONE_NODE else SHAPES.get(name, ONE_NODE)
            groups.setdefault((there, name not in BOOTING), []).append(name)
    yield from groups.items()
