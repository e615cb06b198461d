"""Which nodes may run the engine's servers."""

from __future__ import annotations

import pytest

from primordia.domain.engine import Seat, check_add, check_remove, nearest_first
from primordia.domain.rate import FailureLimit
from primordia.kit.errors import AlreadyExistsError, NotFoundError, PermanentError, TemporaryError

A, B, C = Seat("a", "r1"), Seat("b", "r2"), Seat("c", "r3")


def test_a_server_on_a_rack_of_its_own_is_added() -> None:
    check_add("b", "r2", [A], ())
    check_add("c", "r3", [A, B], ())


def test_two_on_one_rack_are_refused_by_name() -> None:
    with pytest.raises(PermanentError, match="Nodes a and x are both on rack r1"):
        check_add("x", "r1", [A, B], ())


def test_a_second_one_on_a_node_or_a_second_change_at_once_is_refused() -> None:
    with pytest.raises(AlreadyExistsError, match="has an engine server already"):
        check_add("a", "r9", [A], ())
    with pytest.raises(TemporaryError, match="Node b is just getting"):
        check_add("c", "r3", [A, Seat("b", "r2", ready=False)], ())


def test_nothing_is_added_while_one_is_silent() -> None:
    with pytest.raises(TemporaryError, match="on node b does not answer"):
        check_add("c", "r3", [A, B], {"b"})


def test_the_last_one_and_a_stranger_stay() -> None:
    with pytest.raises(PermanentError, match="only server"):
        check_remove("a", [A], ())
    with pytest.raises(PermanentError, match="only server"):
        check_remove("a", [A, Seat("b", "r2", ready=False)], ())
    with pytest.raises(NotFoundError, match="no engine server"):
        check_remove("x", [A, B], ())


def test_a_dead_one_is_removed_and_a_living_one_not_if_the_dead_would_be_the_majority() -> None:
    check_remove("c", [A, B, C], {"c"})
    check_remove("b", [A, Seat("b", "r2", ready=False)], {"b"})
    with pytest.raises(TemporaryError, match="on node c does not answer"):
        check_remove("b", [A, B, C], {"c"})


def test_who_fails_often_waits_and_others_do_not() -> None:
    limit = FailureLimit(3, 60.0)
    for at in (0.0, 1.0, 2.0):
        assert limit.wait_s("x", at) == 0
        limit.failed("x", at)
    assert limit.wait_s("x", 10.0) == 50.0
    assert limit.wait_s("y", 10.0) == 0
    assert limit.wait_s("x", 60.0) == 0
    for number in range(5000):
        limit.failed(str(number), 61.0)
    assert limit.wait_s("x", 61.0) == 0


def test_a_node_asks_its_own_server_first_and_the_others_are_not_all_asked_by_everybody() -> None:
    urls = [f"https://10.77.0.{n}:2379" for n in (3, 1, 2)]
    assert nearest_first(urls, "10.77.0.2") == tuple(f"https://10.77.0.{n}:2379" for n in (2, 3, 1))
    assert nearest_first(urls, "10.77.0.3")[0] == "https://10.77.0.3:2379"
    without = {nearest_first(urls, f"10.77.0.{n}")[0] for n in range(20, 40)}
    assert without == set(urls)
    assert sorted(nearest_first(urls, "10.77.0.20")) == sorted(urls)
    assert nearest_first([], "10.77.0.20") == ()
