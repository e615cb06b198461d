"""What dead soups left on this machine: everything that carries our name and belongs to no soup that is up.

Pure: `find` compares what was observed with what the soups' identity files and contexts' records allow.
A soup that is up may have its daemon restarting, its supervisor dead or its microVMs booting: its things are no leak. A
context's record is written before anything of it is made and removed after all of it is gone, so a microVM's things
without a record are one at any instant.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from primordia.host.soup import netns_name

SUPERVISED = re.compile(r"-m\0primordia\.(supervisor|daemon)\0([^\0]+/node\.json)")
_TAP = re.compile(r"t[0-9a-f]{10}")


@dataclass(frozen=True)
class Leak:
    """One leftover. `kind` is process, namespace, interface, mount, loop, cgroup or files."""

    kind: str
    name: str
    detail: str
    remedy: str


@dataclass(frozen=True)
class Process:
    """A running process: `groups` are its cgroups' paths, `command` its arguments with NULs between them."""

    pid: int
    groups: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class NodeView:
    """A node of a soup that is up, and the uids under which it may have microVMs: of contexts that it has records of, of
    forks that wait, of templates that it builds."""

    name: str
    contexts: frozenset[str]


@dataclass(frozen=True)
class SoupView:
    """A soup that is known: `up` says whether things of it may exist besides its state."""

    name: str
    up: bool
    nodes: tuple[NodeView, ...] = ()


@dataclass(frozen=True)
class Observed:
    """Everything on the machine that carries our name.

    `groups` are cgroups below `primordia`, as `S/N/vm/UID`; `stray_groups` those beside it, as `primordia-probe-x`.
    """

    processes: tuple[Process, ...] = ()
    namespaces: tuple[str, ...] = ()
    interfaces: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mounts: tuple[str, ...] = ()
    loops: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    stray_groups: tuple[str, ...] = ()
    run_folders: tuple[str, ...] = ()
    state_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Places:
    """The folders in which soups leave files."""

    state: Path
    run: Path
    cache: Path


def find(observed: Observed, soups: Iterable[SoupView], places: Places) -> tuple[Leak, ...]:
    """The leftovers, in order of kind and name."""
    known = {soup.name: soup for soup in soups}
    up = {name: soup for name, soup in known.items() if soup.up}
    leaks = [
        *_processes(observed, up, places),
        *_namespaces(observed, up),
        *_interfaces(observed, up),
        *_mounts(observed, up, places),
        *_loops(observed, up, places),
        *_groups(observed, up),
        *_folders(observed, known, up, places),
    ]
    return tuple(sorted(leaks, key=lambda leak: (leak.kind, leak.name)))


def _processes(observed: Observed, up: dict[str, SoupView], places: Places) -> Iterator[Leak]:
    for process in observed.processes:
        soup = _soup_of(process, places)
        if soup is not None and soup not in up:
            words = process.command.replace("\0", " ").strip()
            yield Leak("process", str(process.pid), f"of soup {soup}, which is not up: {words[:120]}", f"kill {process.pid}")


def _soup_of(process: Process, places: Places) -> str | None:
    for group in process.groups:
        parts = group.strip("/").split("/")
        if parts[0] == "primordia" and len(parts) > 1:
            return parts[1]
    match = SUPERVISED.search(process.command)
    if match and Path(match[2]).is_relative_to(places.state):
        return Path(match[2]).relative_to(places.state).parts[0]
    return None


def _namespaces(observed: Observed, up: dict[str, SoupView]) -> Iterator[Leak]:
    allowed = {netns_name(soup.name, "switch") for soup in up.values()}
    allowed |= {netns_name(soup.name, node.name) for soup in up.values() for node in soup.nodes}
    for name in observed.namespaces:
        if name not in allowed:
            yield Leak("namespace", name, "belongs to no soup that is up", f"ip netns delete {name}")


def tap_name(uid: str) -> str:
    """The TAP of a context, by the rule of design note 0001."""
    return f"t{hashlib.sha256(uid.encode()).hexdigest()[:10]}"


def _interfaces(observed: Observed, up: dict[str, SoupView]) -> Iterator[Leak]:
    allowed = {
        netns_name(soup.name, node.name): {tap_name(uid) for uid in node.contexts}
        for soup in up.values()
        for node in soup.nodes
    }
    for namespace, names in observed.interfaces.items():
        for name in names:
            if namespace == "" or (_TAP.fullmatch(name) and name not in allowed.get(namespace, set())):
                where = f"in namespace {namespace}" if namespace else "in the host's namespace"
                netns = f"-n {namespace} " if namespace else ""
                yield Leak("interface", name, f"{where}, belongs to no context", f"ip {netns}link delete {name}")


def _mounts(observed: Observed, up: dict[str, SoupView], places: Places) -> Iterator[Leak]:
    for mount in observed.mounts:
        if _owner(Path(mount), places) not in up:
            yield Leak("mount", mount, "belongs to no soup that is up", f"umount {mount}")


def _loops(observed: Observed, up: dict[str, SoupView], places: Places) -> Iterator[Leak]:
    for device, file in observed.loops:
        if _owner(Path(file), places) not in up:
            yield Leak("loop", device, f"on {file}, which belongs to no soup that is up", f"losetup --detach {device}")


def _owner(path: Path, places: Places) -> str | None:
    """The soup to which a path belongs; the empty name for the cache's, which no soup mounts for long."""
    for root in (places.state, places.run):
        if path != root and path.is_relative_to(root):
            return path.relative_to(root).parts[0]
    return "" if path.is_relative_to(places.cache) else None


def _groups(observed: Observed, up: dict[str, SoupView]) -> Iterator[Leak]:
    for name in observed.stray_groups:
        yield Leak("cgroup", name, "is of a probe or test that ended", "end its processes, then rmdir it in every hierarchy")
    for group in observed.groups:
        parts = group.split("/")
        soup = up.get(parts[0])
        detail = ""
        if soup is None:
            # Of a dead soup's tree its root says enough.
            detail = "belongs to no soup that is up" if len(parts) == 1 else ""
        elif len(parts) == 4 and parts[2] == "vm":
            node = next((node for node in soup.nodes if node.name == parts[1]), None)
            if node is None or parts[3] not in node.contexts:
                detail = "belongs to no context that its node knows"
        if detail:
            yield Leak("cgroup", f"primordia/{group}", detail, f"`primordia down --destroy --soup {parts[0]}`, or reboot")


def _folders(observed: Observed, known: dict[str, SoupView], up: dict[str, SoupView], places: Places) -> Iterator[Leak]:
    for name in observed.run_folders:
        if name not in up:
            folder = places.run / name
            yield Leak("files", str(folder), "run files of a soup that is not up", f"rm -r {folder}")
    for name in observed.state_folders:
        if name not in known:
            folder = places.state / name
            yield Leak("files", str(folder), "state without an identity (soup.json)", f"primordia down --destroy --soup {name}")
