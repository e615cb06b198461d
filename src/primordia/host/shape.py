"""The shape of a local soup: how many nodes, on which racks, in which segments, and what each of them offers. Pure.

A soup keeps the shape it was made with, for its nodes' names, addresses and engine members come from it: another shape for
a soup that exists is refused and never half done. Nodes are named n1, n2, ... in order.

The nodes of a local soup share one machine. Its memory and disk are divided among them, so that what the scheduler promises
can be kept; its processors are not, for time on them can be shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from primordia.host.soup import MOST_NODES, SoupFile, SoupNode
from primordia.kit.errors import InvalidError
from primordia.kit.units import parse_bytes, parse_milli_cpu
from primordia.wire.checks import is_label
from primordia.wire.meta import ObjectMeta, Wire

MOST_RACKS_BY_DEFAULT = 3
"""Three racks hold three engine members, of which one may be lost."""
_ENGINE_MEMBERS = 3
_KEPT_BACK = 0.1
_LEAST_MEMORY = 256 * 2**20
_MIB = 2**20


class NodeEntry(Wire, frozen=True, kw_only=True):
    """One node of the list in soup.yaml. What it offers are quantities; empty is its share of the machine.

    `pool` is the size of its pool of volumes; empty is the usual one.
    """

    rack: str
    segment: str = "s1"
    cpu: str = ""
    memory: str = ""
    disk: str = ""
    pool: str = ""


class ManifestSpec(Wire, frozen=True, kw_only=True):
    """`nodes` is a number, or the list of them; racks and segments that are not said are chosen. `pool` is the size of each
    node's pool. `timings` are those of `domain/timings.py` that shall differ from the usual ones."""

    nodes: int | tuple[NodeEntry, ...] | None = None
    racks: int | None = None
    segments: int | None = None
    pool: str = ""
    pod_cidr: str = msgspec.field(name="podCIDR", default="10.128.0.0/9")
    domain: str = "soup.internal"
    timings: dict[str, float] = {}


class SoupManifest(Wire, frozen=True, kw_only=True):
    """soup.yaml: what `up --config` makes a soup from."""

    api_version: Literal["primordia.dev/v1alpha1"] = msgspec.field(name="apiVersion", default="primordia.dev/v1alpha1")
    kind: Literal["Soup"] = "Soup"
    metadata: ObjectMeta = ObjectMeta(name="soup")
    spec: ManifestSpec = ManifestSpec()


@dataclass(frozen=True)
class Shape:
    """What was asked for; None is left to us. `origin` stands before a field's name where an error names it."""

    nodes: int | None = None
    racks: int | None = None
    segments: int | None = None
    listed: tuple[NodeEntry, ...] = ()
    origin: str = "--"


def shape_of(manifest: SoupManifest | None, *, nodes: int | None, racks: int | None, segments: int | None) -> Shape:
    """The shape by soup.yaml and by flags, which win. Raises InvalidError for flags beside a list of nodes."""
    given = [name for name, value in (("nodes", nodes), ("racks", racks), ("segments", segments)) if value is not None]
    if manifest is None:
        return Shape(nodes, racks, segments)
    spec = manifest.spec
    if isinstance(spec.nodes, tuple):
        for name in given:
            raise InvalidError(f"--{name}", "soup.yaml lists its nodes one by one.", remedy="Change the list instead.")
        for name, value in (("racks", spec.racks), ("segments", spec.segments)):
            if value is not None:
                raise InvalidError(f"spec.{name}", "the listed nodes say that already.", remedy="Leave it out.")
        return Shape(listed=spec.nodes, origin="spec.")
    return Shape(
        nodes=spec.nodes if nodes is None else nodes,
        racks=spec.racks if racks is None else racks,
        segments=spec.segments if segments is None else segments,
        origin="--" if given else "spec.",
    )


def plan_nodes(shape: Shape) -> tuple[SoupNode, ...]:
    """The nodes n1... of a new soup; engine members are the first nodes of up to three racks. Raises InvalidError."""
    places = _listed(shape) if shape.listed else _spread(shape)
    firsts: dict[str, int] = {}
    for index, place in enumerate(places, 1):
        firsts.setdefault(place.rack, index)
    members = sorted(firsts.values())
    members = members[:_ENGINE_MEMBERS] if len(members) >= _ENGINE_MEMBERS else members[:1]
    return tuple(msgspec.structs.replace(place, engine=place.index in members) for place in places)


def _spread(shape: Shape) -> list[SoupNode]:
    """Nodes in turn over racks r1..., racks over segments s1..."""
    count = 1 if shape.nodes is None else shape.nodes
    if not 1 <= count <= MOST_NODES:
        raise InvalidError(f"{shape.origin}nodes", f"{count} is not between 1 and {MOST_NODES}.")
    racks = min(count, MOST_RACKS_BY_DEFAULT) if shape.racks is None else shape.racks
    if not 1 <= racks <= count:
        raise InvalidError(
            f"{shape.origin}racks",
            f"{_many(racks, 'rack')} cannot be made of {_many(count, 'node')}: each rack has one at least.",
            remedy=f"Ask for 1 to {count} racks, or for more nodes.",
        )
    segments = 1 if shape.segments is None else shape.segments
    if not 1 <= segments <= racks:
        raise InvalidError(
            f"{shape.origin}segments",
            f"{_many(segments, 'segment')} cannot be made of {_many(racks, 'rack')}: each segment has one at least.",
            remedy=f"Ask for 1 to {racks} segments, or for more racks.",
        )
    nodes = []
    for index in range(1, count + 1):
        rack = (index - 1) % racks
        segment = rack * segments // racks
        nodes.append(SoupNode(name=f"n{index}", index=index, rack=f"r{rack + 1}", segment=f"s{segment + 1}", engine=False))
    return nodes


def _listed(shape: Shape) -> list[SoupNode]:
    if len(shape.listed) > MOST_NODES:
        raise InvalidError(f"{shape.origin}nodes", f"{len(shape.listed)} nodes are more than {MOST_NODES}.")
    segment_of: dict[str, str] = {}
    nodes = []
    for index, entry in enumerate(shape.listed, 1):
        field = f"{shape.origin}nodes[{index - 1}]"
        for name, label in (("rack", entry.rack), ("segment", entry.segment)):
            if not is_label(label):
                raise InvalidError(f"{field}.{name}", f"{label[:80]!r} is no lower-case label.", remedy="Use a-z, 0-9 and -.")
        earlier = segment_of.setdefault(entry.rack, entry.segment)
        if earlier != entry.segment:
            raise InvalidError(
                f"{field}.segment", f"rack {entry.rack} is in segment {earlier} already.", remedy="A rack is in one segment."
            )
        nodes.append(
            SoupNode(
                name=f"n{index}",
                index=index,
                rack=entry.rack,
                segment=entry.segment,
                engine=False,
                cpu_milli=_quantity(f"{field}.cpu", entry.cpu),
                memory_bytes=_quantity(f"{field}.memory", entry.memory),
                disk_bytes=_quantity(f"{field}.disk", entry.disk),
                pool_bytes=_quantity(f"{field}.pool", entry.pool),
            )
        )
    return nodes


def _quantity(field: str, text: str) -> int:
    if not text:
        return 0
    try:
        value = parse_milli_cpu(text) if field.endswith("cpu") else parse_bytes(text)
    except ValueError as error:
        raise InvalidError(field, f"{error}".rstrip(".") + ".") from error
    if value <= 0 or (field.endswith("memory") and value < _LEAST_MEMORY):
        raise InvalidError(field, f"{text} is too little for a node.", remedy="Give it more, or leave it out.")
    return value


def with_shares(nodes: Sequence[SoupNode], memory_bytes: int, disk_bytes: int) -> tuple[SoupNode, ...]:
    """The nodes with what they do not say themselves: an even share of what the others leave of the machine.

    A soup of one node has all of it, and nothing is written down: the machine may grow.
    """
    if len(nodes) == 1:
        return tuple(nodes)
    memory = _share(memory_bytes, [node.memory_bytes for node in nodes])
    disk = _share(disk_bytes, [node.disk_bytes for node in nodes])
    return tuple(
        msgspec.structs.replace(node, memory_bytes=node.memory_bytes or memory, disk_bytes=node.disk_bytes or disk)
        for node in nodes
    )


def _share(whole: int, said: Iterable[int]) -> int:
    """Whole mebibytes for each that says nothing; a tenth of the machine is kept back."""
    said = list(said)
    rest = max(0, int(whole * (1 - _KEPT_BACK)) - sum(said))
    return max(_MIB, rest // max(1, said.count(0)) // _MIB * _MIB)


def check_same(shape: Shape, soup: SoupFile) -> None:
    """Raise InvalidError naming what `shape` asks for and the existing soup has not."""
    racks = len({node.rack for node in soup.nodes})
    segments = len({node.segment for node in soup.nodes})
    if shape.listed:
        wanted = [(node.rack, node.segment) for node in _listed(shape)]
        if wanted != [(node.rack, node.segment) for node in soup.nodes]:
            raise _other(f"{shape.origin}nodes", soup, "other nodes, racks or segments than those listed")
        return
    for name, asked, there in (
        ("nodes", shape.nodes, len(soup.nodes)),
        ("racks", shape.racks, racks),
        ("segments", shape.segments, segments),
    ):
        if asked is not None and asked != there:
            raise _other(f"{shape.origin}{name}", soup, f"{_many(there, name.removesuffix('s'))} and not {asked}")


def _other(field: str, soup: SoupFile, has: str) -> InvalidError:
    return InvalidError(
        field,
        f"soup {soup.name} exists and has {has}; a soup keeps the shape it was made with.",
        remedy=f"Leave it out to bring {soup.name} up as it is, or make another soup with --soup NAME. "
        f"`primordia down --soup {soup.name} --destroy` deletes this one with all that it holds.",
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def words_of(nodes: Sequence[SoupNode]) -> str:
    """A shape for people: `6 nodes on 3 racks in 2 segments`."""
    racks, segments = len({node.rack for node in nodes}), len({node.segment for node in nodes})
    return f"{_many(len(nodes), 'node')} on {_many(racks, 'rack')} in {_many(segments, 'segment')}"
