"""Real programs' data: Redis and SQLite in microVMs write numbered records and have them synced, while the nodes that hold the
copies lose their daemons and their links. What a copy has acknowledged is in it: each copy is mounted, as it lies in its node's
pool, and read with the program's own eyes.

A copy is read while its node is cut off, when nothing can reach it any more that it had acknowledged too early. The same look
says what was acknowledged by the other copy alone, and must miss it there: so the check is seen to fail where data is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis.asyncio
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.host.namespaces import SWITCH
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.host.soup import netns_name
from primordia.kit import command
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import ended
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform, Port, Resources, Volume
from primordia.wire.volumes import Data, Layout, Replication

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

PORT = 18379
OWNER, HOLDERS = "n1", ("n2", "n3")
POOL_BYTES = 512 << 20
REDIS_ARGS = (
    "--dir",
    "/data",
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "no",
    "--auto-aof-rewrite-percentage",
    "0",
)
"""Redis leaves it to the syncs to make its file durable."""
SQLITE = """
import json, sqlite3, subprocess, sys
database = sqlite3.connect("/data/records.db", isolation_level=None)
database.execute("PRAGMA journal_mode=WAL")
database.execute("PRAGMA synchronous=NORMAL")  # a commit alone is not durable: that is left to the syncs
database.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, text TEXT)")
number = 0
while True:
    number += 1
    database.execute("INSERT INTO records VALUES (?, ?)", (number, "record " * 50))
    synced = subprocess.run(["kbl", "-o", "json", "sync"], stdout=subprocess.PIPE)
    if synced.returncode == 0:
        print(json.dumps([number, json.loads(synced.stdout)]), flush=True)
"""

Records = Callable[[Path], set[int]]


@dataclass
class Workload:
    """A lifeform that writes records 1, 2, ... `acked` has, for each sync that returned, the last number written before it, the
    snapshot that has it, and the copies that said so."""

    name: str
    records: Records
    acked: list[tuple[int, int, frozenset[str]]] = field(default_factory=list)

    def last(self, holder: str = "") -> int:
        """The last number that was acknowledged, by that copy or by any."""
        return max((number for number, _, copies in self.acked if not holder or holder in copies), default=0)

    def snapshot(self, holder: str = "") -> int:
        """The newest snapshot that was acknowledged, by that copy or by any."""
        return max((snapshot for _, snapshot, copies in self.acked if not holder or holder in copies), default=0)


def redis_records(mounted: Path) -> set[int]:
    """The keys of the append-only file, up to where it was cut off, as Redis reads it (RESP: arrays of bulk strings).

    What was not flushed may be zeros at the end: ext4 makes a file longer before its blocks have been written.
    """
    (path,) = mounted.glob("appendonlydir/*.incr.aof")
    content, at = path.read_bytes().rstrip(b"\0"), 0
    found: set[int] = set()
    while begin := re.compile(rb"\*(\d+)\r\n").match(content, at):
        words, at = [], begin.end()
        for _ in range(int(begin[1])):
            head = re.compile(rb"\$(\d+)\r\n").match(content, at)
            if head is None or head.end() + int(head[1]) + 2 > len(content):
                return found
            at = head.end() + int(head[1]) + 2
            assert content[at - 2 : at] == b"\r\n", "the file is damaged"
            words.append(content[head.end() : at - 2])
        if words[0].upper() == b"SET":
            found.add(int(words[1]))
    assert not content[at:].strip(b"*0123456789\r"), "the file is damaged"
    return found


def sqlite_records(mounted: Path) -> set[int]:
    with contextlib.closing(sqlite3.connect(mounted / "records.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {number for (number,) in database.execute("SELECT number FROM records")}


def missing(found: set[int], last: int) -> set[int]:
    """Which of the records up to the last one are not there."""
    return set(range(1, last + 1)) - found


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 1), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


def with_data(name: str, image: str, **spec: object) -> Lifeform:
    made = lifeform(name, node=OWNER)
    (context,) = made.spec.contexts
    context = replace(
        context, image=image, command=None, user="root", data=Data(size="48Mi"), resources=Resources(cpu="500m", memory="128Mi")
    )
    replication = Replication(layout=Layout(mirror=2), acks=1)
    return replace(made, spec=replace(made.spec, contexts=(replace(context, **spec),), replication=replication))


async def write_redis(soup: Many, client: AsyncClient, work: Workload) -> None:
    """Batches of ten, each synced from outside."""
    async with redis.asyncio.Redis(host=soup.address(OWNER), port=PORT, socket_timeout=60) as server:

        async def answers() -> bool:
            try:
                return bool(await server.ping())
            except redis.asyncio.RedisError:
                return False

        await eventually("Redis answers", answers)
        number = 0
        while True:
            for _ in range(10):
                number += 1
                await server.set(str(number), "record " * 50)
            with contextlib.suppress(PrimordiaError):  # a sync that failed has promised nothing
                synced = await client.sync(f"{work.name}.main", timeout_s=60)
                work.acked.append((number, synced.number, frozenset(synced.copies)))


async def write_sqlite(client: AsyncClient, work: Workload) -> None:
    """One after the other, each synced from within."""
    said = b""
    async with client.exec_session(work.name, ["python3", "-c", SQLITE]) as session:
        async for stream, data in session.output():
            said += data if stream == "stdout" else b""
            *lines, said = said.split(b"\n")
            for line in lines:
                number, synced = json.loads(line)
                work.acked.append((number, synced["number"], frozenset(synced["copies"])))
    raise AssertionError("the writer has ended")


@contextlib.asynccontextmanager
async def cut_off(soup: Many, node: str) -> AsyncIterator[None]:
    """The node's link is down for the length of the block."""
    index = next(each.index for each in soup.soup.nodes if each.name == node)
    words = ["ip", "-n", netns_name(soup.soup.name, SWITCH), "link", "set", f"port{index}"]
    await command.run([*words, "down"])
    try:
        yield
    finally:
        await command.run([*words, "up"])


async def acknowledged(works: list[Workload], writers: list[asyncio.Task[None]], by: str) -> None:
    """Each of them has three more syncs that this copy has acknowledged."""
    before = {work.name: len(work.acked) for work in works}

    async def reached() -> bool:
        for writer in writers:
            if writer.done():
                writer.result()
        return all(sum(by in copies for *_, copies in work.acked[before[work.name] :]) >= 3 for work in works)

    await eventually(f"syncs acknowledged by {by}", reached)


async def read_copy(soup: Many, node: str, uid: str, work: Workload, folder: Path, promised: int) -> set[int]:
    """What is in the newest snapshot that the node holds, which is no older than the one it has promised. The file system is
    as it would be after a power cut: its journal is replayed in a duplicate, which the test may write."""
    volume = soup.paths(node).volumes / "volumes" / uid

    def newest() -> int:
        return max((int(path.name) for path in (volume / "manifests").iterdir() if path.name.isdigit()), default=0)

    async def published() -> bool:  # acknowledged is: durable, and built by the holder alone
        return newest() >= promised

    await eventually(f"snapshot {promised} of {work.name} at {node}", published)
    image, mounted = folder / "disk", folder / "mounted"
    mounted.mkdir(exist_ok=True)
    await command.run(["cp", "--sparse=always", str(volume / "snapshots" / f"{newest():012d}" / "disk"), str(image)])
    await command.run(["mount", "-o", "loop,nosuid,nodev,noexec", "--", str(image), str(mounted)])
    try:
        return await asyncio.to_thread(work.records, mounted)
    finally:
        await command.run(["umount", str(mounted)])
        image.unlink()


async def test_every_copy_holds_what_it_acknowledged(soup: Many, tmp_path: Path) -> None:
    works = [Workload("cache", redis_records), Workload("ledger", sqlite_records)]
    first, second = HOLDERS
    async with soup.client(OWNER) as client, contextlib.AsyncExitStack() as stack:
        idle = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")
        port = Port(container_port=6379, publish=PORT)
        await running(
            client,
            with_data("cache", "redis", args=REDIS_ARGS, ports=(port,)),
            with_data("ledger", "python", command=idle),
        )
        uids = {work.name: (await client.get(Volume, f"{work.name}.main")).metadata.uid for work in works}
        writers = [
            asyncio.create_task(write_redis(soup, client, works[0])),
            asyncio.create_task(write_sqlite(client, works[1])),
        ]
        stack.push_async_callback(ended, *writers)

        async def look(node: str) -> None:
            """In the node that is cut off: it has what it acknowledged, and not what only the other one did."""
            for work in works:
                found = await read_copy(soup, node, uids[work.name], work, tmp_path, work.snapshot(node))
                assert not missing(found, work.last(node)), f"{work.name}: {node} has lost what it acknowledged"
                assert missing(found, work.last()), f"{work.name}: {node} has what never came to it"

        soup.kill(first, "daemon")
        await acknowledged(works, writers, second)
        async with cut_off(soup, second):
            await acknowledged(works, writers, first)
            await look(second)
        soup.kill(first, "daemon")
        await acknowledged(works, writers, second)
        async with cut_off(soup, first):
            await acknowledged(works, writers, second)
            await look(first)
        await ended(*writers)

        async def caught_up() -> bool:
            for work in works:
                stored = await client.get(Volume, f"{work.name}.main")
                copies = {one.node: one for one in stored.status.copies}
                if not all(copies[node].state == "InSync" and copies[node].number >= work.snapshot() for node in HOLDERS):
                    return False
            return True

        await eventually("no copy is behind", caught_up)
        for work in works:
            for node in HOLDERS:
                found = await read_copy(soup, node, uids[work.name], work, tmp_path, work.snapshot())
                assert not missing(found, work.last()), f"{work.name}: {node} has lost what was acknowledged"
            by = {node: sum(node in copies for *_, copies in work.acked) for node in HOLDERS}
            print(f"{work.name}: {work.last()} records in {len(work.acked)} syncs, acknowledged {by}; each copy has them all")
