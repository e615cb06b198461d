"""The waiting room: one line for the same wish, and always somebody whose turn it is."""

from __future__ import annotations

from primordia.control.company import Company
from primordia.control.ledger import Ledger
from primordia.control.waiting import WaitingRoom
from primordia.domain.placement import Demand
from primordia.sim.objects import make_lifeform
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, LifeformStatus


def test_who_leaves_lets_the_next_one_try() -> None:
    room: WaitingRoom[str, str] = WaitingRoom()
    for key in ("a", "b", "c"):
        assert room.join(key, "big") is None
    assert room.join("a", "big") is None
    assert list(room.lines()) == [("big", "a")]
    assert room.leave("b") == "a"
    assert room.leave("a") == "c"
    assert room.leave("c") is None
    assert room.leave("c") is None
    assert not room


def test_who_changes_lines_stands_behind_the_others() -> None:
    room: WaitingRoom[str, str] = WaitingRoom()
    room.join("a", "big")
    room.join("b", "big")
    room.join("c", "small")
    assert room.join("a", "small") == "b"
    assert dict(room.lines()) == {"big": "b", "small": "c"}
    assert len(room) == 3 and "a" in room


def test_the_ledger_tells_whose_sum_changed_and_whether_it_shrank() -> None:
    told: list[tuple[str, bool]] = []
    ledger = Ledger(lambda node, less: told.append((node, less)))
    ledger.promise("u", "n1", Demand(1000, 100, 1))
    ledger.promise("u", "n1", Demand(1000, 100, 1))
    ledger.promise("u", "n1", Demand(2000, 50, 1))
    ledger.promise("u", "n2", Demand(2000, 50, 1))
    ledger.withdraw("u")
    ledger.withdraw("u")
    assert told == [("n1", False), ("n1", True), ("n1", True), ("n2", False), ("n2", True)]
    assert (ledger.used("n1"), ledger.used("n2"), ledger.node_of("u")) == (Demand(), Demand(), "")


def placed(name: str, node: str, **labels: str) -> Lifeform:
    lifeform = make_lifeform(name)
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default", uid=name, labels=labels),
        spec=lifeform.spec,
        status=LifeformStatus(node=node),
    )


def test_company_is_found_by_all_its_labels() -> None:
    company = Company()
    shop, mail = placed("shop", "n1", app="shop", tier="web"), placed("mail", "n2", app="mail", tier="web")
    company.replace(None, shop)
    company.replace(None, mail)
    assert company.nodes("default", {"tier": "web"}, "") == {"n1", "n2"}
    assert company.nodes("default", {"tier": "web", "app": "mail"}, "") == {"n2"}
    assert company.nodes("default", {"tier": "web"}, "mail") == {"n1"}
    assert company.nodes("default", {}, "") == {"n1", "n2"}
    assert company.nodes("other", {"tier": "web"}, "") == frozenset()
    company.replace(shop, placed("shop", "n3", app="shop"))
    assert company.nodes("default", {"tier": "web"}, "") == {"n2"}
    company.replace(mail, None)
    assert company.nodes("default", {}, "") == {"n3"}
