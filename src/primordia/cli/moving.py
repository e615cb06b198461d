"""`migrate`, `node drain|evacuate` and `rack drain`: lifeforms moved away, one by one, each with its blackout.

What cannot move stays where it is and is named with the reason; the exit code is 1 then. Nothing of a drain is kept but the
cordon: who is interrupted says the same command again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from primordia.cli.nodes import in_order, rack_of, segment_of
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client
from primordia.client.aio import AsyncClient
from primordia.client.moves import Outcome, move
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.wire.resources import Context, Lifeform, Moving, Node, Volume
from primordia.wire.volumes import holder_finalizer

_LOOK_S = 1.0
_ROUNDS = 3
"""A lifeform that was being placed while its node was cordoned is found in the next round."""


@dataclass(frozen=True)
class Row:
    """What became of one thing on a drained node."""

    node: str
    what: str
    moved: bool
    words: str
    blackout_s: float | None = None


async def migrate(options: Namespace) -> int:
    """Move one lifeform."""
    to = f"node/{options.node}" if options.node else f"rack/{options.rack}" if options.rack else f"segment/{options.segment}"
    async with client(options) as soup:
        with Progress(quiet=options.quiet) as progress:
            outcome = await move(
                soup,
                options.name,
                to,
                namespace=options.namespace,
                timeout_s=options.timeout,
                tell=lambda moving: progress(step_words(options.name, moving)),
            )
    if outcome.moved is None:
        raise PermanentError(f"Lifeform {options.name} was not moved. {outcome.message}")
    if not options.quiet:
        print(f"lifeform/{options.name} {moved_words(outcome)}")
    return 0


async def drain(options: Namespace) -> int:
    """Cordon a node and move every lifeform away."""
    return await _drain_all(options, [options.name], evacuate=options.copies)


async def evacuate(options: Namespace) -> int:
    """The same, and the copies that it holds."""
    return await _drain_all(options, [options.name], evacuate=True)


async def drain_rack(options: Namespace) -> int:
    """Every node of a rack: none of them takes what another one gives away."""
    async with client(options) as soup:
        nodes = in_order((await soup.list(Node)).items)
    found = [node for node in nodes if rack_of(node) == options.name and options.segment in ("", segment_of(node))]
    segments = sorted({segment_of(node) for node in found})
    if not found:
        raise NotFoundError(f"There is no rack {options.name}.", remedy="`primordia racks` lists them.")
    if len(segments) > 1:
        raise PermanentError(
            f"There is a rack {options.name} in each of the segments {', '.join(segments)}.", remedy="Say which: --segment."
        )
    return await _drain_all(options, [node.metadata.name for node in found], evacuate=options.copies)


# ---------------------------------------------------------------- the work


async def _drain_all(options: Namespace, names: Sequence[str], *, evacuate: bool) -> int:
    end_s = time.monotonic() + options.timeout
    async with client(options) as soup:
        for name in names:
            spec = {"unschedulable": True, **({"evacuating": True} if evacuate else {})}
            await soup.patch(Node, name, {"spec": spec})
        rows: list[Row] = []
        with Progress(quiet=options.quiet) as progress:
            for name in names:
                rows += await _empty(soup, name, end_s, progress, force=options.force)
            if evacuate:
                rows += await _copies_left(soup, names, end_s, progress)
    stay = [row for row in rows if not row.moved]
    if not options.quiet and rows:
        print(rows_text(rows))
    what = f"node{'s' if len(names) > 1 else ''} {', '.join(names)}"
    if stay:
        raise PermanentError(
            f"Of {what} not everything has left: {len(stay)} {'stays' if len(stay) == 1 else 'stay'}, "
            f"as {stay[0].what}: {stay[0].words}",
            remedy="Put right what is said, and say the same again; `primordia node uncordon` takes it back.",
        )
    if not options.quiet:
        print(f"{what} {'are' if len(names) > 1 else 'is'} {'empty' if evacuate else 'drained'}, and takes nothing new")
    return 0


async def _empty(soup: AsyncClient, node: str, end_s: float, progress: Progress, *, force: bool) -> list[Row]:
    """Have every lifeform leave one node, and tell of boxes and forks."""
    rows: dict[str, Row] = {}
    for _ in range(_ROUNDS):
        there = lifeforms_on(node, (await soup.list(Lifeform, all_namespaces=True)).items)
        here = [each for each in there if _title(each) not in rows]
        if not here:
            break
        for count, lifeform in enumerate(here, 1):
            left_s = end_s - time.monotonic()
            title = _title(lifeform)
            if left_s <= 0:
                rows[title] = Row(node, title, False, "there was no time left for it.")
                continue
            rows[title] = await _away(soup, node, lifeform, left_s, progress, f"{node} {count}/{len(here)}")
            progress.say(row_text(rows[title]))
    boxes = await _boxes(soup, node, end_s, force=force)
    for row in boxes:
        progress.say(row_text(row))
    return [*rows.values(), *boxes]


async def _away(soup: AsyncClient, node: str, lifeform: Lifeform, left_s: float, progress: Progress, count: str) -> Row:
    meta, title = lifeform.metadata, _title(lifeform)
    progress(f"{count} {title}")
    try:
        outcome = await move(
            soup,
            meta.name,
            "elsewhere",
            namespace=meta.namespace,
            timeout_s=left_s,
            tell=lambda moving: progress(f"{count} {step_words(title, moving)}"),
        )
    except NotFoundError:
        return Row(node, title, True, "it was deleted meanwhile.")
    if outcome.moved is not None:
        return Row(node, title, True, moved_words(outcome), outcome.moved.blackout_seconds)
    return Row(node, title, outcome.node != node, outcome.message)


async def _boxes(soup: AsyncClient, node: str, end_s: float, *, force: bool) -> list[Row]:
    """Boxes and forks cannot move: what they are is in their memory. They are told, or ended."""
    rows = []
    for box in boxes_on(node, (await soup.list(Context, all_namespaces=True)).items):
        meta = box.metadata
        title = f"{meta.namespace}/{meta.name}"
        if not force:
            rows.append(Row(node, title, False, "a box or fork cannot move; --force ends it."))
            continue
        with contextlib.suppress(NotFoundError):
            await soup.delete(Context, meta.name, namespace=meta.namespace, uid=meta.uid)
            left_s = max(1.0, end_s - time.monotonic())
            await soup.wait(Context, meta.name, lambda one: one is None, namespace=meta.namespace, timeout_s=left_s)
        rows.append(Row(node, title, True, "ended."))
    return rows


async def _copies_left(soup: AsyncClient, nodes: Sequence[str], end_s: float, progress: Progress) -> list[Row]:
    """Wait until nothing of any volume is on the nodes; what is, at the end."""
    while True:
        volumes = (await soup.list(Volume, all_namespaces=True)).items
        left = [row for node in nodes for row in copies_on(node, volumes)]
        if not left or time.monotonic() >= end_s or all("no lifeform" in row.words for row in left):
            return left
        progress(f"wait until {len(left)} copies lie elsewhere, as that of {left[0].what}")
        await asyncio.sleep(_LOOK_S)


# ---------------------------------------------------------------- pure


def lifeforms_on(node: str, lifeforms: Iterable[Lifeform]) -> list[Lifeform]:
    """Those that are there and stay in being: who is recovered first is moved first, then by name."""
    here = [each for each in lifeforms if each.status.node == node and each.metadata.deletion_timestamp is None]
    return sorted(here, key=lambda each: (-_priority(each), each.metadata.namespace, each.metadata.name))


def _priority(lifeform: Lifeform) -> int:
    return lifeform.spec.recovery.priority if lifeform.spec.recovery is not None else 0


def boxes_on(node: str, contexts: Iterable[Context]) -> list[Context]:
    """The boxes and forks there that run."""
    return [
        each
        for each in contexts
        if each.spec.node == node and not each.spec.lifeform and each.status.phase not in ("Succeeded", "Failed")
    ]


def copies_on(node: str, volumes: Collection[Volume]) -> list[Row]:
    """What that node holds of volumes."""
    rows = []
    for volume in volumes:
        meta, status = volume.metadata, volume.status
        title = f"volume {meta.namespace}/{meta.name}"
        if status.node == node and not volume.spec.lifeform:
            rows.append(Row(node, title, False, "it is of no lifeform that could move: export, clone or destroy it."))
        elif node == status.node:
            rows.append(Row(node, title, False, "its lifeform has not left."))
        elif node in status.replicas or holder_finalizer(node) in meta.finalizers:
            why = next((each.message for each in status.conditions if each.type == "Protected"), "")
            rows.append(Row(node, title, False, f"its copy has not left yet. {why}".strip()))
    return rows


def step_words(name: str, moving: Moving) -> str:
    """What a move does now, in a few words."""
    words = {"Seeding": "is brought", "Stopping": "stops", "HandingOver": "is handed over", "Starting": "starts"}
    to = f" to {moving.to}" if moving.to else ""
    return f"{name} {words.get(moving.phase, moving.phase)}{to}{f' ({moving.message})' if moving.message else ''}"


def moved_words(outcome: Outcome) -> str:
    """How a move went."""
    moved = outcome.moved
    assert moved is not None
    return f"moved from {moved.from_node} to {moved.to}, epoch {moved.epoch}: {moved.blackout_seconds:.2f} s of blackout"


def row_text(row: Row) -> str:
    """One row, as progress."""
    return f"{row.what} {row.words}"


def rows_text(rows: Sequence[Row]) -> str:
    """All of them as a table."""
    cells = [
        [
            row.node,
            row.what,
            "left" if row.moved else "stays",
            "-" if row.blackout_s is None else f"{row.blackout_s:.2f}s",
            row.words,
        ]
        for row in rows
    ]
    return table(["NODE", "WHAT", "OUTCOME", "BLACKOUT", "HOW"], cells, colour=colourful(sys.stdout))


def _title(lifeform: Lifeform) -> str:
    return f"{lifeform.metadata.namespace}/{lifeform.metadata.name}"
