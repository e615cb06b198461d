"""Looking for what dead soups left: reads the kernel and the file system, lets leaks.py decide. Changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from primordia.host.leaks import SUPERVISED, Leak, NodeView, Observed, Places, Process, SoupView, find
from primordia.host.soup import SoupFile, read_soup
from primordia.kit import cgroup, netns
from primordia.kit.command import run
from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import NodePaths, SoupPaths, cache_dir

NAMESPACES = Path("/run/netns")
_GROUP_DEPTH = 4


async def look() -> tuple[Leak, ...]:
    """Look at this machine. Needs root to see everything; harmless."""
    here = SoupPaths.of("x")
    places = Places(here.state.parent, here.run.parent, cache_dir())
    # Records first: what appears afterwards has its record already, so nothing new is taken for a leftover.
    before = _soups(places)
    observed = await _observe(places)
    after = _soups(places)
    return find(observed, _merge(before, after), places)


def _merge(before: tuple[SoupView, ...], after: tuple[SoupView, ...]) -> tuple[SoupView, ...]:
    """What was allowed before or after the look: things come and go while we look."""
    merged = {soup.name: soup for soup in before}
    for soup in after:
        earlier = merged.get(soup.name)
        if earlier is None or not earlier.up:
            merged[soup.name] = soup
        else:
            old = {node.name: node.contexts for node in earlier.nodes}
            nodes = tuple(NodeView(node.name, node.contexts | old.get(node.name, frozenset())) for node in soup.nodes)
            merged[soup.name] = SoupView(soup.name, True, nodes)
    return tuple(merged.values())


def _soups(places: Places) -> tuple[SoupView, ...]:
    """The soups of our state folder, and those of others whose supervisors run: from tests, or from a container."""
    ours = [_view(path.name, path) for path in _entries(places.state) if (path / "soup.json").exists()]
    known = {soup.name for soup in ours}
    return (*ours, *(soup for soup in _elsewhere() if soup.up and soup.name not in known))


def _elsewhere() -> Iterator[SoupView]:
    for process in _all_processes():
        match = SUPERVISED.search(process.command)
        if match and match[1] == "supervisor":
            # Its folders are where its own root is, which need not be ours.
            config = Path(f"/proc/{process.pid}/root") / match[2].lstrip("/")
            if len(config.parents) > 3:
                folder = config.parents[2]
                yield _view(folder.name, folder)


def _view(name: str, folder: Path) -> SoupView:
    paths = SoupPaths(folder, folder)
    try:
        soup: SoupFile | None = read_soup(paths)
    except PrimordiaError:
        return SoupView(name, False)
    if soup is None or soup.phase != "up":
        return SoupView(name, False)
    nodes = []
    for node in soup.nodes:
        nodes.append(NodeView(node.name, frozenset(machines_of(paths.node(node.name)))))
    return SoupView(name, True, tuple(nodes))


def machines_of(node: NodePaths) -> Iterator[str]:
    """Every uid under which a node may have a microVM: its contexts', and what forks were called before they were any's.

    A fork has a disk in the pool's folder for as long as it is nobody's; a template that is built has a folder.
    """
    for folder in _entries(node.state / "contexts"):
        yield folder.name
        with contextlib.suppress(OSError, ValueError, AttributeError):
            yield str((json.loads((folder / "record.json").read_bytes()).get("run") or {}).get("machine", ""))
    for disk in node.pool.glob("*.ext4"):
        yield disk.stem
    for build in node.templates.glob(".build-*"):
        yield build.name.removeprefix(".build-")


def _entries(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    except OSError:
        return ()


async def _observe(places: Places) -> Observed:
    namespaces = tuple(sorted(path.name for path in NAMESPACES.glob("primordia-*")))
    interfaces = {"": tuple(name for name in await _links("") if name.startswith("primordia"))}
    for name in namespaces:
        interfaces[name] = await _links(name)
    return Observed(
        processes=tuple(_all_processes()),
        namespaces=namespaces,
        interfaces=interfaces,
        mounts=tuple(parse_mounts(Path("/proc/self/mountinfo").read_text(), places)),
        loops=tuple(_all_loops(places)),
        groups=tuple(_all_groups()),
        stray_groups=tuple(sorted({path.name for root in cgroup.hierarchies().roots() for path in root.glob("primordia-*")})),
        run_folders=tuple(path.name for path in _entries(places.run)),
        state_folders=tuple(path.name for path in _entries(places.state)),
    )


async def _links(namespace: str) -> tuple[str, ...]:
    argv = ["ip", "-j", "link", "show"]
    done = await run(netns.argv_in(namespace, argv) if namespace else argv, check=False)
    if done.status != 0:  # it went away meanwhile
        return ()
    return tuple(link["ifname"] for link in json.loads(done.stdout or b"[]"))


def _all_processes() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            groups = tuple(line.split(":", 2)[2] for line in (folder / "cgroup").read_text().splitlines())
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            if command:
                yield Process(int(folder.name), groups, command)


def parse_mounts(mountinfo: str, places: Places) -> Iterator[str]:
    """Mount points below our folders, from /proc/self/mountinfo (proc(5)), the innermost first."""
    points = []
    for line in mountinfo.splitlines():
        fields = line.split()
        if len(fields) > 4:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            if any(
                Path(point) != root and Path(point).is_relative_to(root) for root in (places.state, places.run, places.cache)
            ):
                points.append(point)
    yield from reversed(points)


def _all_loops(places: Places) -> Iterator[tuple[str, str]]:
    for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            file = path.read_text().strip().removesuffix(" (deleted)")
            if any(Path(file).is_relative_to(root) for root in (places.state, places.run, places.cache)):
                yield f"/dev/{path.parent.parent.name}", file


def _all_groups() -> Iterator[str]:
    yield from sorted({name for root in cgroup.hierarchies().roots() for name in groups_below(root / "primordia")})


def groups_below(top: Path) -> Iterator[str]:
    """The folders below `top`, four deep, by their paths from there. They come and go meanwhile (`Path.glob` would raise)."""
    for folder, names, _ in os.walk(top):
        here = Path(folder).relative_to(top)
        yield from (str(here / name) for name in names)
        if len(here.parts) >= _GROUP_DEPTH - 1:
            names.clear()
