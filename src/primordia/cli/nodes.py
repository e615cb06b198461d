"""`node ls`, `node cordon|uncordon` and `racks`: the machines of a soup, in the order in which they stand.

A bar shows what is promised of what can be: a full one takes no more. Processors are promised several times over, memory
once. Layout is pure; only the commands themselves talk to a soup.
"""

from __future__ import annotations

import asyncio
import datetime
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from primordia.cli import blast, printing
from primordia.cli.output import colourful, table
from primordia.cli.session import client
from primordia.kit.units import human_bytes, parse_quantity
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Lifeform, Node, Volume
from primordia.wire.tables import age, node_state

BAR_CELLS = 10


async def list_(options: Namespace) -> int:
    """`node ls`."""
    async with client(options) as soup:
        found = in_order((await soup.list(Node)).items)
    if options.output in ("json", "yaml", "name"):
        printing.print_objects(found, options.output, as_list=True)
    elif not found:
        print("There are no nodes.")
    else:
        print(nodes_text(found, datetime.datetime.now(datetime.UTC), wide=options.output == "wide"))
    return 0


async def maintenance(options: Namespace) -> int:
    """Somebody works on a node, or no longer: its lifeforms wait for it, however silent it is."""
    until = ""
    if options.state == "on" and options.length:
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=options.length)
        until = end.strftime("%Y-%m-%dT%H:%M:%SZ")
    wanted: dict[str, Any] | None = None if options.state == "off" else ({"until": until} if until else {})
    async with client(options) as soup:
        await soup.patch(Node, options.name, {"spec": {"unschedulable": options.state == "on", "maintenance": wanted}})
    if options.state == "off":
        print(f"node/{options.name} is out of maintenance, and takes lifeforms again")
    else:
        how_long = f"until {until}" if until else "until it is taken out of it"
        print(f"node/{options.name} is in maintenance {how_long}: it takes nothing new, and its silence is no death")
    return 0


async def cordon(options: Namespace) -> int:
    """Let a node take no more lifeforms; those it has stay."""
    return await _mark(options, unschedulable=True)


async def uncordon(options: Namespace) -> int:
    """Let a node take lifeforms again."""
    return await _mark(options, unschedulable=False)


async def _mark(options: Namespace, *, unschedulable: bool) -> int:
    word = "cordoned" if unschedulable else "uncordoned"
    async with client(options) as soup:
        for name in options.names:
            before = await soup.get(Node, name)
            if before.spec.unschedulable == unschedulable and (unschedulable or not before.spec.evacuating):
                print(f"node/{name} is {word} already")
                continue
            copies_too: dict[str, Any] = {} if unschedulable else {"evacuating": False}
            await soup.patch(Node, name, {"spec": {"unschedulable": unschedulable, **copies_too}})
            print(f"node/{name} {word}")
    return 0


async def racks(options: Namespace) -> int:
    """The racks of every segment: their nodes, what they offer, and who lives there."""
    async with client(options) as soup:
        nodes, lifeforms, volumes = await asyncio.gather(
            soup.list(Node), soup.list(Lifeform, all_namespaces=True), soup.list(Volume, all_namespaces=True)
        )
    found = racks_of(nodes.items, lifeforms.items)
    blasts = blast.blasts_of(nodes.items, volumes.items)
    if options.output in ("json", "yaml"):
        plain = [rack.plain() | {"blastRadius": blast.plain(blasts.get(rack.place))} for rack in found]
        printing.print_plain(plain, options.output)
    elif not found:
        print("There are no nodes.")
    else:
        sentences = blast.blast_sentences([rack.place for rack in found], blasts)
        print("\n".join([racks_text(found, wide=options.output == "wide"), *([""] if sentences else []), *sentences]))
    return 0


# ---------------------------------------------------------------- pure


def in_order(nodes: Iterable[Node]) -> list[Node]:
    """By segment, rack and name, with n2 before n10."""
    return sorted(nodes, key=lambda node: (segment_of(node), rack_of(node), _natural(node.metadata.name)))


def segment_of(node: Node) -> str:
    """The node's segment; empty when it has none."""
    return node.metadata.labels.get(LABEL_SEGMENT, "")


def rack_of(node: Node) -> str:
    """The node's rack; empty when it has none."""
    return node.metadata.labels.get(LABEL_RACK, "")


def _natural(name: str) -> tuple[str, int, str]:
    head = name.rstrip("0123456789")
    digits = name[len(head) :]
    return head, int(digits or 0), name


@dataclass(frozen=True)
class Room:
    """What is promised and what can be, of processors (cores) and memory (bytes)."""

    cpu: Decimal = Decimal(0)
    cpu_most: Decimal = Decimal(0)
    memory: Decimal = Decimal(0)
    memory_most: Decimal = Decimal(0)

    def __add__(self, other: Room) -> Room:
        return Room(
            self.cpu + other.cpu,
            self.cpu_most + other.cpu_most,
            self.memory + other.memory,
            self.memory_most + other.memory_most,
        )

    def cpu_words(self) -> str:
        return f"{_number(self.cpu)}/{_number(self.cpu_most)}"

    def memory_words(self) -> str:
        return f"{human_bytes(float(self.memory))}/{human_bytes(float(self.memory_most))}"

    def cells(self, *, blocks: bool) -> list[str]:
        """Two cells of a table, with bars."""
        cpu = f"{bar(self.cpu, self.cpu_most, blocks=blocks)} {self.cpu_words()}"
        return [cpu, f"{bar(self.memory, self.memory_most, blocks=blocks)} {self.memory_words()}"]


def room_of(node: Node) -> Room:
    """A node's."""
    used, most = node.status.allocated, node.status.allocatable
    return Room(_amount(used.cpu), _amount(most.cpu), _amount(used.memory), _amount(most.memory))


def _amount(text: str) -> Decimal:
    try:
        return parse_quantity(text)
    except ValueError:
        return Decimal(0)


def _number(value: Decimal) -> str:
    return f"{value.normalize():f}"


def bar(used: Decimal, most: Decimal, *, blocks: bool) -> str:
    """A bar of ten cells, blocks or plain ASCII. Anything promised shows, and only what is full looks full."""
    share = float(used / most) if most > 0 else 0.0
    filled = min(BAR_CELLS, int(share * BAR_CELLS))
    if share > 0 and filled == 0:
        filled = 1
    if blocks:
        return "█" * filled + "░" * (BAR_CELLS - filled)
    return "[" + "#" * filled + "." * (BAR_CELLS - filled) + "]"


def nodes_text(nodes: Sequence[Node], now: datetime.datetime, *, wide: bool = False, colour: bool | None = None) -> str:
    """Nodes as a table."""
    on = colourful(sys.stdout) if colour is None else colour
    header = ["SEGMENT", "RACK", "NAME", "STATUS", "CONTEXTS", "CPU", "MEMORY", "ACCELERATOR", "AGE"]
    rows = [
        [
            segment_of(node) or "-",
            rack_of(node) or "-",
            node.metadata.name,
            node_state(node, now),
            str(node.status.allocated.contexts),
            *room_of(node).cells(blocks=on),
            node.status.accelerator or "-",
            age(node.metadata.creation_timestamp, now),
        ]
        for node in nodes
    ]
    if wide:
        header += ["VERSION", "ADDRESS", "ENDPOINT", "VMM", "KERNEL"]
        for row, node in zip(rows, nodes, strict=True):
            status = node.status
            more = (status.version, status.address, status.api_endpoint, status.vmm_version, status.kernel_version)
            row += [each or "-" for each in more]
    return table(header, rows, colour=on)


@dataclass(frozen=True)
class Rack:
    """A failure domain: its nodes in order, and the lifeforms (NAMESPACE/NAME) that live on them."""

    segment: str
    name: str
    nodes: tuple[Node, ...]
    lifeforms: tuple[str, ...]

    @property
    def place(self) -> tuple[str, str]:
        return self.segment, self.name

    @property
    def room(self) -> Room:
        return sum(map(room_of, self.nodes), Room())

    @property
    def contexts(self) -> int:
        return sum(node.status.allocated.contexts for node in self.nodes)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        room = self.room
        return {
            "segment": self.segment,
            "rack": self.name,
            "nodes": [{"name": node.metadata.name, "status": node_state(node)} for node in self.nodes],
            "contexts": self.contexts,
            "lifeforms": list(self.lifeforms),
            "cpu": {"allocated": _number(room.cpu), "allocatable": _number(room.cpu_most)},
            "memoryBytes": {"allocated": int(room.memory), "allocatable": int(room.memory_most)},
        }


def racks_of(nodes: Iterable[Node], lifeforms: Iterable[Lifeform]) -> list[Rack]:
    """The racks in order. A lifeform is where its status says."""
    where: dict[str, list[str]] = {}
    for each in lifeforms:
        where.setdefault(each.status.node, []).append(f"{each.metadata.namespace}/{each.metadata.name}")
    grouped: dict[tuple[str, str], list[Node]] = {}
    for node in in_order(nodes):
        grouped.setdefault((segment_of(node), rack_of(node)), []).append(node)
    return [
        Rack(segment, name, tuple(members), tuple(sorted(one for node in members for one in where.get(node.metadata.name, ()))))
        for (segment, name), members in grouped.items()
    ]


def racks_text(racks: Sequence[Rack], *, wide: bool = False, colour: bool | None = None) -> str:
    """Racks as a table; `wide` names their lifeforms."""
    on = colourful(sys.stdout) if colour is None else colour
    header = ["SEGMENT", "RACK", "STATUS", "NODES", "LIFEFORMS", "CONTEXTS", "CPU", "MEMORY"]
    rows = [
        [
            rack.segment or "-",
            rack.name or "-",
            _states(rack.nodes),
            ",".join(node.metadata.name for node in rack.nodes),
            str(len(rack.lifeforms)),
            str(rack.contexts),
            *rack.room.cells(blocks=on),
        ]
        for rack in racks
    ]
    if wide:
        header.append("WHO")
        for row, rack in zip(rows, racks, strict=True):
            row.append(",".join(rack.lifeforms) or "-")
    return table(header, rows, colour=on)


def _states(nodes: Sequence[Node]) -> str:
    """One word where all are alike, else how many are in which state."""
    counts = Counter(node_state(node) for node in nodes)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
