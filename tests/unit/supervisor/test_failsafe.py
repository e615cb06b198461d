"""Nodes that ask each other whether they have an engine, over real sockets with real certificates."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from primordia.domain.timings import Timings
from primordia.kit import pki
from primordia.supervisor.failsafe import Failsafe, Place
from primordia.supervisor.lease import now

TIMINGS = Timings.of({"failsafe_round_s": 2.0, "deadline_s": 8.0, "ttl_s": 12})
ADDRESSES = {"n1": "127.0.0.1", "n2": "127.0.0.2", "n3": "127.0.0.3"}


@dataclass
class Keeper:
    """A node that has lost the engine, unless it is told otherwise."""

    others: Mapping[str, str] | None
    has_engine: bool = False


@dataclass
class Ring:
    """Three nodes of one authority, on loopback addresses and one port."""

    folder: Path
    port: int
    ca: pki.KeyPair = field(default_factory=lambda: pki.make_ca("test"))
    keepers: dict[str, Keeper] = field(default_factory=dict)

    def place(self, name: str, ca: pki.KeyPair | None = None, address: str = "") -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "engine-ca.crt").write_bytes(self.ca.certificate)
        leaf = pki.issue(ca or self.ca, name, san_ip=(address or ADDRESSES[name],), server=True)
        leaf.write(folder / "engine.crt", folder / "engine.key")
        return folder

    @contextlib.contextmanager
    def node(self, name: str, folder: Path | None = None, *, says: str = "") -> Iterator[Failsafe]:
        others = {other: address for other, address in ADDRESSES.items() if other != name}
        keeper = self.keepers[name] = Keeper(others)
        made = Failsafe(Place(says or name, "i", ADDRESSES[name], self.port), folder or self.place(name), keeper, TIMINGS)
        made.start()
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Ring(tmp_path, port)


def a_round(asker: Failsafe) -> dict[str, str]:
    """What the others say, once all that listen do."""
    end = time.monotonic() + 20
    while True:
        asker.ask()
        while any(thread.name == "failsafe/round" for thread in threading.enumerate()):
            time.sleep(0.01)
        said = asker.status()
        if not any("refused" in words for words in said.values()) or time.monotonic() > end:
            return said
        time.sleep(0.05)


def test_a_round_is_full_when_every_other_node_has_no_engine(ring: Ring) -> None:
    with ring.node("n1") as one, ring.node("n2"), ring.node("n3"):
        before = now()
        assert set(a_round(one).values()) == {"it has no engine"}
        assert one.round_s is not None and before <= one.round_s <= now()


def test_one_that_has_an_engine_says_so(ring: Ring) -> None:
    with ring.node("n1") as one, ring.node("n2"), ring.node("n3"):
        a_round(one)
        full = one.round_s
        ring.keepers["n3"].has_engine = True
        assert a_round(one) == {"n2": "it has no engine", "n3": "it has an engine"}
        assert one.round_s == full


def test_silence_is_refusal(ring: Ring) -> None:
    with ring.node("n1") as one, ring.node("n2"), socket.create_server((ADDRESSES["n3"], ring.port)):
        begun = time.monotonic()
        said = a_round(one)
        assert said["n2"] == "it has no engine" and said["n3"].startswith("no answer")
        assert one.round_s is None and time.monotonic() - begun < 20


@pytest.mark.parametrize("wrong", ["authority", "address", "name"])
def test_nobody_can_answer_for_another(ring: Ring, wrong: str) -> None:
    folder = ring.place(
        "n3", pki.make_ca("other") if wrong == "authority" else None, ADDRESSES["n2"] if wrong == "address" else ""
    )
    with ring.node("n1") as one, ring.node("n2"), ring.node("n3", folder, says="n2" if wrong == "name" else ""):
        said = a_round(one)
        assert said["n2"] == "it has no engine" and said["n3"] != "it has no engine" and one.round_s is None


def test_without_others_nobody_is_asked(ring: Ring) -> None:
    with ring.node("n1") as one:
        for others in (None, {}):
            ring.keepers["n1"].others = others
            one.ask()
            assert not any(thread.name == "failsafe/round" for thread in threading.enumerate())
