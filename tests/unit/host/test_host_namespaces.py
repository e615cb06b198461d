"""The plan that leads from what is there to what should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.host import namespaces
from primordia.host.namespaces import Interface, Layout, Seen, ensure, parse, plan
from primordia.kit.errors import InvalidError

LAYOUT = Layout("s", (("n1", 1), ("n2", 2)), "10.128.0.0/9")
SWITCH, N1, N2 = LAYOUT.namespaces()
UP = Interface(1, up=True)


def whole() -> dict[str, Seen]:
    def node(number: int, other: int) -> Seen:
        wire = Interface(2, up=True, peer=number + 2, addresses=frozenset({f"10.77.0.{number}/16"}))
        return Seen({"lo": UP, "wire0": wire}, frozenset({(f"10.128.{(other - 1) * 32}.0/19", f"10.77.0.{other}")}))

    ports = {f"port{n}": Interface(n + 2, up=True, peer=2, master="bridge0") for n in (1, 2)}
    return {SWITCH: Seen({"lo": UP, "bridge0": Interface(2, up=True), **ports}), N1: node(1, 2), N2: node(2, 1)}


def lines(seen: dict[str, Seen]) -> list[str]:
    return [" ".join(argv) for argv in plan(LAYOUT, seen)]


def test_all_is_there_and_nothing_is_done() -> None:
    assert plan(LAYOUT, whole()) == []


def test_from_nothing_to_all() -> None:
    assert lines({SWITCH: Seen(), N1: Seen(), N2: Seen()}) == [
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set lo up",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link add bridge0 type bridge forward_delay 0",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set bridge0 up",
        f"nsenter --net=/run/netns/{N1} -- ip link set lo up",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link add port1 type veth peer name wire0 netns {N1}",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set port1 master bridge0",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set port1 up",
        f"nsenter --net=/run/netns/{N1} -- ip address add 10.77.0.1/16 dev wire0",
        f"nsenter --net=/run/netns/{N1} -- ip link set wire0 up",
        f"nsenter --net=/run/netns/{N2} -- ip link set lo up",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link add port2 type veth peer name wire0 netns {N2}",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set port2 master bridge0",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link set port2 up",
        f"nsenter --net=/run/netns/{N2} -- ip address add 10.77.0.2/16 dev wire0",
        f"nsenter --net=/run/netns/{N2} -- ip link set wire0 up",
        f"nsenter --net=/run/netns/{N1} -- ip route replace 10.128.32.0/19 via 10.77.0.2 dev wire0",
        f"nsenter --net=/run/netns/{N2} -- ip route replace 10.128.0.0/19 via 10.77.0.1 dev wire0",
    ]


def test_two_ends_that_are_not_of_one_wire_are_both_replaced() -> None:
    seen = whole()
    seen[N1] = Seen({**seen[N1].interfaces, "wire0": Interface(2, up=True, peer=99)}, seen[N1].routes)
    assert lines(seen)[:3] == [
        f"nsenter --net=/run/netns/{N1} -- ip link delete wire0",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link delete port1",
        f"nsenter --net=/run/netns/{SWITCH} -- ip link add port1 type veth peer name wire0 netns {N1}",
    ]


def test_what_ip_says_is_read() -> None:
    addresses = (
        '[{"ifindex":2,"link_index":3,"ifname":"wire0","flags":["BROADCAST","UP"],"link_netnsid":0,'
        '"addr_info":[{"family":"inet","local":"10.77.0.1","prefixlen":16}]},{}]'
    )
    routes = '[{"dst":"10.77.0.0/16","dev":"wire0"},{"dst":"10.128.32.0/19","gateway":"10.77.0.2","dev":"wire0"}]'
    assert parse(addresses, routes) == Seen(
        {"wire0": Interface(2, up=True, peer=3, addresses=frozenset({"10.77.0.1/16"}))},
        frozenset({("10.128.32.0/19", "10.77.0.2")}),
    )
    assert parse("", "") == Seen()


async def test_a_node_cannot_be_the_switch() -> None:
    with pytest.raises(InvalidError, match="switch"):
        await ensure("s", [("switch", 1)])


def test_leftovers_are_told_from_the_namespaces_of_soups_with_longer_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "_NAMES", tmp_path)
    for name in ("primordia-a-n1", "primordia-a-switch", "primordia-a-b-n1", "primordia-a-b-switch", "docker-x"):
        (tmp_path / name).touch()
    assert namespaces.leftovers(["a"]) == ["primordia-a-b-n1", "primordia-a-b-switch"]
    assert namespaces.leftovers(["a", "a-b"]) == []
    assert "docker-x" not in namespaces.leftovers([])
