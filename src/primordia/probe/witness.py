"""The outside witness: a process of its own that follows every ledger on every node, and writes down who wrote what when.

It does not believe the soup: it reads on each node's disk which microVMs there are, and speaks to each by way of its node's own
namespace, so that no cut of the soup's network, no frozen daemon and no lost engine keeps it from hearing one that still
writes. One thread reads everything, so the order of its lines is the order of what happened.

    python -m primordia.probe.witness SOUP LOG NODE...
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from primordia.host.soup import netns_name
from primordia.kit import netns
from primordia.kit.identity import running_pid
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.node.records import Record
from primordia.probe.ledger import PORT

LOOK_EVERY_S = 0.25
_CONNECT_S = 0.3


class Line(msgspec.Struct, frozen=True, array_like=True):
    """`said` is w (written), a (acknowledged by a sync) or hello; `at` is of the monotonic clock."""

    at: float
    lifeform: str
    node: str
    said: str
    epoch: int
    number: int


@dataclass
class _Followed:
    key: tuple[str, str]
    lifeform: str
    node: str
    socket: socket.socket
    rest: bytes = b""


@dataclass
class Witness:
    """Follows the ledgers of a soup's nodes."""

    soup: str
    nodes: Iterable[str]
    log: Path
    _followed: dict[tuple[str, str], _Followed] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def run(self) -> None:
        """Until it is killed, or whoever started it is gone."""
        parent = os.getppid()
        with self.log.open("ab", buffering=0) as file:
            looked = 0.0
            while os.getppid() == parent:
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    self._look()
                    looked = time.monotonic()
                lines = [line for key, _ in self._selector.select(LOOK_EVERY_S) for line in self._read(key.data)]
                if lines:  # of what lay there at once nobody can tell the order: that is never held against anyone
                    lines.sort(key=lambda line: line.epoch)
                    file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def _look(self) -> None:
        for (node, machine), followed in list(self._followed.items()):
            # A machine that lost its power says no goodbye, and our socket would keep its namespace alive.
            if not running_pid(SoupPaths.of(self.soup).node(node).context_run(machine) / "qemu.pid"):
                self._leave(followed)
        for node in self.nodes:
            here = SoupPaths.of(self.soup).node(node)
            for path in sorted((here.state / "contexts").glob("*/record.json")):
                with contextlib.suppress(OSError, msgspec.MsgspecError):
                    self._meet(node, here, msgspec.json.decode(path.read_bytes(), type=Record))

    def _meet(self, node: str, here: NodePaths, record: Record) -> None:
        """Follow it, if it is a ledger that runs and is not followed yet."""
        key = node, record.machine
        if key in self._followed or not record.address or not record.spec.lifeform.startswith("ledger"):
            return
        if not running_pid(here.context_run(record.machine) / "qemu.pid"):
            return
        descriptor = netns.open_named(netns_name(self.soup, node))
        try:
            connection = netns.call_in(descriptor, lambda: socket.create_connection((record.address, PORT), _CONNECT_S))
        finally:
            os.close(descriptor)
        connection.sendall(b"follow\n")
        connection.setblocking(False)
        followed = self._followed[key] = _Followed(key, record.spec.lifeform, node, connection)
        self._selector.register(connection, selectors.EVENT_READ, followed)

    def _read(self, followed: _Followed) -> list[Line]:
        try:
            content = followed.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            content = b""
        if not content:
            self._leave(followed)
            return []
        at = time.monotonic()
        *whole, followed.rest = (followed.rest + content).split(b"\n")
        return [Line(at, followed.lifeform, followed.node, *json.loads(each)) for each in whole]

    def _leave(self, followed: _Followed) -> None:
        self._selector.unregister(followed.socket)
        followed.socket.close()
        del self._followed[followed.key]


@dataclass
class Testimony:
    """What the witness has written down, read as it grows."""

    log: Path
    lines: list[Line] = field(default_factory=list)
    _offset: int = 0

    def read(self) -> list[Line]:
        """All lines so far."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._offset)
            for each in file:
                if not each.endswith(b"\n"):
                    break
                self.lines.append(msgspec.json.decode(each, type=Line))
                self._offset += len(each)
        return self.lines

    def acknowledged(self, lifeform: str) -> set[tuple[int, int]]:
        """The records (epoch, number) that a sync made durable."""
        return {(line.epoch, line.number) for line in self.lines if line.lifeform == lifeform and line.said == "a"}

    def acknowledged_at(self, lifeform: str) -> list[float]:
        """When a sync returned."""
        return [line.at for line in self.lines if line.lifeform == lifeform and line.said == "a"]


@dataclass(frozen=True)
class Thaw:
    """Everything of a node stood, and was let go on at `at`: no program can stop another one before either has run."""

    node: str
    at: float


WAKING_S = 0.5
"""So long what a thawed node writes, and nobody acknowledges, is put down to its waking up."""


def doubled(lines: Iterable[Line], thaws: Sequence[Thaw] = ()) -> list[str]:
    """Writes of an epoch that came after the first one of a later epoch of the same lifeform, in sentences. Pure.

    What an acknowledgement promises counts always. What is only written, on a node's own disk, does not in the first moments
    after the whole node had stood.
    """
    newest: dict[str, Line] = {}
    found = []
    for line in lines:
        if line.said == "hello":
            continue
        first = newest.get(line.lifeform)
        if first is None or line.epoch > first.epoch:
            newest[line.lifeform] = line
        elif line.epoch < first.epoch and not (line.said == "w" and _wakes(line, thaws)):
            what = "wrote" if line.said == "w" else "was acknowledged"
            found.append(
                f"{line.lifeform}: {line.node} {what} {line.number} in epoch {line.epoch}, {line.at - first.at:.3f} s after "
                f"{first.node} had begun to write in epoch {first.epoch}"
            )
    return found


def _wakes(line: Line, thaws: Sequence[Thaw]) -> bool:
    return any(each.node == line.node and each.at <= line.at < each.at + WAKING_S for each in thaws)


if __name__ == "__main__":
    Witness(sys.argv[1], sys.argv[3:], Path(sys.argv[2])).run()
