"""Where the lifeforms of dead nodes go on, from what, and what they wait for."""

from __future__ import annotations

import dataclasses
from typing import Any

from primordia.domain.failover import AT_ONCE, plan
from primordia.domain.lost import Action, DeadNode, Held, Later, Lost, LostVolume, Park, PlaceAnew, Recover, SeedOnto, View
from primordia.domain.placement import Demand, NodeView
from primordia.domain.timings import Timings

GIB = 2**30
USUAL = Timings()
DIED_S = 1_000_000.0
NEED = Demand(1000, GIB, 1)
ROOM = Demand(8000, 8 * GIB, 100)


def place(name: str, **fields: Any) -> NodeView:
    return dataclasses.replace(NodeView(name, {}, True, False, ROOM, disk_free_bytes=100 * GIB), **fields)


def held(node: str, number: int, epoch: int = 1, at_s: float = DIED_S - 2, behind_s: float | None = None) -> Held:
    return Held(node, epoch, number, at_s, behind_s)


def volume(*copies: Held, name: str = "shop.main", **fields: Any) -> LostVolume:
    replicas = tuple(dict.fromkeys(each.node for each in copies))
    usual = LostVolume(name, GIB, GIB // 2, synced=(1, 10), replicas=replicas, held=copies)
    return dataclasses.replace(usual, **fields)


def lost(*volumes: LostVolume, name: str = "shop", **fields: Any) -> Lost:
    return dataclasses.replace(Lost("default", name, f"uid-{name}", "n1", demand=NEED, volumes=volumes), **fields)


def view(*nodes: NodeView, answered: tuple[str, ...] = ("n2", "n3", "n4"), **fields: Any) -> View:
    known = nodes or tuple(place(f"n{i}") for i in (2, 3, 4))
    dead = DeadNode("n1", 100.0, DIED_S, frozenset(answered))
    return dataclasses.replace(View({each.name: each for each in (place("n1", ready=False), *known)}, {"n1": dead}), **fields)


def one(wanted: Lost, seen: View | None = None, now: float = 100.0) -> Action:
    (action,) = plan([wanted], seen or view(), USUAL, now)
    return action


def test_the_newest_that_is_enough_wins_then_the_emptiest_then_the_name() -> None:
    chosen = one(lost(volume(held("n2", 10), held("n3", 12))))
    assert isinstance(chosen, Recover) and chosen.node == "n3"
    assert chosen.taken[0].held == held("n3", 12) and chosen.taken[0].synced_number == 10
    fuller = place("n2", used=Demand(0, 4 * GIB, 1))
    chosen = one(lost(volume(held("n2", 11), held("n3", 11))), view(fuller, place("n3")))
    assert isinstance(chosen, Recover) and chosen.node == "n3"


def test_a_higher_epoch_is_newer_than_any_number_of_an_older_one() -> None:
    """The tail of a node that was cut off has a higher number, and is not what was synced."""
    wanted = lost(volume(held("n2", 30, epoch=1), held("n3", 12, epoch=2), synced=(2, 11)))
    chosen = one(wanted)
    assert isinstance(chosen, Recover) and chosen.node == "n3"


def test_less_than_the_last_sync_is_never_taken_unasked() -> None:
    wanted = lost(volume(held("n2", 9)))
    parked = one(wanted)
    assert isinstance(parked, Park) and parked.reason == "WaitingForCopies"
    assert "snapshot 9" in parked.message and "10" in parked.message and "--allow-loss" in parked.message
    chosen = one(dataclasses.replace(wanted, allow_loss=True))
    assert isinstance(chosen, Recover) and not chosen.taken[0].sufficient


def test_a_sufficient_one_is_taken_before_a_loss_that_is_allowed() -> None:
    chosen = one(lost(volume(held("n2", 9), held("n3", 10)), allow_loss=True))
    assert isinstance(chosen, Recover) and chosen.node == "n3" and chosen.taken[0].sufficient


def test_all_volumes_come_from_one_node() -> None:
    pair = (volume(held("n2", 10), name="shop.a"), volume(held("n3", 10), name="shop.b"))
    parked = one(lost(*pair, allow_loss=True))
    assert isinstance(parked, Park) and "shop.a is on n2" in parked.message and "shop.b is on n3" in parked.message
    both = (volume(held("n2", 12), held("n3", 10), name="shop.a"), volume(held("n3", 10), name="shop.b"))
    chosen = one(lost(*both))
    assert isinstance(chosen, Recover) and chosen.node == "n3"
    assert [each.volume for each in chosen.taken] == ["shop.a", "shop.b"]


def test_one_volume_of_two_behind_its_sync_is_not_enough() -> None:
    pair = (volume(held("n2", 12), name="shop.a"), volume(held("n2", 9), name="shop.b"))
    assert isinstance(one(lost(*pair)), Park)


def test_those_who_should_know_are_waited_for_but_not_for_ever() -> None:
    wanted = lost(volume(held("n2", 10), replicas=("n2", "n3")))
    early = one(wanted, view(answered=("n2",)))
    assert isinstance(early, Later) and early.until_s == 100.0 + USUAL.holdings_wait_s and "n3" in early.message
    assert isinstance(one(wanted, view(answered=("n2",)), 101.6), Recover)
    away = view(place("n2"), place("n3", ready=False), answered=("n2",))
    assert isinstance(one(wanted, away), Recover), "one that is away is not waited for"


def test_holders_that_are_away_do_not_count_and_are_named() -> None:
    parked = one(lost(volume(held("n2", 10))), view(place("n2", ready=False), place("n3")))
    assert isinstance(parked, Park) and "n1 and n2" in parked.message


def test_no_copy_at_all() -> None:
    parked = one(lost(volume()))
    assert isinstance(parked, Park) and "waits for n1" in parked.message and "--allow-loss" in parked.message
    chosen = one(lost(volume(), allow_loss=True))
    assert isinstance(chosen, Recover) and chosen.taken[0].held is None and not chosen.taken[0].sufficient
    assert "an empty shop.main" in chosen.message


def test_what_may_be_lost_is_not_what_somebody_who_lives_has_not_named_yet() -> None:
    """Empty data was begun on the very node that had the copy, and was cut off from the engine for a moment."""
    empty = lost(volume(replicas=("n3",)), allow_loss=True)
    older = lost(volume(held("n2", 9), replicas=("n2", "n3")), allow_loss=True)
    for wanted in (empty, older):
        parked = one(wanted, view(answered=("n2", "n4")), 101.6)
        assert isinstance(parked, Park) and parked.reason == "WaitingForCopies" and "n3 has not said" in parked.message
        away = view(place("n2"), place("n3", ready=False), answered=("n2",))
        assert isinstance(one(wanted, away, 101.6), Recover)
    late_s = 100.0 + USUAL.reprotect_after_s
    mute = one(empty, view(place("n2", used=Demand(0, 4 * GIB, 1)), place("n3"), answered=("n2",)), late_s)
    assert isinstance(mute, Recover) and mute.node == "n2", "n3 is emptier, and may hold it after all"
    gone_on = one(older, view(answered=("n2", "n4")), late_s)
    assert isinstance(gone_on, Recover) and gone_on.node == "n2"


def test_without_data_the_scheduler_chooses() -> None:
    assert isinstance(one(lost()), PlaceAnew)
    assert isinstance(one(lost(volume(begun=False))), PlaceAnew), "it never had a disk: nothing can be lost"


def test_room_is_counted_as_the_plan_goes_on() -> None:
    small = place("n2", allocatable=Demand(8000, 2 * GIB, 100))
    wanted = [lost(volume(held("n2", 10)), name=f"shop{i}", created=str(i)) for i in range(3)]
    actions = plan(wanted, view(small), USUAL, 100.0)
    assert [type(each) for each in actions] == [Recover, Recover, Park]
    assert isinstance(actions[2], Park) and actions[2].reason == "NoRoom" and "n2 holds its data" in actions[2].message


def test_a_newer_copy_where_there_is_no_room_gives_way_to_one_that_is_enough() -> None:
    full = place("n2", used=ROOM)
    chosen = one(lost(volume(held("n2", 12), held("n3", 10))), view(full, place("n3")))
    assert isinstance(chosen, Recover) and chosen.node == "n3"


def test_priority_then_age() -> None:
    wanted = [
        lost(name="old", created="1"),
        lost(name="young", created="2"),
        lost(name="first", created="3", priority=5),
        lost(name="last", created="0", priority=-1),
    ]
    assert [each.lost.name for each in plan(wanted, view(), USUAL, 100.0)] == ["first", "old", "young", "last"]


def test_a_few_at_once_on_each_node() -> None:
    wanted = [lost(volume(held("n2", 10)), name=f"shop{i}", demand=Demand(), created=str(i)) for i in range(AT_ONCE)]
    actions = plan(wanted, view(busy={"n2": 2}), USUAL, 100.0)
    assert [type(each) for each in actions] == [Recover] * (AT_ONCE - 2) + [Later] * 2
    still = lost(volume(held("n2", 10)), runs=False)
    assert isinstance(one(still, view(busy={"n2": AT_ONCE})), Recover), "one that stands still starts nothing"


def test_local_waits_for_room_and_the_others_say_what_a_copy_would_take() -> None:
    full = view(place("n2", used=ROOM), place("n3"))
    local = one(lost(volume(held("n2", 10)), seed="local"), full)
    assert isinstance(local, Park) and local.reason == "NoRoom" and "local" in local.message
    other = one(lost(volume(held("n2", 10), bandwidth=GIB // 20)), full)
    assert isinstance(other, Park) and "n3 has room" in other.message and "10 s" in other.message
    moving = one(lost(volume(held("n2", 10))), dataclasses.replace(full, can_move=True))
    assert isinstance(moving, SeedOnto) and moving.node == "n2"
    nowhere = one(lost(volume(held("n2", 10))), view(place("n2", used=ROOM), place("n3", used=ROOM)))
    assert isinstance(nowhere, Park) and "no other node" in nowhere.message


def test_selectors_cordons_and_company_hold_here_too() -> None:
    wanted = lost(volume(held("n2", 10), held("n3", 10)), node_selector={"disk": "fast"})
    chosen = one(wanted, view(place("n2"), place("n3", labels={"disk": "fast"})))
    assert isinstance(chosen, Recover) and chosen.node == "n3"
    cordoned = one(lost(volume(held("n2", 10))), view(place("n2", unschedulable=True), place("n3")))
    assert isinstance(cordoned, Park) and "cordoned" in cordoned.message
    alone = one(lost(volume(held("n2", 10)), beside=frozenset({"n4"})))
    assert isinstance(alone, Park) and "colocateWith" in alone.message


def test_what_was_lost_is_counted_to_the_last_sign_of_life() -> None:
    chosen = one(lost(volume(held("n2", 10, at_s=DIED_S - 100))))
    assert isinstance(chosen, Recover) and chosen.lost_s == 100
    quiet = one(lost(volume(held("n2", 10, at_s=DIED_S - 5000, behind_s=22.5))))
    assert isinstance(quiet, Recover) and quiet.lost_s == 22.5, "its owner had said that nothing was written since"
    busy = one(lost(volume(held("n2", 10, at_s=DIED_S - 3, behind_s=22.5))))
    assert isinstance(busy, Recover) and busy.lost_s == 3
    fresh = one(lost(volume(held("n2", 10, at_s=DIED_S + 3))))
    assert isinstance(fresh, Recover) and fresh.lost_s == 0, "clocks differ"
    ahead = lost(volume(held("n2", 10, at_s=DIED_S + 3600), born_s=DIED_S - 500))
    wrong = one(ahead)
    assert isinstance(wrong, Recover) and wrong.lost_s == 3600, "a clock that is an hour ahead may be as far behind"
    born_later = one(lost(volume(held("n2", 10, at_s=DIED_S + 3600), born_s=DIED_S + 60)))
    assert isinstance(born_later, Recover) and born_later.lost_s == 3600, "nor does one that is an hour slow here tell less"
    empty = one(lost(volume(replicas=(), born_s=DIED_S + 3500), allow_loss=True))
    assert isinstance(empty, Recover) and empty.lost_s == 3500, "empty data is begun by a clock that is an hour slow"
    known = one(lost(volume(held("n2", 10, at_s=DIED_S + 3600, behind_s=8), born_s=DIED_S - 500)))
    assert isinstance(known, Recover) and known.lost_s == 8, "its owner's word needs no wall clock"


def test_a_standing_lifeform_needs_no_memory() -> None:
    still = lost(volume(held("n2", 10)), runs=False, demand=Demand())
    assert isinstance(one(still, view(place("n2", used=ROOM))), Recover)
