"""The filter's text: golden for a small state, and what must hold of the difference between two states."""

from __future__ import annotations

import re
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from primordia.drivers.net_linux.ruleset import Elements, Place, Ruleset, elements_of, render, render_change
from primordia.drivers.net_linux.taps import tap_name
from primordia.ports.network import Endpoint, Flow, NetworkState

PLACE = Place("10.77.0.0/16", "10.128.0.0/9", "egress0", frozenset({"192.0.2.2", "10.77.0.1", "198.18.77.0/24"}))
STATE = NetworkState(
    endpoints=(
        Endpoint("u1", "10.128.0.1", "shop", egress=True),
        Endpoint("u2", "10.128.0.2", "shop"),
        Endpoint("u3", "10.128.0.3", "db"),
    ),
    flows=(Flow("10.128.0.3", ("10.128.0.1", "10.128.32.9")),),
)

GOLDEN = """\
add table inet primordia
delete table inet primordia
table inet primordia {
  set sources {
    type ifname . ipv4_addr
    elements = { "t011e39efe2" . 10.128.0.3, "t6ca202c88e" . 10.128.0.2, "tbb82030dbc" . 10.128.0.1 }
  }
  map group_of {
    type ipv4_addr : mark
    elements = { 10.128.0.1 : 0x0a800001, 10.128.0.2 : 0x0a800001, 10.128.0.3 : 0x0a800003 }
  }
  set group_members {
    type mark . ipv4_addr
    elements = { 0x0a800001 . 10.128.0.1, 0x0a800001 . 10.128.0.2, 0x0a800003 . 10.128.0.3 }
  }
  map policy_of {
    type ipv4_addr : mark
    elements = { 10.128.0.3 : 0x0a800003 }
  }
  set policy_peers {
    type mark . ipv4_addr
    elements = { 0x0a800003 . 10.128.0.1, 0x0a800003 . 10.128.32.9 }
  }
  set egress {
    type ipv4_addr
    elements = { 10.128.0.1 }
  }
  set forbidden {
    type ipv4_addr; flags interval
    elements = { 0.0.0.0/8, 10.128.0.0/9, 10.77.0.0/16, 127.0.0.0/8, 169.254.0.0/16, 192.0.2.2/32, 198.18.77.0/24, 224.0.0.0/3 }
  }
  set connections {
    type ipv4_addr; size 65535; flags dynamic
  }
  chain prerouting {
    type filter hook prerouting priority raw; policy accept;
    iifgroup != 20562 ip daddr != 10.128.0.0/9 accept
    iifgroup != 20562 fib saddr . iif oif missing drop
    iifgroup != 20562 accept
    iifname . ip saddr @sources accept
    drop
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifgroup != 20562 accept
    ct state established,related accept
    drop
  }
  chain output {
    type filter hook output priority filter; policy accept;
    meta skuid 1700000000-1716777215 drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifgroup 20562 goto judge
    oifgroup 20562 goto judge
  }
  chain judge {
    ct state invalid drop
    ct original ip saddr 10.77.0.0/16 goto permit
    meta mark set 0
    meta mark set ct original ip daddr map @group_of
    meta mark . ct original ip saddr @group_members goto permit
    meta mark set 0
    meta mark set ct original ip daddr map @policy_of
    meta mark . ct original ip saddr @policy_peers goto permit
    oifname "egress0" ct original ip saddr @egress ct original ip daddr != @forbidden goto permit
    iifname "egress0" ct direction reply ct original ip saddr @egress ct original ip daddr != @forbidden goto permit
    iifgroup 20562 limit rate 100/second burst 50 packets reject with icmpx admin-prohibited
    drop
  }
  chain permit {
    meta mark set 0
    iifgroup 20562 ct state new add @connections { ip saddr ct count over 4096 } drop
    oifname "egress0" tcp flags syn tcp option maxseg size set rt mtu
    accept
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr @egress oifname "egress0" masquerade
  }
}
"""


def test_the_whole_table() -> None:
    assert render(Ruleset(PLACE, elements_of(STATE))) == GOLDEN


def test_without_an_uplink_nothing_goes_out_or_is_masqueraded() -> None:
    text = render(Ruleset(Place("10.77.0.0/16", "10.128.0.0/9"), elements_of(STATE)))
    assert "masquerade" not in text
    assert "@egress" not in text


def test_a_change_of_the_node_itself_replaces_the_table() -> None:
    elements = elements_of(STATE)
    other = Place("10.77.0.0/16", "10.128.0.0/9", "egress0", frozenset({"192.0.2.3"}))
    assert render_change(Ruleset(PLACE, elements), Ruleset(other, elements)) is None


def test_no_change_is_empty() -> None:
    assert render_change(Ruleset(PLACE, elements_of(STATE)), Ruleset(PLACE, elements_of(STATE))) == ""


def test_one_more_context_adds_its_own_elements_only() -> None:
    more = NetworkState((*STATE.endpoints, Endpoint("u4", "10.128.0.9", "new")), STATE.flows)
    change = render_change(Ruleset(PLACE, elements_of(STATE)), Ruleset(PLACE, elements_of(more)))
    assert change == (
        f'add element inet primordia sources {{ "{tap_name("u4")}" . 10.128.0.9 }}\n'
        "add element inet primordia group_of { 10.128.0.9 : 0x0a800009 }\n"
        "add element inet primordia group_members { 0x0a800009 . 10.128.0.9 }\n"
    )


def test_two_flows_to_one_destination_are_one_policy() -> None:
    elements = elements_of(NetworkState((), (Flow("10.128.0.3", ("10.128.0.1",)), Flow("10.128.0.3", ("10.128.0.2",)))))
    assert elements.policy_of == {"10.128.0.3 : 0x0a800003"}
    assert elements.policy_peers == {"0x0a800003 . 10.128.0.1", "0x0a800003 . 10.128.0.2"}


def test_a_thousand_that_all_allow_everybody_stay_two_thousand_elements() -> None:
    everybody = tuple(f"10.128.{number // 250}.{number % 250 + 1}" for number in range(1000))
    elements = elements_of(NetworkState((), tuple(Flow(address, tuple(everybody)) for address in everybody)))
    assert len(elements.policy_of) + len(elements.policy_peers) == 2000


addresses = st.integers(1, 12).map(lambda number: f"10.128.0.{number}")
states = st.builds(
    NetworkState,
    st.lists(st.tuples(addresses, st.sampled_from("abc"), st.booleans()), max_size=8, unique_by=lambda one: one[0]).map(
        lambda listed: tuple(Endpoint(f"u{address}", address, group, egress) for address, group, egress in listed)
    ),
    st.lists(st.builds(Flow, addresses, st.lists(addresses, max_size=4).map(tuple)), max_size=6).map(tuple),
)


@given(states, states)
def test_the_difference_leads_from_any_state_to_any_other(old: NetworkState, new: NetworkState) -> None:
    before, after = Ruleset(PLACE, elements_of(old)), Ruleset(PLACE, elements_of(new))
    text = render_change(before, after)
    assert text is not None
    contents = {one.name: set(getattr(before.elements, one.name)) for one in fields(Elements)}
    for verb, name, listed in re.findall(r"(add|delete) element inet primordia (\w+) \{ (.*) \}", text):
        for element in listed.split(", "):
            assert (element in contents[name]) == (verb == "delete")
            (contents[name].add if verb == "add" else contents[name].remove)(element)
    assert contents == {one.name: set(getattr(after.elements, one.name)) for one in fields(Elements)}


@given(states)
def test_the_sets_say_what_the_state_says(state: NetworkState) -> None:
    elements = elements_of(state)
    group_of = dict(element.split(" : ") for element in elements.group_of)
    policy_of = dict(element.split(" : ") for element in elements.policy_of)
    group = {one.address: one.group for one in state.endpoints}
    for source in (f"10.128.0.{number}" for number in range(1, 13)):
        for destination in (f"10.128.0.{number}" for number in range(1, 13)):
            by_group = f"{group_of.get(destination)} . {source}" in elements.group_members
            by_policy = f"{policy_of.get(destination)} . {source}" in elements.policy_peers
            assert by_group == (source in group and group[source] == group.get(destination))
            assert by_policy == any(flow.destination == destination and source in flow.sources for flow in state.flows)
