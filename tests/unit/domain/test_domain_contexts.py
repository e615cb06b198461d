"""The decision about one context: a table of situations, and a proof that every cut-off walk ends where it should."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from primordia.domain.contexts import (
    Action,
    Attach,
    Close,
    Discard,
    Failure,
    Finish,
    Remove,
    Rest,
    Run,
    Seen,
    Start,
    Stop,
    Wish,
    decide,
    still_wanted,
)

WISH = Wish(fingerprint="a")
RUNNING = Run("a", "running")
UP = Seen(run=RUNNING, machine=True, guest=True, main="running")
FAILURE = Failure("a", 1, 50.0, "ImageUnavailable", "no such image")


@pytest.mark.parametrize(
    ("wish", "seen", "expected"),
    [
        (WISH, Seen(), Start("Created", "it is new")),
        (WISH, UP, Rest("Running")),
        (WISH, replace(UP, guest=False), Attach("its agent is not connected")),
        (WISH, replace(UP, main=None), Attach("its agent is not connected")),
        (WISH, replace(UP, main="ended"), Finish("its main program ended")),
        (WISH, replace(UP, main="none"), Discard("its main program was never started")),
        (WISH, replace(UP, run=replace(RUNNING, phase="starting")), Discard("its start was cut off")),
        (WISH, replace(UP, run=None), Discard("its start was cut off")),
        (WISH, replace(UP, run=replace(RUNNING, phase="ended")), Finish("its run is over")),
        (replace(WISH, fingerprint="b"), UP, Stop("SpecChanged", "its spec changed")),
        (replace(WISH, running=False), UP, Stop("Resumed", "it is suspended")),
        (replace(WISH, running=False), Seen(run=RUNNING), Close("it is suspended")),
        (replace(WISH, running=False), Seen(run=Run("a", "stopped")), Rest("Stopped")),
        (replace(WISH, running=False), Seen(), Rest("Stopped")),
        (replace(WISH, deleted=True), UP, Stop(None, "the context is deleted")),
        (replace(WISH, deleted=True), Seen(), Remove("the context is deleted")),
        (replace(WISH, exists=False), Seen(run=RUNNING), Remove("the context is deleted")),
        # Without a machine
        (WISH, Seen(run=Run("a", "stopped", next_because="Resumed")), Start("Resumed", "it is wanted again")),
        (WISH, Seen(run=Run("a", "stopped", next_because="SpecChanged")), Start("SpecChanged", "it is wanted again")),
        (WISH, Seen(run=Run("b", "stopped", next_because="Resumed")), Start("Resumed", "its spec changed")),
        (WISH, Seen(run=Run("b", "ended", exit_code=1, ends=9)), Start("SpecChanged", "its spec changed")),
        (WISH, Seen(run=Run("a", "starting", because="Resumed")), Start("Resumed", "its start was cut off")),
        (WISH, Seen(run=Run("a", "starting", same_boot=False)), Start("NodeRestarted", "the node restarted")),
        (WISH, Seen(run=replace(RUNNING, same_boot=False)), Start("NodeRestarted", "the node restarted")),
        (replace(WISH, restart_policy="Never"), Seen(run=replace(RUNNING, same_boot=False)), Finish("the node restarted")),
        (WISH, Seen(run=RUNNING), Finish("its microVM is gone")),
        (WISH, Seen(run=Run("a", "ended", exit_code=1, ends=1, ended_s=10)), Start("Restarted", "its program ended")),
        (WISH, Seen(run=Run("a", "ended", exit_code=1, ends=3, ended_s=10)), Rest("BackOff", "RestartBackOff", "", 30)),
        (WISH, Seen(run=Run("a", "ended", exit_code=1, ends=3, ended_s=0)), Start("Restarted", "its program ended")),
        (WISH, Seen(run=Run("a", "ended", ends=9, ended_s=9, same_boot=False)), Start("Restarted", "its program ended")),
        (replace(WISH, restart_policy="Never"), Seen(run=Run("a", "ended", exit_code=0)), Rest("Succeeded")),
        (replace(WISH, restart_policy="Never"), Seen(run=Run("a", "ended", exit_code=1)), Rest("Failed")),
        (replace(WISH, restart_policy="OnFailure"), Seen(run=Run("a", "ended", exit_code=0)), Rest("Succeeded")),
        (WISH, Seen(failure=FAILURE), Rest("BackOff", "ImageUnavailable", "no such image", 50.0)),
        (WISH, Seen(failure=replace(FAILURE, next_s=20)), Start("Created", "it is new")),
        (WISH, Seen(failure=replace(FAILURE, fingerprint="b")), Start("Created", "it is new")),
        # The registry has not been read
        (replace(WISH, known=False), Seen(), Rest("Pending", "StoreUnavailable", "The registry has not been read yet.")),
        (replace(WISH, known=False, exists=False), UP, Rest("Running")),
        (replace(WISH, known=False), replace(UP, guest=False), Attach("its agent is not connected")),
        (replace(WISH, known=False), Seen(run=RUNNING), Finish("its microVM is gone")),
    ],
)
def test_decisions(wish: Wish, seen: Seen, expected: Action) -> None:
    assert decide(wish, seen, 20.0) == expected


def test_only_starting_and_attaching_are_broken_off() -> None:
    start = Start("Created", "")
    assert still_wanted(start, WISH, "a")
    assert not still_wanted(start, replace(WISH, fingerprint="b"), "a")
    assert not still_wanted(start, replace(WISH, running=False), "a")
    assert not still_wanted(Attach(""), replace(WISH, deleted=True), "a")
    assert still_wanted(Stop(None, ""), replace(WISH, deleted=True), "a")


def effects(action: Action, wish: Wish, seen: Seen) -> list[Seen]:
    """The states that the action passes through; the last is what it leads to. A crash may leave any of them."""
    run = seen.run
    if isinstance(action, Start):
        begun = Run(wish.fingerprint, "starting", action.because)
        return [
            replace(seen, run=begun),
            replace(seen, run=begun, machine=True),
            replace(seen, run=begun, machine=True, guest=True, main="none"),
            replace(seen, run=begun, machine=True, guest=True, main="running"),
            replace(seen, run=replace(begun, phase="running"), machine=True, guest=True, main="running"),
        ]
    if isinstance(action, Attach):
        return [replace(seen, guest=True, main="running")]
    if isinstance(action, Stop):
        assert run is not None
        stopped = replace(run, phase="stopped", next_because=action.next_because)
        return [replace(seen, run=stopped), Seen(run=stopped)]
    if isinstance(action, Discard):
        return [replace(seen, machine=False, guest=False, main=None)]
    if isinstance(action, Close):
        assert run is not None
        return [replace(seen, run=replace(run, phase="stopped", next_because="Resumed"))]
    if isinstance(action, Finish):
        assert run is not None
        over = run if run.phase in ("ended", "stopped") else replace(run, phase="ended", exit_code=1, ends=run.ends + 1)
        return [replace(seen, run=over), Seen(run=over)]
    if isinstance(action, Remove):
        return [Seen()]
    return [seen]


def settle(wish: Wish, seen: Seen) -> Seen:
    """Walk without interruption until there is nothing more to do."""
    for _ in range(20):
        action = decide(wish, seen, 1e9)
        if isinstance(action, Rest | Remove):
            return seen if isinstance(action, Rest) else Seen()
        seen = effects(action, wish, seen)[-1]
    raise AssertionError(f"{seen} does not settle")


WISHES = [
    WISH,
    replace(WISH, fingerprint="b"),
    replace(WISH, running=False),
    replace(WISH, deleted=True),
    replace(WISH, restart_policy="Never"),
]


def goal_reached(wish: Wish, seen: Seen) -> bool:
    if wish.removed:
        return seen == Seen()
    if not wish.running:
        return not seen.machine
    if seen.machine:
        return seen.main == "running" and seen.run is not None and seen.run.fingerprint == wish.fingerprint
    return wish.restart_policy == "Never" and seen.run is not None and seen.run.phase == "ended"


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("machine_dies", [False, True])
@pytest.mark.parametrize("reboot", [False, True])
def test_every_interrupted_prefix_reaches_the_goal(wish: Wish, machine_dies: bool, reboot: bool) -> None:
    """From a fresh context, a running one and an ended one: cut after every step, twice over, then let it settle."""
    begin = [
        Seen(),
        UP,
        Seen(run=Run("a", "ended", exit_code=1, ends=1)),
        Seen(run=Run("a", "stopped", next_because="Resumed")),
    ]
    reached: set[Seen] = set()
    frontier = list(begin)
    while frontier:
        seen = frontier.pop()
        if seen in reached:
            continue
        reached.add(seen)
        action = decide(wish, seen, 1e9)
        for state in effects(action, wish, seen):
            # A daemon that dies forgets its connections; the host or the VMM may go with it.
            lost = replace(state, guest=False, main=None)
            if machine_dies or reboot:
                lost = replace(lost, machine=False)
            if reboot and lost.run is not None:
                lost = replace(lost, run=replace(lost.run, same_boot=False))
            if len(reached) < 400 and (lost.run is None or lost.run.ends < 4):
                frontier += [state, lost]
    for seen in reached:
        assert goal_reached(wish, settle(wish, seen)), seen


def test_all_combinations_are_decided() -> None:
    phases = ["starting", "running", "ended", "stopped"]
    runs = [None, *(Run(f, p, same_boot=b) for f, p, b in itertools.product("ab", phases, (True, False)))]  # type: ignore[arg-type]
    for wish, run, machine, guest in itertools.product(WISHES, runs, (True, False), (True, False)):
        for main in (None, "none", "running", "ended"):
            decide(wish, Seen(run, machine, machine and guest, main if machine and guest else None), 5.0)
