"""`up` is killed at random instants spread over all that it does; the next one finishes its work, and `down` leaves nothing.

The seed is printed. To see the same kills again, or more of them (20 take some three minutes), on more nodes, set
PRIMORDIA_FAULT_SEED, PRIMORDIA_FAULT_KILLS (8) and PRIMORDIA_FAULT_NODES (3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import primordia
from primordia.client.aio import connect
from primordia.client.answers import ready
from primordia.host import leftovers
from primordia.host import up as host
from primordia.host.shape import Shape
from primordia.host.soup import SoupFile, read_soup
from primordia.kit import ids
from primordia.kit.errors import NotFoundError
from primordia.kit.paths import SoupPaths
from primordia.testing.soup import eventually
from primordia.wire.resources import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings soups up, which needs root")

KILLS = int(os.environ.get("PRIMORDIA_FAULT_KILLS", "8"))
NODES = int(os.environ.get("PRIMORDIA_FAULT_NODES", "3"))
SEGMENTS = 2
_SOURCE = str(Path(primordia.__file__).resolve().parents[1])


def silent(step: str) -> None:
    """Progress that nobody wants to see."""


@dataclass
class Victim:
    """A soup whose `up` is killed. `takes_s` is how long one takes that is left alone."""

    name: str
    config: Path
    takes_s: float = 0.0

    @property
    def shape(self) -> Shape:
        return Shape(NODES, 3, SEGMENTS)

    async def up(self) -> SoupFile:
        """Bring it up, and wait until the soup calls every node Ready."""
        begun = time.monotonic()
        result = await host.up(host.UpOptions(soup=self.name, shape=self.shape, client_config=self.config), silent)
        self.takes_s = time.monotonic() - begun
        async with connect(self.config) as client:

            async def all_are_ready() -> bool:
                nodes = (await client.list(Node)).items
                return len(nodes) == NODES and all(ready(node) for node in nodes)

            await eventually("all nodes are Ready", all_are_ready)
        return result.soup

    async def killed_up(self, after_s: float) -> bool:
        """Run `primordia up` and kill it; whether it was still at work by then."""
        words = ["up", "--soup", self.name, "--client-config", str(self.config), "-q"]
        words += ["--nodes", str(NODES), "--racks", "3", "--segments", str(SEGMENTS)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "primordia.cli.main", *words),
            env={**os.environ, "PYTHONPATH": _SOURCE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                await process.wait()
                return False
        process.kill()
        await process.wait()
        return True

    async def down(self, *, destroy: bool) -> None:
        await host.down(self.name, silent, destroy=destroy, client_config=self.config)

    async def leaks(self) -> list[str]:
        """What the doctor finds of this soup; other soups of the machine are not this test's."""
        return [f"{leak.kind} {leak.name}: {leak.detail}" for leak in await leftovers.look() if self.name in str(leak)]


@pytest.fixture
async def victim() -> AsyncIterator[Victim]:
    with tempfile.TemporaryDirectory(prefix="primordia-fault-") as folder:
        made = Victim(f"fault-{ids.suffix()}", Path(folder) / "config")
        try:
            yield made
        finally:
            with contextlib.suppress(NotFoundError):
                await made.down(destroy=True)
    assert not await made.leaks()


async def test_up_is_killed_at_any_instant_and_the_next_one_finishes(victim: Victim) -> None:
    seed = int(os.environ.get("PRIMORDIA_FAULT_SEED") or secrets.randbits(32))
    print(f"PRIMORDIA_FAULT_SEED={seed}")
    rng = random.Random(seed)
    kept = (await victim.up()).uid
    await victim.down(destroy=False)
    slices = list(range(KILLS))
    rng.shuffle(slices)
    caught = 0
    for number, part in enumerate(slices):
        # One instant of each slice, so that all of `up` is covered, and the interpreter's own start with it.
        after_s = (part + rng.random()) / KILLS * (victim.takes_s + 0.3)
        at_work = await victim.killed_up(after_s)
        caught += at_work
        begun = read_soup(SoupPaths.of(victim.name))
        soup = await victim.up()
        assert begun is None or soup.uid == begun.uid, "what was begun is finished"
        assert not kept or soup.uid == kept, "the same soup"
        assert not await victim.leaks()
        destroy = number % 2 == 1
        await victim.down(destroy=destroy)
        assert not await victim.leaks()
        kept = "" if destroy else soup.uid
        print(
            f"kill {number + 1:2} at {after_s:.2f} s{'' if at_work else ' (it had ended)'}, then up in {victim.takes_s:.1f} s"
        )
    assert caught >= KILLS // 2, "most kills find it at work"
