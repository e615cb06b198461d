"""Fresh seeds each time, of both worlds, and some that have found something. One that fails prints how to see it again."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from dataclasses import replace

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
SEEDS = [_CHANCE.randrange(2**32) for _ in range(50)]
_OF_MACHINES = SEEDS[34:]
_CONTROL = Profile(duration_s=120, lifeforms=30)
_SURVIVAL = SurvivalProfile(duration_s=60, lifeforms=5, harm_every_s=5)
# What these have found is said in docs/design/0005.
_FOUND_WITHOUT = (Harm.HEIR_BEHIND, Harm.ENGINE_QUORUM, Harm.DISK_ROT, Harm.DISK_FULL)
_LESS = replace(_SURVIVAL, kinds=tuple(kind for kind in Harm if kind not in _FOUND_WITHOUT))
_FOUND = (910055434, 910150462, 910237571, 910372194, 50047)


@pytest.mark.parametrize("seed", SEEDS[:34], ids=lambda seed: f"seed-{seed}")
def test_a_fresh_seed_violates_nothing(seed: int) -> None:
    result = simulate(seed, _CONTROL)
    assert not result.violations, "\n".join([*explain(result), f"  here: with {_CONTROL}"])
    assert result.commits > 100 and sum(result.faults.values()) > 3


@pytest.mark.parametrize("seed", _OF_MACHINES, ids=lambda seed: f"seed-{seed}")
def test_machines_that_die_lose_and_double_nothing(seed: int) -> None:
    result = survive(seed, _SURVIVAL)
    assert not result.violations, "\n".join([*explain(result, "survival"), f"  here: with {_SURVIVAL}"])
    assert result.commits > 30


@pytest.mark.parametrize("seed", _FOUND)
def test_what_a_seed_has_found_is_mended(seed: int) -> None:
    result = survive(seed, _LESS)
    assert not result.violations, "\n".join([*explain(result, "survival"), f"  here: with {_LESS}"])


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


def test_a_new_leader_does_not_declare_the_first_of_many_dead() -> None:
    """It had heard of one lease alone, that of the leader before it."""
    result = survive(7000831, SurvivalProfile(duration_s=Profile().duration_s / 2))
    assert not result.violations, "\n".join(explain(result, "survival"))
