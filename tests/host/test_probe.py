"""A few cycles of `make probe`, through the same code: real faults, nothing acknowledged lost, nobody doubled."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.probe.cycles import POOL, SHAPE, Probe, chosen
from primordia.testing.soup import Many, many_nodes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

CYCLES, WITHIN_S = 5, 75.0


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(SHAPE, POOL) as built:
        yield built


async def test_whatever_happens_nothing_acknowledged_is_lost_and_nobody_writes_twice(soup: Many, tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    print(f"SEED={seed}")
    probe = Probe(soup, tmp_path, print)
    wrong = await probe.run(chosen(seed, CYCLES), WITHIN_S)
    print(probe.summary())
    assert not wrong, f"SEED={seed}: {wrong}"
    assert all(work.count() for work in probe.works)
