"""`soup rebuild`: the engine begins anew, and all that its nodes kept is written into it.

For the one case that nothing else covers: every engine server has lost its data. What runs goes on meanwhile (the nodes tell
each other that nobody has an engine) and is taken up again as it runs. The order is the safety: every daemon is restarted with
settings that name the next incarnation *before* there is a new engine, and believes none until that incarnation is whole
(daemon/incarnation.py); only then do the servers begin. May be killed anywhere: before the servers begin the same command
does it all again, after that the daemons finish it by themselves.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from primordia.host.answering import READY_WITHIN_S, answers
from primordia.host.remaking import Remade, remade
from primordia.host.soup import SoupFile, SoupNode, read_config, read_soup, write_config, write_soup
from primordia.host.up import require_root, soup_lock
from primordia.kit.errors import ConflictError, NotFoundError, TemporaryError, UnsupportedError
from primordia.kit.files import write_atomic
from primordia.kit.identity import running_pid
from primordia.kit.paths import SoupPaths
from primordia.node.keeping import read_kept
from primordia.supervisor import control, engine_data
from primordia.supervisor.main import PID_FILE, SOCKET_FILE
from primordia.wire.resources import Resource, Soup

Progress = Callable[[str], None]
_DAEMON_WITHIN_S = 60.0


@dataclass(frozen=True)
class Findings:
    """What there is to rebuild from; `problems` are sentences about what could not be read."""

    soup: SoupFile
    remade: Remade
    problems: tuple[str, ...]


def look(name: str) -> Findings:
    """See what the nodes kept; changes nothing. Raises NotFoundError, ConflictError (there is an engine), UnsupportedError."""
    require_root()
    paths = SoupPaths.of(name)
    soup = read_soup(paths)
    if soup is None:
        raise NotFoundError(f"There is no soup {name!r} on this machine.", remedy="`primordia status` shows the one in use.")
    if soup.real:
        raise UnsupportedError(
            "A soup of real machines cannot be rebuilt by one command yet; only one whose nodes are all here."
        )
    _check_lost(soup, paths)
    kept: dict[str, list[Resource]] = {}
    problems: list[str] = []
    for node in soup.nodes:
        found, bad = read_kept(paths.node(node.name).kept)
        problems += bad
        if found:
            kept[node.name] = found
    plan = remade(kept, soup.incarnation + 1)
    if not any(isinstance(each, Soup) for each in plan.objects):
        raise NotFoundError(
            f"No node of soup {name} has kept anything to rebuild it from.",
            remedy="Volumes are still in the nodes' pools. Make a new soup, and import them.",
        )
    return Findings(soup, plan, tuple(problems))


async def rebuild(name: str, progress: Progress) -> Findings:
    """Do it. Raises what `look` raises, and TemporaryError for a node that does not answer."""
    paths = SoupPaths.of(name)
    async with soup_lock(paths):
        progress("read what the nodes kept")
        found = look(name)
        soup = msgspec.structs.replace(found.soup, incarnation=found.remade.incarnation)
        _check_supervisors(soup, paths)
        progress("write the next incarnation")
        write_soup(paths, soup)
        _write_settings(soup, paths, found.remade)
        progress("restart the daemons, which wait for it")
        await asyncio.gather(*(asyncio.to_thread(_restart_daemon, node, paths) for node in soup.nodes))
        progress("begin the engine anew")
        for node in soup.nodes:
            if node.name in found.remade.goes_on:
                _ask(node, paths, "pardon")
        for node in soup.nodes:
            here = paths.node(node.name)
            if node.engine:
                shutil.rmtree(here.engine, ignore_errors=True)
                engine_data.forget(here.engine)
        for node in soup.nodes:
            _ask(node, paths, "reload")
        progress("write everything into it")
        await _written(soup, paths)
        progress("wait until every node answers")
        await asyncio.gather(*(answers(soup, node, paths) for node in soup.nodes))
    return found


# ---------------------------------------------------------------- inside


def _check_lost(soup: SoupFile, paths: SoupPaths) -> None:
    there = [node.name for node in soup.nodes if node.engine and engine_data.has_data(paths.node(node.name).engine)]
    if there:
        raise ConflictError(
            f"The engine's data is still there on {', '.join(there)}: nothing has to be rebuilt.",
            remedy="Bring that back with `primordia up`; give up single servers with `primordia engine remove NODE`.",
        )


def _check_supervisors(soup: SoupFile, paths: SoupPaths) -> None:
    for node in soup.nodes:
        if not running_pid(paths.node(node.name).run / PID_FILE):
            raise TemporaryError(
                f"The supervisor of node {node.name} does not run.",
                remedy=f"Run `primordia up --soup {soup.name}`: it starts it, and then fails for want of an engine.",
            )


def _write_settings(soup: SoupFile, paths: SoupPaths, plan: Remade) -> None:
    """First what the new engine is to know, then that there is to be one."""
    writer = next(node for node in soup.nodes if node.engine)
    write_atomic(paths.node(writer.name).rebuild, msgspec.json.encode(list(plan.objects)))
    for node in soup.nodes:
        place = paths.node(node.name).config
        config = read_config(place)
        engine = msgspec.structs.replace(config.engine, incarnation=soup.incarnation, initial_state="new")
        write_config(place, msgspec.structs.replace(config, engine=engine))


def _restart_daemon(node: SoupNode, paths: SoupPaths) -> None:
    """Returns when the next one runs."""
    here = paths.node(node.name)
    before = running_pid(here.run / "daemon.pid")
    _ask(node, paths, "restart-daemon")
    deadline_s = time.monotonic() + _DAEMON_WITHIN_S
    while running_pid(here.run / "daemon.pid") in (0, before):
        if time.monotonic() > deadline_s:
            raise TemporaryError(f"The daemon of node {node.name} does not end.", remedy=f"See {here.logs / 'daemon.log'}.")
        time.sleep(0.05)


def _ask(node: SoupNode, paths: SoupPaths, command: str) -> None:
    try:
        control.ask(paths.node(node.name).run / SOCKET_FILE, command)
    except (OSError, ValueError) as error:
        raise TemporaryError(
            f"The supervisor of node {node.name} does not answer: {error}.", remedy="Say the same command again."
        ) from error


async def _written(soup: SoupFile, paths: SoupPaths) -> None:
    writer = next(node for node in soup.nodes if node.engine)
    here = paths.node(writer.name)
    deadline_s = time.monotonic() + READY_WITHIN_S
    while here.rebuild.exists():
        if time.monotonic() > deadline_s:
            raise TemporaryError(
                f"Node {writer.name} has not written everything after {READY_WITHIN_S:g} s; it goes on with it.",
                remedy=f"See {here.logs / 'daemon.log'} and engine.log there.",
            )
        await asyncio.sleep(0.1)
