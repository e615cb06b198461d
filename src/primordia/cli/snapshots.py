"""`volume snapshot snapshots checkpoint restore clone export import`: a volume's content."""

from __future__ import annotations

import sys
from argparse import Namespace

import msgspec

from primordia.cli import printing
from primordia.cli.image import confirm
from primordia.cli.output import Progress, colourful, table
from primordia.cli.session import client
from primordia.cli.volume_names import volume_named
from primordia.client.volumes import Told
from primordia.kit.errors import PermanentError
from primordia.kit.units import human_bytes, parse_bytes
from primordia.wire import data as wire

HEADER = ("NUMBER", "EPOCH", "CUT", "CHANGED", "SIZE", "CHECKPOINT", "ROOT")


async def snapshot(options: Namespace) -> int:
    """Cut a volume now."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        taken = await soup.snapshot(name, quiesce=options.quiesce, namespace=options.namespace)
    return _tell_taken(options, name, taken)


async def checkpoint(options: Namespace) -> int:
    """Cut a volume now, under a name."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        taken = await soup.snapshot(name, checkpoint=options.checkpoint, quiesce=options.quiesce, namespace=options.namespace)
    return _tell_taken(options, name, taken)


async def list_(options: Namespace) -> int:
    """A volume's snapshots."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        found = await soup.snapshots(name, namespace=options.namespace)
    if options.output != "table":
        printing.print_plain([msgspec.to_builtins(each) for each in found], options.output)
        return 0
    print(table(HEADER, [_row(each) for each in found], colour=colourful(sys.stdout)))
    return 0


async def restore(options: Namespace) -> int:
    """Give a volume an old snapshot's content, after asking."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        if not options.yes and not confirm(
            f"Volume {name} goes back to {options.to}. What was written since then is no longer seen (a snapshot of now "
            "stays), and what runs with it is stopped for the moment. Go on?"
        ):
            return 1
        with Progress(quiet=options.quiet) as progress:
            progress(f"restore {name} to {options.to}")
            done = await soup.restore(name, options.to, namespace=options.namespace)
    print(restored_words(name, done))
    return 0


async def clone(options: Namespace) -> int:
    """A new volume with the same content."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        done = await soup.clone(name, options.new, source=options.source, orphan=options.orphan, namespace=options.namespace)
    print(f"volume/{done.name} cloned on {done.node}: {human_bytes(done.size_bytes)} in {done.took_ms:.1f} ms")
    return 0


async def export(options: Namespace) -> int:
    """Write a volume's content into a file."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        with Progress(quiet=options.quiet) as progress:
            done = await soup.export(
                name,
                options.file,
                source=options.source,
                namespace=options.namespace,
                told=_steps(progress, f"export {name}"),
            )
    size = human_bytes(done.size_bytes)
    print(f"{options.file}: snapshot {done.number} of {name}, {size}, verified (root {done.root[:16]})")
    return 0


async def import_(options: Namespace) -> int:
    """Make a volume with a file's content."""
    try:
        size = parse_bytes(options.size) if options.size else 0
    except ValueError as error:
        raise PermanentError(f"--size: {error}.") from error
    async with client(options) as soup:
        with Progress(quiet=options.quiet) as progress:
            progress(f"read {options.file}")
            done = await soup.import_volume(
                options.file,
                options.name,
                size_bytes=size,
                filesystem=options.filesystem,
                node=options.node,
                namespace=options.namespace,
                told=_steps(progress, f"import {options.file}"),
            )
    print(f"volume/{done.name} made on {done.node}: {human_bytes(done.size_bytes)}, verified (root {done.root[:16]})")
    return 0


def restored_words(name: str, done: wire.Restored) -> str:
    """What a restore did, and what was lost by it."""
    source = f"snapshot {done.source.number}" + (f" ({done.source.checkpoint})" if done.source.checkpoint else "")
    lost = f"{done.lost_seconds:.1f} s of writes are undone" if done.lost_seconds else "nothing was written since"
    ran = " What ran with it was stopped, and starts again." if done.restarted else ""
    return (
        f"volume/{name} is {source} of {done.source.at} again, as number {done.number} in epoch {done.epoch}: {lost}; "
        f"they are kept as snapshot {done.before.number}.{ran}"
    )


def _steps(progress: Progress, what: str) -> Told:
    """Progress in whole percents: not a line for each piece."""
    last = -1

    def told(done: int, of: int) -> None:
        nonlocal last
        percent = done * 100 // of if of else 100
        if percent != last:
            last = percent
            progress(f"{what}: {percent}% of {human_bytes(of)}")

    return told


def _tell_taken(options: Namespace, name: str, taken: wire.SnapshotTaken) -> int:
    if options.output != "table":
        printing.print_plain(msgspec.to_builtins(taken), options.output)
        return 0
    made = taken.snapshot
    kept = f", kept as {made.checkpoint}" if made.checkpoint else ""
    how = ", the guest's file system stood still" if taken.quiesced else ""
    print(f"volume/{name}: snapshot {made.number}{kept}, {human_bytes(made.changed_bytes)} changed{how}")
    if taken.note:
        print(taken.note, file=sys.stderr)
    return 0


def _row(each: wire.Snapshot) -> list[str]:
    sizes = (human_bytes(each.changed_bytes), human_bytes(each.size_bytes))
    return [str(each.number), str(each.epoch), each.at, *sizes, each.checkpoint or "-", each.root[:16]]
