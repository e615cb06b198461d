"""`up down status version`: the soup as a whole."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import datetime
import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING

from primordia import __version__
from primordia.cli import manifests, printing
from primordia.cli.blast import protection_counts
from primordia.cli.failover import survival_counts
from primordia.cli.image import confirm
from primordia.cli.nodes import Rack, in_order, nodes_text, rack_of, racks_of, racks_text, room_of, segment_of
from primordia.cli.objects import apply_all, wait_ready
from primordia.cli.output import Progress
from primordia.cli.session import client
from primordia.client.aio import AsyncClient, connect
from primordia.kit.errors import InvalidError, PermanentError, PrimordiaError
from primordia.kit.units import human_bytes, parse_bytes
from primordia.wire.resources import Context, Event, Image, Lifeform, Node, Volume
from primordia.wire.tables import node_state

if TYPE_CHECKING:
    from primordia.host.pool import PoolWish

_EVENTS_SHOWN = 5
_NODES_SHOWN = 16
_WORRIES = ("Recovered", "Ready", "Scheduled")


def owner() -> tuple[int, int]:
    """The person who called: under sudo not root. Uid and gid."""
    try:
        return int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return os.getuid(), os.getgid()


async def up(options: Namespace) -> int:
    """Start a soup, then apply what its configuration folder holds."""
    from primordia.host import up as host
    from primordia.host.shape import shape_of, words_of

    configured, found = manifests.read_soup(options.config) if options.config else (None, [])
    if configured is not None and configured.spec.domain != "soup.internal":
        raise InvalidError("spec.domain", "another domain is not supported yet.", remedy="Leave it out.")
    settings = host.UpOptions(
        soup=options.soup,
        shape=shape_of(configured, nodes=options.nodes, racks=options.racks, segments=options.segments),
        client_config=options.client_config,
        owner=owner(),
        pool=pool_wish(options, configured.spec.pool if configured is not None else ""),
    )
    if configured is not None:
        settings = dataclasses.replace(settings, pod_cidr=configured.spec.pod_cidr, timings=configured.spec.timings)
    if options.address:
        await _found(options, settings.pod_cidr)
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        async with asyncio.timeout(options.timeout):
            result = await host.up(settings, progress, progress.say)
    if found:
        async with connect(result.client_config) as soup:
            await apply_all(soup, found, "")
            if options.wait:
                with Progress(quiet=options.quiet) as progress:
                    await wait_ready(soup, found, "", options.timeout, progress)
    if not options.quiet:
        total = sum(seconds for _, seconds in result.seconds)
        others = f" and {len(result.servers) - 1} more" if len(result.servers) > 1 else ""
        what = words_of(result.soup.nodes)
        print(f"soup {options.soup} is up after {total:.1f} s: {what}, at {result.servers[0]}{others}")
    return 0


def pool_wish(options: Namespace, configured: str = "") -> PoolWish:
    """What the flags, or else soup.yaml, say of pools. Raises InvalidError."""
    from primordia.host.pool import PoolWish

    flag, size = ("--pool-size", options.pool_size) if options.pool_size else ("spec.pool", configured)
    try:
        size_bytes = parse_bytes(size) if size else 0
    except ValueError as error:
        raise InvalidError(flag, f"{error}".rstrip(".") + ".") from error
    if options.pool_size and options.pool_device:
        raise InvalidError("--pool-size", "a device has the size that it has.", remedy="Leave one of the two out.")
    if options.pool_format and not options.pool_device:
        raise InvalidError("--pool-format", "there is no --pool-device to format.")
    return PoolWish(0 if options.pool_device else size_bytes, options.pool_device, options.pool_format)


async def _found(options: Namespace, pod_cidr: str) -> None:
    """Make this machine the first of a soup of machines."""
    from primordia.host import machine

    await machine.found(
        machine.FoundOptions(
            soup=options.soup,
            address=options.address,
            name=options.name,
            rack=options.rack,
            segment=options.segment,
            pod_cidr=pod_cidr,
        )
    )


async def down(options: Namespace) -> int:
    """Stop a soup; with --destroy delete its state, after asking."""
    from primordia.host import up as host

    host.require_root()
    if options.destroy and not options.yes and not confirm(f"Delete everything that soup {options.soup} holds?"):
        raise PermanentError("Nothing was changed.", remedy="Say --yes to agree beforehand.")
    with Progress(quiet=options.quiet, all_steps=True) as progress:
        await host.down(options.soup, progress, destroy=options.destroy, client_config=options.client_config, owner=owner())
    if not options.quiet:
        print(f"soup {options.soup} is {'gone' if options.destroy else 'down; its state stays'}")
    return 0


# ---------------------------------------------------------------- version and status


async def version(options: Namespace) -> int:
    """Our version and the soup's; without a soup ours alone."""
    ours = {"version": __version__, "python": sys.version.split()[0]}
    theirs: dict[str, object] = {}
    problem = ""
    try:
        async with client(options) as soup:
            theirs = await soup.version()
    except PrimordiaError as error:
        problem = str(error)
    if options.output == "json":
        printing.print_plain({"client": ours, "server": theirs or None}, "json")
    else:
        print(f"client  {__version__} (Python {ours['python']})")
        print(f"server  {theirs.get('gitVersion', 'unknown')}" if theirs else f"server  none: {problem}")
    return 0


async def status(options: Namespace) -> int:
    """One screen: nodes, lifeforms by phase, what is not well, and the last warnings."""
    async with client(options) as soup:
        nodes, lifeforms, contexts, images, volumes, events = await asyncio.gather(
            soup.list(Node),
            soup.list(Lifeform, all_namespaces=True),
            soup.list(Context, all_namespaces=True),
            soup.list(Image),
            soup.list(Volume, all_namespaces=True),
            soup.list(Event, all_namespaces=True, fields="type=Warning"),
        )
        found = in_order(nodes.items)
        facts = _facts(soup, found, lifeforms.items, contexts.items, images.items, events.items)
        facts["volumes"] = protection_counts(volumes.items)
        facts["notReady"] = [*await _frozen(soup.config.soup), *_listed(facts["notReady"])]
        facts["survival"] = survival_counts(lifeforms.items, volumes.items)
    if options.output == "json":
        printing.print_plain(facts, "json")
    else:
        machines = _machines(found, racks_of(found, lifeforms.items))
        print(_screen(facts, machines))
    return 0


async def _frozen(soup: str) -> list[str]:
    """The nodes on this machine whose microVMs stand, which they can tell nobody but us."""
    from primordia.host import fences

    found = await asyncio.to_thread(fences.look, soup)
    return [f"node/{word.node}: {word.sentence()}" for word in found if word.frozen]


def _listed(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _facts(
    soup: AsyncClient,
    nodes: list[Node],
    lifeforms: tuple[Lifeform, ...],
    contexts: tuple[Context, ...],
    images: tuple[Image, ...],
    warnings: Iterable[Event],
) -> dict[str, object]:
    sizes = {image.status.digest: image.status.size_bytes for image in images if image.status.digest}
    latest = sorted(warnings, key=lambda event: event.last_timestamp or event.event_time or "")[-_EVENTS_SHOWN:]
    return {
        "soup": soup.config.soup,
        "server": soup.transport.server,
        "nodes": [_node(node) for node in nodes],
        "racks": [rack.plain() for rack in racks_of(nodes, lifeforms)],
        "lifeforms": dict(collections.Counter(each.status.phase for each in lifeforms)),
        "contexts": dict(collections.Counter(each.status.phase for each in contexts)),
        "images": {"count": len(images), "bytes": sum(sizes.values())},
        "notReady": [*unwell(nodes), *sorted(_troubles(lifeforms))],
        "warnings": [
            {
                "time": event.last_timestamp or event.event_time or "",
                "about": f"{event.involved_object.kind.lower()}/{event.involved_object.name}",
                "reason": event.reason,
                "message": event.message,
            }
            for event in latest
        ],
    }


def _node(node: Node) -> dict[str, object]:
    room = room_of(node)
    ready = next((each for each in node.status.conditions if each.type == "Ready"), None)
    return {
        "name": node.metadata.name,
        "segment": segment_of(node),
        "rack": rack_of(node),
        "status": node_state(node),
        "ready": ready is not None and ready.status == "True",
        "schedulable": not node.spec.unschedulable,
        "cpu": room.cpu_words(),
        "memory": room.memory_words(),
        "contexts": node.status.allocated.contexts,
        "accelerator": node.status.accelerator,
    }


def unwell(nodes: Iterable[Node]) -> Iterable[str]:
    """What is wrong with nodes; of one whose lease has ended, that."""
    for node in nodes:
        ready = next((each for each in node.status.conditions if each.type == "Ready"), None)
        if ready is not None and ready.status != "True":
            yield f"node/{node.metadata.name}: {ready.message or ready.reason or ready.status}"


def _troubles(lifeforms: Iterable[Lifeform]) -> Iterable[str]:
    for each in lifeforms:
        # What it waits for says more than that it is not ready.
        worries = sorted(
            (one for one in each.status.conditions if one.status != "True" and one.type in _WORRIES),
            key=lambda one: _WORRIES.index(one.type),
        )
        bad = worries[0] if worries else None
        if each.spec.operating_mode == "Running" and bad is not None:
            yield f"{each.metadata.namespace}/{each.metadata.name}: {bad.message or bad.reason or each.status.phase}"


def _machines(nodes: list[Node], racks: list[Rack]) -> str:
    """The nodes while they fit a screen, else the racks."""
    if len(nodes) <= _NODES_SHOWN:
        return nodes_text(nodes, datetime.datetime.now(datetime.UTC))
    return racks_text(racks)


def _screen(facts: dict[str, object], machines: str) -> str:
    images = facts["images"]
    assert isinstance(images, dict)
    lines = [
        f"soup {facts['soup']} at {facts['server']}",
        "",
        machines,
        "",
        f"lifeforms  {_counts(facts['lifeforms'])}",
        f"contexts   {_counts(facts['contexts'])}",
        f"volumes    {_counts(facts['volumes'])}",
        f"survival   {_counts(facts['survival'])}",
        f"images     {images['count']}, {human_bytes(images['bytes'])}",
    ]
    for title, key in (("not ready", "notReady"), ("warnings", "warnings")):
        found = facts[key]
        assert isinstance(found, list)
        if found:
            lines += ["", title, *(f"  {_trouble(each)}" for each in found)]
    return "\n".join(lines)


def _trouble(each: object) -> str:
    if isinstance(each, dict):
        return f"{each['about']}: {each['reason']}: {each['message']}"
    return str(each)


def _counts(counts: object) -> str:
    assert isinstance(counts, dict)
    return ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())) or "none"
