"""The filter of a node as nftables text: pure.

One table, `inet primordia`. The rules never change with the contexts: they look addresses up in sets and maps (hashes), so
that a packet costs the same with five contexts and with five thousand, and a change costs what changed.

What holds:
- A packet from a TAP has the address of that TAP's context as its source, or is dropped before anything looks at it. That
  drops IPv6 as well. A packet to a context from elsewhere must come by the interface that leads back to its source.
- Every packet is judged, not only the first of a connection: by the *original* source and destination of its connection,
  which connection tracking knows for replies and for ICMP errors alike. So a flow that is no longer allowed ends at once,
  and an address that is given to another context inherits nothing.
- Everything that is neither from nor to a TAP is none of our business and passes: on metal other programs route, too.

Groups and policies are told apart by numbers in the packet mark, for nftables cannot compare two looked-up values. A
group's number is its lowest member's address, a policy's the lowest destination that has it: unique without a register of
numbers, and stable, so that a change of one group touches no other. The mark is zero again when the packet leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from primordia.domain.addresses import FIRST_OWNER_ID
from primordia.drivers.net_linux.taps import GROUP, tap_name
from primordia.ports.network import Flow, NetworkState

TABLE = "inet primordia"
MOST_CONNECTIONS = 4096
"""Connections that one source may have open through this node: the kernel's table is shared by all."""

_LAST_OWNER_ID = FIRST_OWNER_ID + (1 << 24) - 1
_NEVER = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")


@dataclass(frozen=True)
class Place:
    """What the rules say about the node itself. `pod_cidr` holds the contexts of the whole soup, `soup_cidr` its nodes."""

    soup_cidr: str
    pod_cidr: str
    uplink: str | None = None
    forbidden: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Elements:
    """The contents of every set and map, as nftables writes its elements."""

    sources: frozenset[str] = frozenset()
    group_of: frozenset[str] = frozenset()
    group_members: frozenset[str] = frozenset()
    policy_of: frozenset[str] = frozenset()
    policy_peers: frozenset[str] = frozenset()
    egress: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ruleset:
    """All that the kernel should hold."""

    place: Place
    elements: Elements = field(default_factory=Elements)


_TYPES = {
    "sources": ("set", "ifname . ipv4_addr"),
    "group_of": ("map", "ipv4_addr : mark"),
    "group_members": ("set", "mark . ipv4_addr"),
    "policy_of": ("map", "ipv4_addr : mark"),
    "policy_peers": ("set", "mark . ipv4_addr"),
    "egress": ("set", "ipv4_addr"),
}


def elements_of(state: NetworkState) -> Elements:
    """The contents for that state."""
    groups: dict[str, list[IPv4Address]] = {}
    for endpoint in state.endpoints:
        groups.setdefault(endpoint.group, []).append(IPv4Address(endpoint.address))
    group_of, group_members = _classes((members, members) for members in groups.values())
    policy_of, policy_peers = _classes(_policies(state.flows))
    return Elements(
        sources=frozenset(f'"{tap_name(one.tap)}" . {one.address}' for one in state.endpoints),
        group_of=group_of,
        group_members=group_members,
        policy_of=policy_of,
        policy_peers=policy_peers,
        egress=frozenset(one.address for one in state.endpoints if one.egress),
    )


def _policies(flows: Iterable[Flow]) -> Iterable[tuple[list[IPv4Address], Iterable[IPv4Address]]]:
    """Destinations that have the same sources share one policy: a thousand that all allow everybody cost two thousand
    elements, not a million."""
    sources_of: dict[str, frozenset[str]] = {}
    known: dict[int, frozenset[str]] = {}  # hashing the same tuple object once is enough; `flows` keeps it alive
    for flow in flows:
        sources = known.get(id(flow.sources))
        if sources is None:
            sources = known[id(flow.sources)] = frozenset(flow.sources)
        earlier = sources_of.get(flow.destination)
        sources_of[flow.destination] = sources if earlier is None else earlier | sources
    destinations_of: dict[frozenset[str], list[IPv4Address]] = {}
    for destination, sources in sources_of.items():
        if sources:
            destinations_of.setdefault(sources, []).append(IPv4Address(destination))
    return [(destinations, map(IPv4Address, sources)) for sources, destinations in destinations_of.items()]


def _classes(
    classes: Iterable[tuple[list[IPv4Address], Iterable[IPv4Address]]],
) -> tuple[frozenset[str], frozenset[str]]:
    """The map from destinations to their class's number, and the set of each class's sources."""
    of: set[str] = set()
    members: set[str] = set()
    for destinations, sources in classes:
        number = f"0x{int(min(destinations)):08x}"
        of.update(f"{destination} : {number}" for destination in destinations)
        members.update(f"{number} . {source}" for source in sources)
    return frozenset(of), frozenset(members)


def render(ruleset: Ruleset) -> str:
    """The text that replaces the whole table in one transaction, whatever was there before."""
    lines = [f"add table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{"]
    for name, (kind, type_) in _TYPES.items():
        lines += _declare(kind, name, f"type {type_}", getattr(ruleset.elements, name))
    forbidden = collapse_addresses(
        IPv4Network(one) for one in {*_NEVER, ruleset.place.soup_cidr, ruleset.place.pod_cidr, *ruleset.place.forbidden}
    )
    lines += _declare("set", "forbidden", "type ipv4_addr; flags interval", map(str, forbidden))
    lines += _declare("set", "connections", "type ipv4_addr; size 65535; flags dynamic", ())
    lines += _chains(ruleset.place)
    lines.append("}")
    return "\n".join(lines) + "\n"


def render_change(old: Ruleset, new: Ruleset) -> str | None:
    """The text that leads from `old` to `new` in one transaction; None when only a whole replacement does.

    Empty when nothing changes.
    """
    if old.place != new.place:
        return None
    lines: list[str] = []
    for one in fields(Elements):
        before, after = getattr(old.elements, one.name), getattr(new.elements, one.name)
        for verb, changed in (("delete", before - after), ("add", after - before)):
            if changed:
                lines.append(f"{verb} element {TABLE} {one.name} {{ {', '.join(sorted(changed))} }}")
    return "\n".join(lines) + "\n" if lines else ""


def _declare(kind: str, name: str, properties: str, elements: Iterable[str]) -> list[str]:
    lines = [f"  {kind} {name} {{", f"    {properties}"]
    if listed := sorted(elements):
        lines.append(f"    elements = {{ {', '.join(listed)} }}")
    return [*lines, "  }"]


def _chains(place: Place) -> list[str]:
    chains: Mapping[str, list[str]] = {
        "prerouting": [
            "type filter hook prerouting priority raw; policy accept;",
            f"iifgroup != {GROUP} ip daddr != {place.pod_cidr} accept",
            f"iifgroup != {GROUP} fib saddr . iif oif missing drop",
            f"iifgroup != {GROUP} accept",
            "iifname . ip saddr @sources accept",
            "drop",
        ],
        "input": [
            "type filter hook input priority filter; policy accept;",
            f"iifgroup != {GROUP} accept",
            "ct state established,related accept",
            "drop",
        ],
        "output": [
            "type filter hook output priority filter; policy accept;",
            # A VMM has its TAP and its sockets in the file system: one that opens a connection was broken into.
            f"meta skuid {FIRST_OWNER_ID}-{_LAST_OWNER_ID} drop",
        ],
        "forward": [
            "type filter hook forward priority filter; policy accept;",
            f"iifgroup {GROUP} goto judge",
            f"oifgroup {GROUP} goto judge",
        ],
        "judge": _judge(place),
        "permit": _permit(place),
    }
    if place.uplink:
        chains = {
            **chains,
            "postrouting": [
                "type nat hook postrouting priority srcnat; policy accept;",
                f'ip saddr @egress oifname "{place.uplink}" masquerade',
            ],
        }
    lines: list[str] = []
    for name, rules in chains.items():
        lines += [f"  chain {name} {{", *(f"    {rule}" for rule in rules), "  }"]
    return lines


def _judge(place: Place) -> list[str]:
    rules = [
        "ct state invalid drop",
        # The soup's nodes (published ports of other nodes, probes). No guest can have such a source.
        f"ct original ip saddr {place.soup_cidr} goto permit",
        "meta mark set 0",
        "meta mark set ct original ip daddr map @group_of",
        "meta mark . ct original ip saddr @group_members goto permit",
        "meta mark set 0",
        "meta mark set ct original ip daddr map @policy_of",
        "meta mark . ct original ip saddr @policy_peers goto permit",
    ]
    if place.uplink:
        egress = "ct original ip saddr @egress ct original ip daddr != @forbidden"
        rules += [
            f'oifname "{place.uplink}" {egress} goto permit',
            f'iifname "{place.uplink}" ct direction reply {egress} goto permit',
        ]
    # A refusal that is heard ends a client's wait. It is bounded, for the kernel bounds its ICMP for all together.
    return [
        *rules,
        f"iifgroup {GROUP} limit rate 100/second burst 50 packets reject with icmpx admin-prohibited",
        "drop",
    ]


def _permit(place: Place) -> list[str]:
    rules = [
        "meta mark set 0",
        f"iifgroup {GROUP} ct state new add @connections {{ ip saddr ct count over {MOST_CONNECTIONS} }} drop",
    ]
    if place.uplink:
        rules.append(f'oifname "{place.uplink}" tcp flags syn tcp option maxseg size set rt mtu')
    return [*rules, "accept"]
