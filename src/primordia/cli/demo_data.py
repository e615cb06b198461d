"""The demo's chapter of data: what Redis wrote is on other racks when a sync returns, a copy that a disk spoils is found and
healed, and a checkpoint brings back what was deleted.

The spoiling is real and done behind everybody's back, in the pool of the node that holds the copy. The pool's file system
takes the changed bytes for an honest write; only the hashes that came with the snapshot know better.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primordia.cli.copies import scrub_text
from primordia.cli.demo_stage import SOUP, Stage, median, say, until
from primordia.client.aio import AsyncClient
from primordia.drivers.volumes_btrfs import ioctl
from primordia.drivers.volumes_btrfs.layout import Layout
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.kit.paths import SoupPaths
from primordia.wire.data import ScrubResult
from primordia.wire.resources import Node, Volume

DATA = r"""
      args: [--appendonly, "yes", --dir, /data]
      data: {size: 64Mi, mountPath: /data}
"""
REPLICATION = r"""
  replication: {layout: {mirror: 2}, spread: rack, acks: 1}
"""
_KEY = "greeting"
_CHECKPOINT = "before"
_SYNCS = 5
_TRIES = 3
_FLIPPED = 16
_WORDS = b"paid"


@dataclass
class DataChapter:
    """Of the lifeform `name`, whose context `container` is a Redis with an append-only file on its volume."""

    stage: Stage
    client: AsyncClient
    name: str
    container: str

    async def happen(self) -> None:
        """Sync, spoil and heal, restore. Raises PermanentError when any of it is not as it should be."""
        self.stage.title("Its data: on three racks, spoiled and healed, deleted and brought back")
        await self.stage.primordia("volume", "ls")
        await self._synced()
        await self._spoiled()
        await self._restored()
        await self._shown()
        print("What it is worth to have the data beside its lifeform: sudo primordia bench locality", flush=True)

    @property
    def _volume(self) -> str:
        return f"{self.name}.{self.container}"

    # ------------------------------------------------------------ copies and syncs

    async def _synced(self) -> None:
        stage = self.stage
        taken: list[float] = []
        for number in range(_SYNCS):
            await self._redis("set", "order", str(number))
            begun = time.perf_counter()
            await self.client.sync(self._volume)
            taken.append((time.perf_counter() - begun) * 1000)
        await self._redis("set", "order", _WORDS.decode())
        await stage.primordia("sync", self.name)
        stage.note(f"sync, until another rack has what was written, p50 of {_SYNCS}", median(taken))

    async def _shown(self) -> None:
        await until(self._told, "its copies to be told of")
        await self.stage.primordia("volume", "describe", self._volume)

    async def _told(self) -> None:
        """The status is written now and then, not for each snapshot. Raises TemporaryError until it tells of the sync."""
        volume = await self.client.get(Volume, self._volume)
        if not caught_up(volume):
            states = ", ".join(each.state for each in volume.status.copies)
            raise TemporaryError(f"The copies are {states or 'not there yet'}.")

    # ------------------------------------------------------------ a spoiled copy

    async def _spoiled(self) -> None:
        """A newer snapshot may overtake the spoiled one, for the guest's kernel writes when it likes: then again."""
        for _ in range(_TRIES):
            if await self._spoil_and_heal():
                return
        raise PermanentError(f"In {_TRIES} tries no spoiled copy was found and healed.", remedy="Run: primordia scrub")

    async def _spoil_and_heal(self) -> bool:
        stage = self.stage
        uid = (await self.client.get(Volume, self._volume)).metadata.uid
        synced = await self.client.sync(self._volume)
        node = synced.copies[0]
        layout = Layout(SoupPaths.of(SOUP).node(node).volumes / "volumes" / uid)
        await until(lambda: _published(layout, synced.number), f"the copy on {node}")
        offset, length = await asyncio.to_thread(spoil, layout, synced.number, _WORDS)
        print(f"A bad disk on {node}: {length} bytes of the copy there are flipped, at {offset} of snapshot {synced.number}.")
        stage.typed(f"primordia scrub {self.name}")
        begun = time.perf_counter()
        result = await self.client.scrub(self._volume)
        seconds = time.perf_counter() - begun
        print(scrub_text([(self._volume, result)]), flush=True)
        if not healed(result, node, synced.number):
            return False
        stage.note("a spoiled copy found by scrub and healed", f"{seconds:.1f} s")
        return True

    # ------------------------------------------------------------ a checkpoint

    async def _restored(self) -> None:
        stage = self.stage
        before = await self._redis("get", _KEY)
        await stage.primordia("volume", "checkpoint", self.name, _CHECKPOINT)
        await stage.primordia("exec", f"{self.name}/{self.container}", "--", "redis-cli", "del", _KEY)
        await self.client.sync(self._volume)
        if await self._redis("get", _KEY):
            raise PermanentError("A key that was deleted is still there.")
        begun = time.monotonic()
        await stage.primordia("volume", "restore", self.name, "--to", _CHECKPOINT, "--yes", "--quiet")

        async def there() -> None:
            if (said := await self._redis("get", _KEY)) != before:
                raise TemporaryError(f"Redis says {said!r}.")

        await until(there, "Redis with its data of before")
        stage.note("checkpoint restored, until Redis answers with it", f"{time.monotonic() - begun:.1f} s")
        stage.typed(f"primordia exec {self.name}/{self.container} -- redis-cli get {_KEY}")
        say(before)

    async def _redis(self, *words: str) -> str:
        """What Redis says. Raises TemporaryError while it does not run."""
        done = await self.client.exec(self.name, ["redis-cli", *words], container=self.container)
        if done.code != 0:
            raise TemporaryError(f"redis-cli ended with {done.code}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode().strip()


def manifest_with(text: str, *, data: bool) -> str:
    """The manifest with the places for data filled, or, where nodes have no pools, left out. Pure."""
    for place, words in (("DATA", DATA), ("REPLICATION", REPLICATION)):
        text = text.replace(f"{place}\n", words.removeprefix("\n") if data else "")
    return text


def pools_everywhere(nodes: Sequence[Node]) -> bool:
    """Whether each node has a place for volumes."""
    return bool(nodes) and all(node.status.pool.total_bytes > 0 for node in nodes)


def healed(result: ScrubResult, node: str, number: int) -> bool:
    """Whether that node's damage was found and is gone, and nothing else was found. Pure."""
    clean = all(not each.message and not each.damaged for each in result.copies if each.node != node)
    return clean and any(
        each.node == node and not each.message and number in each.damaged and set(each.damaged) == set(each.healed)
        for each in result.copies
    )


def caught_up(volume: Volume) -> bool:
    """Whether a volume's status tells of all that was synced, on each of its copies. Pure."""
    status = volume.status
    least = status.last_sync.number if status.last_sync else 0
    nodes = {each.node for each in status.copies if each.state == "InSync" and each.number >= least}
    return bool(nodes) and nodes == set(status.replicas)


def spoil(layout: Layout, number: int, words: bytes) -> tuple[int, int]:
    """Flip bytes in a snapshot of a volume in a pool: see `flip`. OSError.

    Snapshots cannot be written, so this one is opened for the moment: a bad disk needs no permission.
    """
    ioctl.set_readonly(layout.snapshot(number), False)
    try:
        return flip(layout.disk(number), words)
    finally:
        ioctl.set_readonly(layout.snapshot(number), True)


async def _published(layout: Layout, number: int) -> None:
    """What was acknowledged is durable, and becomes a snapshot a moment later. Raises TemporaryError until it is."""
    if number not in await asyncio.to_thread(layout.published):
        raise TemporaryError(f"Snapshot {number} is not there yet.")


def flip(disk: Path, words: bytes) -> tuple[int, int]:
    """Flip every bit of `words` where they are first in a file, else of its first data; gives offset and length. OSError."""
    descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        with mmap.mmap(descriptor, 0) as content:
            offset = content.find(words)
            length = len(words) if offset >= 0 else _FLIPPED
            offset = offset if offset >= 0 else os.lseek(descriptor, 0, os.SEEK_DATA)
            content[offset : offset + length] = bytes(each ^ 0xFF for each in content[offset : offset + length])
            content.flush()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return offset, length
