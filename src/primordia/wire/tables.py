"""Lists as tables for people: which columns a kind has and what stands in them. Pure; `now` is an argument.

The shape is `meta.k8s.io/v1 Table`, so that kubectl and our own command print the same. Columns of priority 1 are for wide
output.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from primordia.kit.units import human_age, human_bytes, parse_quantity
from primordia.wire.conditions import in_maintenance, is_dead
from primordia.wire.meta import Condition
from primordia.wire.resources import Context, Event, Image, Lifeform, Node, Resource, Secret, Soup, Template, Volume

Cell = str | int


@dataclass(frozen=True)
class Column:
    """A column: its head, what it says, and how to read it off an object at a time."""

    name: str
    description: str
    read: Callable[[Any, datetime.datetime], Cell]
    priority: int = 0
    type: str = "string"
    format: str = ""


def table(
    kind: type[Resource], objs: Sequence[Resource], now: datetime.datetime, *, include: str = "Metadata"
) -> dict[str, Any]:
    """The Table of some objects, without its own metadata. `include`: None, Metadata or Object of each in its row."""
    columns = columns_of(kind)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [
            {
                "name": column.name,
                "type": column.type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            }
            for column in columns
        ],
        "rows": [_row(columns, obj, now, include) for obj in objs],
    }


def columns_of(kind: type[Resource]) -> tuple[Column, ...]:
    """The columns of a kind: its name first, its age last among the narrow ones."""
    return _COLUMNS[kind]


def _row(columns: Iterable[Column], obj: Resource, now: datetime.datetime, include: str) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": [column.read(obj, now) for column in columns]}
    if include == "Object":
        row["object"] = obj
    elif include == "Metadata":
        row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj.metadata}
    return row


# ---------------------------------------------------------------- cells


def _age(obj: Resource, now: datetime.datetime) -> str:
    return age(obj.metadata.creation_timestamp, now)


def age(moment: str | None, now: datetime.datetime) -> str:
    """How long ago a time of ours (RFC 3339) was, for people."""
    try:
        then = datetime.datetime.fromisoformat((moment or "").replace("Z", "+00:00"))
        return human_age((now - then).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return "<unknown>"


def _or_none(text: str) -> str:
    return text or "<none>"


def _deleting(obj: Resource, phase: str) -> str:
    return "Terminating" if obj.metadata.deletion_timestamp else phase


def _is(conditions: Iterable[Condition], kind: str) -> str:
    return next((each.status for each in conditions if each.type == kind), "Unknown")


def _ready_of(lifeform: Lifeform) -> str:
    ready = sum(context.ready for context in lifeform.status.contexts)
    return f"{ready}/{len(lifeform.spec.contexts)}"


def _published(lifeform: Lifeform) -> str:
    ports = [port for context in lifeform.spec.contexts for port in context.ports if port.publish]
    return _or_none(",".join(f"{port.publish}->{port.container_port}" for port in ports))


def node_state(node: Node, now: datetime.datetime | None = None) -> str:
    """Whether a node takes lifeforms, in a few words. Without `now` a maintenance is taken to last."""
    words = [{"True": "Ready", "False": "NotReady"}.get(_is(node.status.conditions, "Ready"), "Unknown")]
    if is_dead(node.status.conditions):
        words = ["Dead"]
    if node.spec.unschedulable:
        words.append("SchedulingDisabled")
    if node.spec.evacuating:
        words.append("Evacuating")
    if node.spec.maintenance is not None and (now is None or in_maintenance(node, now)):
        words.append("Maintenance")
    return ",".join(words)


def _share(used: str, whole: str, *, size: bool) -> str:
    try:
        both = [parse_quantity(text) for text in (used, whole)]
    except ValueError:
        return "<unknown>"
    return "/".join(human_bytes(float(each)) if size else f"{each.normalize():f}" for each in both)


def _topology(label: str) -> Callable[[Node, Any], str]:
    return lambda node, now: _or_none(node.metadata.labels.get(f"topology.primordia.dev/{label}", ""))


def _source_of(image: Image) -> str:
    if image.spec.oci is not None:
        return image.spec.oci.reference
    if image.spec.debian is not None:
        return "debian: " + " ".join(image.spec.debian.packages)
    return "<none>"


def _short_digest(digest: str) -> str:
    return _or_none(digest.removeprefix("sha256:")[:12])


def _left(moment: str, now: datetime.datetime) -> str:
    """How long until a time of ours."""
    try:
        return human_age((datetime.datetime.fromisoformat(moment) - now).total_seconds()) if moment else "<none>"
    except (ValueError, TypeError, OverflowError):
        return "<unknown>"


def _warm(template: Template) -> str:
    return f"{sum(each.warm for each in template.status.nodes)} ({template.spec.warm.min}:{template.spec.warm.most})"


def _template_size(template: Template) -> str:
    sizes = [each.size_bytes for each in template.status.nodes]
    return human_bytes(max(sizes)) if any(sizes) else "<none>"


def warm_up_words(template: Template) -> str:
    """What runs in a template before it is frozen, in one line; empty for nothing."""
    warm_up = template.spec.warm_up
    if warm_up is None:
        return ""
    return " ".join((f"python: {warm_up.python}" if warm_up.python else " ".join(warm_up.command or ())).split())


def volume_copies(volume: Volume) -> str:
    """How many copies are whole, if perhaps a little behind, and how many there are to be: `2/2`."""
    good = sum(copy.state in ("InSync", "Behind") for copy in volume.status.copies)
    return f"{good}/{len(volume.status.replicas)}"


def volume_protection(volume: Volume) -> str:
    """Protected, Unprotected or Degraded, as its condition says."""
    found = next((each for each in volume.status.conditions if each.type == "Protected"), None)
    return (found.reason if found is not None else "") or "Unknown"


def volume_lag(volume: Volume) -> str:
    """How far its furthest copy is behind, in seconds; `<none>` without copies."""
    behind = [copy.lag_seconds for copy in volume.status.copies]
    return f"{max(behind):.1f}s" if behind else "<none>"


def _bytes_of(count: int) -> str:
    return human_bytes(count) if count else "<none>"


_NAME = Column("Name", "The object's name.", lambda obj, now: obj.metadata.name, format="name")
_AGE = Column("Age", "How long ago it was created.", _age)

_COLUMNS: dict[type[Resource], tuple[Column, ...]] = {
    Lifeform: (
        _NAME,
        Column("Phase", "What it is doing.", lambda o, now: _deleting(o, o.status.phase)),
        Column("Ready", "How many of its contexts are ready.", lambda o, now: _ready_of(o)),
        Column("Node", "Where it lives.", lambda o, now: _or_none(o.status.node)),
        Column("Epoch", "Its fencing number.", lambda o, now: o.status.epoch, type="integer"),
        Column(
            "Restarts",
            "How often its contexts were restarted.",
            lambda o, now: sum(c.restarts for c in o.status.contexts),
            type="integer",
        ),
        _AGE,
        Column("Ports", "Published ports and where they lead.", lambda o, now: _published(o), 1),
        Column("Images", "The images of its contexts.", lambda o, now: ",".join(c.image for c in o.spec.contexts), 1),
        Column("Rack", "The rack of its node.", lambda o, now: _or_none(o.status.rack), 1),
        Column("Segment", "The segment of its node.", lambda o, now: _or_none(o.status.segment), 1),
    ),
    Context: (
        _NAME,
        Column("Phase", "What it is doing.", lambda o, now: _deleting(o, o.status.phase)),
        Column("Ready", "Whether its readiness probe succeeds.", lambda o, now: "yes" if o.status.ready else "no"),
        Column("Restarts", "How often it was restarted.", lambda o, now: o.status.restarts, type="integer"),
        Column("Node", "Where it runs.", lambda o, now: _or_none(o.spec.node)),
        Column("IP", "Its address.", lambda o, now: _or_none(o.status.ip)),
        Column("Parent", "The context that it is a fork of.", lambda o, now: _or_none(o.spec.parent)),
        _AGE,
        Column("Expires", "How long it may live on.", lambda o, now: _left(o.spec.expires_at, now), 1),
        Column("Template", "The template that it was claimed from.", lambda o, now: _or_none(o.spec.from_template), 1),
        Column("Started", "From a warm fork, a cold one or a boot.", lambda o, now: _or_none(o.status.started_from), 1),
        Column("Epoch", "The fencing number of its lifeform.", lambda o, now: o.spec.epoch, 1, "integer"),
        Column("CPU", "Its cores.", lambda o, now: o.spec.template.resources.cpu, 1),
        Column("Memory", "Its memory.", lambda o, now: o.spec.template.resources.memory, 1),
        Column("Image", "Its image.", lambda o, now: o.spec.template.image, 1),
        Column("Reason", "Why it is as it is.", lambda o, now: _or_none(o.status.reason), 1),
    ),
    Node: (
        _NAME,
        Column("Status", "Whether it takes contexts.", node_state),
        Column("Segment", "Its segment.", _topology("segment")),
        Column("Rack", "Its rack.", _topology("rack")),
        Column("Contexts", "How many it runs.", lambda o, now: o.status.allocated.contexts, type="integer"),
        Column(
            "CPU", "Cores taken and there.", lambda o, now: _share(o.status.allocated.cpu, o.status.capacity.cpu, size=False)
        ),
        Column(
            "Memory",
            "Memory taken and there.",
            lambda o, now: _share(o.status.allocated.memory, o.status.capacity.memory, size=True),
        ),
        Column("Accelerator", "How its microVMs run.", lambda o, now: _or_none(o.status.accelerator)),
        _AGE,
        Column("Version", "The version of Primordia.", lambda o, now: _or_none(o.status.version), 1),
        Column("Address", "Where other nodes reach it.", lambda o, now: _or_none(o.status.address), 1),
        Column("Endpoint", "Where clients reach it.", lambda o, now: _or_none(o.status.api_endpoint), 1),
        Column("VMM", "The virtual machine monitor.", lambda o, now: _or_none(o.status.vmm_version), 1),
        Column("Kernel", "The kernel of its microVMs.", lambda o, now: _or_none(o.status.kernel_version), 1),
    ),
    Image: (
        _NAME,
        Column("Phase", "Whether it can be used.", lambda o, now: _deleting(o, o.status.phase)),
        Column(
            "Size",
            "Its root file system on disk.",
            lambda o, now: human_bytes(o.status.size_bytes) if o.status.size_bytes else "<none>",
        ),
        Column("Digest", "What names its content.", lambda o, now: _short_digest(o.status.digest)),
        Column("Source", "Where it comes from.", lambda o, now: _source_of(o)),
        _AGE,
        Column(
            "Message", "What is being done, or went wrong.", lambda o, now: _or_none(o.status.message or o.status.progress), 1
        ),
    ),
    Template: (
        _NAME,
        Column("Phase", "Whether boxes can be claimed from it.", lambda o, now: _deleting(o, o.status.phase)),
        Column("Image", "Its image.", lambda o, now: o.spec.image),
        Column("Warm", "How many forks of it wait, and between which bounds on each node.", lambda o, now: _warm(o)),
        Column("Nodes", "How many nodes have it.", lambda o, now: len(o.status.nodes), type="integer"),
        _AGE,
        Column("Size", "What it takes on a node's disk.", lambda o, now: _template_size(o), 1),
        Column("CPU", "The cores of its boxes.", lambda o, now: o.spec.resources.cpu, 1),
        Column("Memory", "The memory of its boxes.", lambda o, now: o.spec.resources.memory, 1),
        Column("Warm Up", "What ran before it was frozen.", lambda o, now: _or_none(warm_up_words(o)), 1),
        Column("Message", "What is being done, or went wrong.", lambda o, now: _or_none(o.status.message), 1),
    ),
    Volume: (
        _NAME,
        Column("Phase", "Whether a lifeform has it.", lambda o, now: _deleting(o, o.status.phase)),
        Column("Size", "The disk that the guest sees.", lambda o, now: o.spec.size),
        Column("Used", "What it takes in its owner's pool.", lambda o, now: _bytes_of(o.status.used_bytes)),
        Column("Node", "Its owner: where it is written.", lambda o, now: _or_none(o.status.node)),
        Column("Copies", "How many of its copies are whole, of those wanted.", lambda o, now: volume_copies(o)),
        Column("Lag", "How far the furthest copy is behind.", lambda o, now: volume_lag(o)),
        Column("Protection", "Whether the loss of a rack loses it.", lambda o, now: volume_protection(o)),
        Column("Lifeform", "Whose data it is.", lambda o, now: _or_none(o.spec.lifeform)),
        _AGE,
        Column("Snapshot", "Its newest snapshot.", lambda o, now: o.status.number, 1, "integer"),
        Column("Epoch", "The fencing number of its owner.", lambda o, now: o.status.epoch, 1, "integer"),
        Column("Filesystem", "What is on it.", lambda o, now: o.spec.filesystem, 1),
        Column("Replicas", "Who is to hold copies.", lambda o, now: _or_none(",".join(o.status.replicas)), 1),
    ),
    Secret: (
        _NAME,
        Column("Type", "What it is for.", lambda o, now: o.type),
        Column("Data", "How many keys it has.", lambda o, now: len(o.data), type="integer"),
        _AGE,
    ),
    Soup: (
        _NAME,
        Column("Nodes", "How many nodes it was made with.", lambda o, now: o.spec.nodes, type="integer"),
        Column("Incarnation", "How often its engine was rebuilt.", lambda o, now: o.status.incarnation, type="integer"),
        Column("Domain", "Where its names end.", lambda o, now: o.spec.domain),
        _AGE,
        Column("PodCIDR", "The addresses of its contexts.", lambda o, now: o.spec.pod_cidr, 1),
    ),
    Event: (
        Column(
            "Last Seen",
            "How long ago it happened last.",
            lambda o, now: age(o.last_timestamp or o.event_time or o.metadata.creation_timestamp, now),
        ),
        Column("Type", "Normal or Warning.", lambda o, now: o.type),
        Column("Reason", "A word for machines.", lambda o, now: o.reason),
        Column("Object", "What it happened to.", lambda o, now: f"{o.involved_object.kind.lower()}/{o.involved_object.name}"),
        Column("Message", "What happened.", lambda o, now: " ".join(o.message.split())),
        Column("Count", "How often.", lambda o, now: o.count, 1, "integer"),
        Column(
            "Source", "Who saw it.", lambda o, now: _or_none(", ".join(filter(None, (o.source.component, o.source.host)))), 1
        ),
        Column("Name", "The event's name.", lambda o, now: o.metadata.name, 1, format="name"),
    ),
}
