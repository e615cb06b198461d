"""`describe`: an object told for people, with the events about it."""

from __future__ import annotations

import datetime
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from primordia.cli.describe_forks import CAME, Lines, template_lines, whose_lines
from primordia.cli.describe_moves import move_lines, schedulable_words
from primordia.cli.describe_volumes import COPIES, copy_rows, data_lines, pool_words, volume_lines
from primordia.cli.failover import recovered_words, waits, what_for
from primordia.cli.output import printable, table
from primordia.cli.session import client, references
from primordia.cli.volume_names import volumes_named
from primordia.client.aio import AsyncClient
from primordia.kit.units import human_age, human_bytes
from primordia.wire.conditions import FAILOVER_HELD, NODE_DEAD
from primordia.wire.meta import LABEL_LIFEFORM, Condition
from primordia.wire.resources import Context, ContextTemplate, Event, Image, Lifeform, Node, Resource, Secret, Template, Volume
from primordia.wire.volume_rules import uses


async def describe(options: Namespace) -> int:
    """Tell about each object that is named, or about all of a kind."""
    async with client(options) as soup:
        await _tell(soup, references(options.kind, options.names), options.namespace)
    return 0


async def node(options: Namespace) -> int:
    """`node describe`."""
    async with client(options) as soup:
        await _tell(soup, [(Node, name) for name in options.names] or [(Node, "")], "")
    return 0


async def template(options: Namespace) -> int:
    """`template describe`."""
    async with client(options) as soup:
        await _tell(soup, [(Template, name) for name in options.names] or [(Template, "")], "")
    return 0


async def volume(options: Namespace) -> int:
    """`volume describe`."""
    async with client(options) as soup:
        names = [each for name in options.names for each in await volumes_named(soup, name, options.namespace)]
        await _tell(soup, [(Volume, name) for name in names] or [(Volume, "")], options.namespace)
    return 0


async def _tell(soup: AsyncClient, wanted: Sequence[tuple[type[Resource], str]], namespace: str) -> None:
    found: list[Resource] = []
    for kind, name in wanted:
        if name:
            found.append(await soup.get(kind, name, namespace=namespace))
        else:
            found += (await soup.list(kind, namespace=namespace)).items
    for number, obj in enumerate(found):
        if number:
            print("\n")
        volumes = await _volumes_of(soup, obj)
        events = await _events_about(soup, obj, volumes)
        print(text_of(obj, events, datetime.datetime.now(datetime.UTC), volumes))


async def _events_about(soup: AsyncClient, obj: Resource, volumes: Sequence[Volume]) -> list[Event]:
    """The events about an object, and about a lifeform's contexts and volumes: they are what it does."""
    namespace = obj.metadata.namespace or "default"
    uids = [obj.metadata.uid, *(volume.metadata.uid for volume in volumes)]
    if isinstance(obj, Lifeform):
        labels = f"{LABEL_LIFEFORM}={obj.metadata.name}"
        uids += [context.metadata.uid for context in (await soup.list(Context, namespace=namespace, labels=labels)).items]
    found: list[Event] = []
    for uid in uids:
        found += (await soup.list(Event, namespace=namespace, fields=f"involvedObject.uid={uid}")).items
    return found


async def _volumes_of(soup: AsyncClient, obj: Resource) -> Sequence[Volume]:
    """A lifeform's volumes."""
    if not isinstance(obj, Lifeform) or not any(context.data for context in obj.spec.contexts):
        return ()
    return [each for each in (await soup.list(Volume, namespace=obj.metadata.namespace)).items if uses(obj, each)]


def text_of(obj: Resource, events: Sequence[Event], now: datetime.datetime, volumes: Sequence[Volume] = ()) -> str:
    """The whole text about one object."""
    parts = [_columns(_head(obj, now) + _body(obj, now) + _placement(obj, events))]
    conditions: Sequence[Condition] = getattr(getattr(obj, "status", None), "conditions", ())
    if conditions:
        parts.append(_conditions(conditions, now))
    if isinstance(obj, Lifeform):
        parts += _contexts(obj)
        parts += [_data(volume) for volume in volumes]
    if isinstance(obj, Volume):
        parts.append(_copies(obj))
    parts.append(_events(events, now))
    return "\n\n".join(parts)


def _head(obj: Resource, now: datetime.datetime) -> Lines:
    metadata = obj.metadata
    lines: Lines = [("Name", metadata.name)]
    if metadata.namespace:
        lines.append(("Namespace", metadata.namespace))
    lines += [("Kind", obj.KIND), ("Labels", _mapping(metadata.labels))]
    lines.append(("Age", age(metadata.creation_timestamp, now)))
    if metadata.deletion_timestamp:
        lines.append(("Deleting", f"since {age(metadata.deletion_timestamp, now)}, held by {', '.join(metadata.finalizers)}"))
    return lines


def _body(obj: Resource, now: datetime.datetime) -> Lines:
    if isinstance(obj, Lifeform):
        return _lifeform(obj)
    if isinstance(obj, Context):
        return _context(obj, now)
    if isinstance(obj, Node):
        return _node(obj)
    if isinstance(obj, Image):
        return _image(obj)
    if isinstance(obj, Template):
        return template_lines(obj)
    if isinstance(obj, Volume):
        return volume_lines(obj)
    if isinstance(obj, Secret):
        # Names and sizes only: a secret is not for the screen.
        return [
            ("Data", ", ".join(f"{key} ({len(value) * 3 // 4} bytes)" for key, value in sorted(obj.data.items())) or "none")
        ]
    return [(key, str(value)) for key, value in msgspec.to_builtins(obj).items() if isinstance(value, str | int)]


def _lifeform(obj: Lifeform) -> Lines:
    status, spec = obj.status, obj.spec
    return [
        ("Phase", status.phase),
        (
            "Mode",
            f"{spec.operating_mode}, its memory kept"
            if spec.keep_memory and spec.operating_mode == "Suspended"
            else spec.operating_mode,
        ),
        (
            "Node",
            " ".join(
                filter(
                    None,
                    (status.node, f"rack {status.rack}" if status.rack else "", status.segment and f"segment {status.segment}"),
                )
            )
            or "none yet",
        ),
        ("Epoch", str(status.epoch)),
        ("Restarts", spec.restart_policy),
        ("Egress", "allowed" if spec.network.egress else "denied"),
        ("Placement", _wanted_place(obj)),
        *_survival(obj),
    ]


def _survival(obj: Lifeform) -> Lines:
    """What it came from, and what it waits for."""
    lines: Lines = []
    if obj.status.recovered is not None:
        lines.append(("Recovered", recovered_words(obj.status.recovered)))
    if waits(obj):
        lines.append(("Waits for", ": ".join(what_for(obj))))
    return [*lines, *move_lines(obj.status)]


def _wanted_place(obj: Lifeform) -> str:
    words = _mapping(obj.spec.node_selector) if obj.spec.node_selector else "any node"
    company = obj.spec.colocate_with
    return f"{words}, beside lifeforms with {_mapping(company.match_labels)}" if company is not None else words


def _placement(obj: Resource, events: Sequence[Event]) -> Lines:
    """Why a lifeform is where it is, or nowhere: in the words of whoever decided it."""
    if not isinstance(obj, Lifeform):
        return []
    told = [each for each in events if each.reason == "Scheduled" and each.involved_object.uid == obj.metadata.uid]
    if obj.status.node and told:
        latest = max(told, key=lambda each: each.last_timestamp or each.event_time or "")
        return [("Why there", latest.message.partition(": ")[2] or latest.message)]
    refused = next((each for each in obj.status.conditions if each.type == "Scheduled" and each.status == "False"), None)
    return [("Why nowhere", refused.message)] if refused is not None and not obj.status.node else []


def _context(obj: Context, now: datetime.datetime) -> Lines:
    status = obj.status
    lines: Lines = [
        *whose_lines(obj),
        ("Node", obj.spec.node),
        ("Phase", status.phase),
        ("Ready", str(status.ready)),
        ("Address", status.ip or "none yet"),
        ("Epoch", str(obj.spec.epoch)),
        ("Restarts", str(status.restarts)),
        (
            "Started",
            f"{age(status.started_at, now)} ago, because: {status.started_because}" if status.started_at else "not yet",
        ),
        ("Boot", f"{status.boot_ms:.0f} ms" if status.boot_ms else "unknown"),
        ("Came from", CAME.get(status.started_from, status.started_from) or "unknown"),
        ("Process", str(status.pid) if status.pid else "none"),
    ]
    if status.confirmed:
        lines.append(("Confirmed", ", ".join(status.confirmed)))
    if status.exit_code is not None:
        lines.append(("Exit code", str(status.exit_code)))
    if status.message:
        lines.append(("Message", status.message))
    return lines + _template(obj.spec.template)


def _template(template: ContextTemplate) -> Lines:
    lines: Lines = [("Image", template.image)]
    if template.command is not None:
        lines.append(("Command", " ".join(template.command)))
    if template.args is not None:
        lines.append(("Arguments", " ".join(template.args)))
    lines.append(("Resources", f"cpu {template.resources.cpu}, memory {template.resources.memory}"))
    if template.ports:
        lines.append(("Ports", ", ".join(_port(port.container_port, port.publish, port.name) for port in template.ports)))
    if template.env:
        lines.append(("Environment", ", ".join(variable.name for variable in template.env)))
    if template.data is not None:
        lines.append(("Data", f"{template.data.size} at {template.data.mount_path}, {template.data.filesystem}"))
    if template.secrets:
        lines.append(("Secrets", ", ".join(f"{secret.name} at {secret.mount_path}" for secret in template.secrets)))
    if template.readiness_probe is not None:
        lines.append(("Readiness", _one_line(msgspec.to_builtins(template.readiness_probe))))
    return lines


def _port(inner: int, publish: int, name: str) -> str:
    words = f"{inner}" + (f" ({name})" if name else "")
    return f"{words} published as {publish}" if publish else words


def _node(obj: Node) -> Lines:
    status = obj.status
    capacity, used = status.capacity, status.allocated
    ready = next((each for each in status.conditions if each.type == "Ready"), None)
    dead: Lines = [("Death", ready.message)] if ready is not None and ready.reason in (NODE_DEAD, FAILOVER_HELD) else []
    return [
        *dead,
        ("Schedulable", schedulable_words(obj)),
        ("Address", f"{status.address} (clients: {status.api_endpoint})"),
        ("Context range", obj.spec.pod_cidr),
        ("CPU", f"{used.cpu} of {capacity.cpu} given away"),
        ("Memory", f"{used.memory} of {capacity.memory} given away"),
        ("Contexts", f"{used.contexts} of {capacity.contexts}"),
        ("Disk", capacity.disk),
        ("Pool", pool_words(status.pool)),
        ("Accelerator", f"{status.accelerator}: {status.accelerator_reason}"),
        ("VMM", status.vmm_version),
        ("Kernel", status.kernel_version),
        ("Version", status.version),
        ("Images", str(len(status.images))),
    ]


def _image(obj: Image) -> Lines:
    spec, status = obj.spec, obj.status
    source = f"Debian packages {' '.join(spec.debian.packages)}" if spec.debian else ""
    if spec.oci:
        source = spec.oci.reference + ("" if spec.oci.tls_verify else " (TLS not checked)")
    lines: Lines = [
        ("Source", source),
        ("Phase", status.phase),
        ("Digest", status.digest or "none yet"),
        ("Size", human_bytes(status.size_bytes)),
        ("Nodes", ", ".join(status.nodes) or "none"),
    ]
    config = status.config if status.digest else spec.config
    lines.append(("Runs", " ".join((*(config.entrypoint or ()), *(config.cmd or ()))) or "nothing by itself"))
    if config.user:
        lines.append(("User", config.user))
    if config.working_dir:
        lines.append(("Folder", config.working_dir))
    if status.message:
        lines.append(("Message", status.message))
    return lines


# ---------------------------------------------------------------- parts


def _contexts(obj: Lifeform) -> Iterable[str]:
    rows = [
        [each.name, each.phase, str(each.ready), each.ip or "-", str(each.restarts), each.message or "-"]
        for each in obj.status.contexts
    ]
    if rows:
        yield "Contexts\n" + _indented(table(["NAME", "PHASE", "READY", "ADDRESS", "RESTARTS", "MESSAGE"], rows))
    for template in obj.spec.contexts:
        yield f"Context {template.name}\n" + _indented(_columns(_template(template)))


def _data(volume: Volume) -> str:
    title = f"Data of {volume.spec.context or volume.metadata.name}"
    return f"{title}\n" + _indented(_columns(data_lines(volume)) + "\n" + _copies(volume))


def _copies(volume: Volume) -> str:
    rows = copy_rows(volume)
    return "Copies\n" + _indented(table(COPIES, rows)) if rows else "Copies: none"


def _conditions(conditions: Sequence[Condition], now: datetime.datetime) -> str:
    rows = [
        [each.type, each.status, age(each.last_transition_time, now), each.reason or "-", each.message or "-"]
        for each in conditions
    ]
    return "Conditions\n" + _indented(table(["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"], rows))


def _events(events: Sequence[Event], now: datetime.datetime) -> str:
    rows = [
        [age(each.last_timestamp or each.event_time, now), each.type, each.reason, str(each.count), each.message]
        for each in sorted(events, key=lambda each: each.last_timestamp or each.event_time or "")
    ]
    return "Events\n" + _indented(table(["AGE", "TYPE", "REASON", "COUNT", "MESSAGE"], rows)) if rows else "Events: none"


def age(timestamp: str | None, now: datetime.datetime) -> str:
    """The age of an RFC 3339 time; `unknown` where there is none."""
    try:
        then = datetime.datetime.fromisoformat(timestamp or "")
    except ValueError:
        return "unknown"
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return human_age((now - then).total_seconds())


def _mapping(values: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items())) or "none"


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(inner)}" for key, inner in value.items() if inner is not None)
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _columns(lines: Lines) -> str:
    width = max(len(key) for key, _ in lines) + 1
    return "\n".join(f"{key + ':':<{width}}  {printable(value)}".rstrip() for key, value in lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
