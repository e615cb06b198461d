"""Doing a fault to a real soup, and taking it back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence

from primordia.host import namespaces
from primordia.host.power import cut_power, restore_power
from primordia.host.soup import netns_name
from primordia.kit import cgroup, command, netns
from primordia.kit.identity import running_pid
from primordia.probe.faults import POWER, Fault
from primordia.supervisor.main import PID_FILE
from primordia.testing.soup import Many, runs_of

_ENGINE_PORTS = "{ 2379, 2380 }"
_TABLE = "inet probe"
_STAND_TRIES = 50


@contextlib.asynccontextmanager
async def done(soup: Many, fault: Fault, nodes: Sequence[str]) -> AsyncIterator[None]:
    """The fault holds for the length of the block; what it broke is whole again afterwards, or on its way."""
    if fault.kind in POWER:
        await asyncio.gather(*(cut_power(soup.soup, node) for node in nodes))
        try:
            yield
        finally:
            for node in nodes:  # each looks at the namespaces of those that are on
                await restore_power(soup.soup, node)
        return
    (node,) = nodes
    if fault.kind.startswith("partition"):
        async with _cut_off(soup, node, fault.kind):
            yield
    elif fault.kind == "freeze daemon":
        with _stopped([soup.pid(node, "daemon")]):
            yield
    elif fault.kind == "freeze node":
        with _node_stopped(soup, node):
            yield
    elif fault.kind == "kill supervisor and daemon":
        for child in ("supervisor", "daemon"):
            _kill(soup.pid(node, child))
        try:
            yield
        finally:
            await restore_power(soup.soup, node)
    else:
        for pid in [soup.pid(node, "daemon")] if fault.kind == "kill daemon" else list(runs_of(soup.paths(node)).values())[:1]:
            _kill(pid)
        yield


def _kill(pid: int) -> None:
    """Never 0 or less: to kill(2) those are whole groups of processes."""
    if pid > 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- links


@contextlib.asynccontextmanager
async def _cut_off(soup: Many, node: str, kind: str) -> AsyncIterator[None]:
    """A node whose packets do not come through: in both directions, in one, or those to and from the engine.

    One direction is cut by rules in the node's own namespace, beside those that are there.
    """
    if kind == "partition":
        index = next(each.index for each in soup.soup.nodes if each.name == node)
        words = ["ip", "-n", netns_name(soup.soup.name, namespaces.SWITCH), "link", "set", f"port{index}"]
        await command.run([*words, "down"])
        try:
            yield
        finally:
            await command.run([*words, "up"])
        return
    await _nft(soup, node, rules(kind))
    try:
        yield
    finally:
        await _nft(soup, node, f"delete table {_TABLE}\n")


def rules(kind: str) -> str:
    """The cut as nftables text. Pure. Bridge packets of the soup's network come by wire0, whoever they are for."""
    wire = namespaces.WIRE
    to_engine = f'oifname "{wire}" tcp dport {_ENGINE_PORTS} drop; oifname "{wire}" tcp sport {_ENGINE_PORTS} drop'
    inward, outward = {
        "partition, hears nothing": (f'iifname "{wire}" drop', ""),
        "partition, says nothing": ("", f'oifname "{wire}" drop'),
        "partition from the engine": ("", to_engine),
    }[kind]
    chains = [
        ("in", "hook prerouting priority raw", inward),
        ("out", "hook postrouting priority filter", outward),
    ]
    body = "".join(f"  chain {name} {{ type filter {hook}; policy accept; {rule}; }}\n" for name, hook, rule in chains if rule)
    return f"table {_TABLE} {{\n{body}}}\n"


async def _nft(soup: Many, node: str, text: str) -> None:
    await command.run(netns.argv_in(netns_name(soup.soup.name, node), ["nft", "-f", "-"]), stdin=text.encode())


# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP for the length of the block."""
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


@contextlib.contextmanager
def _node_stopped(soup: Many, node: str) -> Iterator[None]:
    """Everything of the node stands: as a machine that is suspended, or whose host gives it no time.

    Those who began first go on first, as a kernel thaws: supervisor and warden before microVMs.
    """
    group = f"primordia/{soup.soup.name}/{node}"
    stopped: set[int] = set()
    for _ in range(_STAND_TRIES):
        fresh = set(cgroup.pids(group)) - stopped
        if not fresh:
            break
        for pid in sorted(fresh):
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    try:
        yield
    finally:
        for pid in sorted(stopped):
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    if pid > 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def supervised(soup: Many, node: str) -> bool:
    """Whether the node has a supervisor that runs."""
    return bool(running_pid(soup.paths(node).run / PID_FILE))
