"""The controller's plan for a lifeform, the phase it shows, and its readiness."""

from __future__ import annotations

import pytest

from primordia.domain.lifeforms import (
    Change,
    Claim,
    Create,
    Drop,
    Member,
    Place,
    Present,
    Release,
    Step,
    Wanted,
    phase_of,
    plan,
    readiness,
)

W = Wanted(False, True, "n1", {"redis": "r1", "exporter": "e1"})
BOTH = {"redis": Present("r1"), "exporter": Present("e1")}


def wanted(**change: object) -> Wanted[str]:
    return Wanted(**{"deleting": False, "claimed": True, "node": "n1", "specs": W.specs, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "present", "steps"),
    [
        (wanted(claimed=False, node=""), {}, (Place(),)),
        (wanted(claimed=False), {}, (Claim(),)),
        (wanted(node=""), {}, (Place(),)),
        (W, {}, (Create(("redis", "exporter"), "the lifeform wants them"),)),
        (W, BOTH, ()),
        (W, {"redis": Present("r0"), "exporter": Present("e1")}, (Change(("redis",), "the lifeform's spec changed"),)),
        (W, {"redis": Present("r1")}, (Create(("exporter",), "the lifeform wants them"),)),
        (W, {**BOTH, "old": Present("o1")}, (Drop(("old",), "the lifeform no longer has them"),)),
        (W, {**BOTH, "old": Present("o1", deleting=True)}, ()),
        # One of them is on its way out: its new self has to wait, and so do the others.
        (W, {"redis": Present("r1", deleting=True)}, ()),
        (W, {"redis": Present("r1", foreign=True)}, (Drop(("redis",), "an earlier lifeform of this name left them"),)),
        (wanted(deleting=True), BOTH, (Drop(("exporter", "redis"), "the lifeform is deleted"),)),
        (wanted(deleting=True), {"redis": Present("r1", deleting=True)}, ()),
        (wanted(deleting=True), {}, (Release(),)),
        (wanted(deleting=True), {"redis": Present("r1", foreign=True)}, (Release(),)),
        (wanted(deleting=True, claimed=False), {}, ()),
    ],
)
def test_plans(wish: Wanted[str], present: dict[str, Present[str]], steps: tuple[Step, ...]) -> None:
    assert plan(wish, present) == steps


def members(*phases: str, ready: bool = True) -> list[Member]:
    return [Member(f"c{index}", phase, ready) for index, phase in enumerate(phases)]


@pytest.mark.parametrize(
    ("phases", "flags", "expected"),
    [
        ((), {"placed": False}, "Pending"),
        ((), {}, "Starting"),
        (("Running", "Booting"), {}, "Starting"),
        (("Running", "BackOff"), {}, "Starting"),
        (("Running", "Running"), {}, "Running"),
        (("Running",), {"complete": False}, "Starting"),
        (("Running", "Succeeded"), {}, "Running"),
        (("Succeeded", "Succeeded"), {}, "Succeeded"),
        (("Running", "Failed"), {}, "Failed"),
        (("Running",), {"deleting": True}, "Terminating"),
        (("Stopped",), {"suspended": True}, "Suspended"),
        ((), {"suspended": True}, "Suspended"),
        (("Stopping",), {"suspended": True}, "Running"),
    ],
)
def test_phases(phases: tuple[str, ...], flags: dict[str, bool], expected: str) -> None:
    state = {"deleting": False, "suspended": False, "placed": True, "complete": True, **flags}
    assert phase_of(members=members(*phases), **state) == expected


def test_readiness_names_the_first_that_is_not() -> None:
    assert readiness("Running", members("Running", "Running")).status == "True"
    verdict = readiness(
        "Starting", [Member("a", "Running", True), Member("b", "BackOff", False, "RestartBackOff", "Exit code 1.")]
    )
    assert (verdict.status, verdict.reason, verdict.message) == ("False", "RestartBackOff", "b: Exit code 1.")
    assert readiness("Suspended", members("Stopped", ready=False)).reason == "Suspended"
