"""A burst of claims, memory that forks do not share, and what goes wrong in their midst; on a soup of real microVMs.

More of it by hand: PRIMORDIA_BURST_CLAIMS (30) at once against a pool of PRIMORDIA_BURST_POOL (5), in rounds until
PRIMORDIA_BURST_FORKS (as many as claims) were made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from primordia.client import BoxGoneError, connect
from primordia.client.aio import AsyncClient
from primordia.client.boxes import Box, ForkError
from primordia.host.shape import Shape
from primordia.kit.errors import CapacityError, PrimordiaError
from primordia.testing.forks_burst import Clock, clock_of, duplicates, told, warm_python, who
from primordia.testing.soup import Many, eventually, many_nodes
from primordia.wire.boxes import ForkRequest
from primordia.wire.resources import Context, Event, Template

CLAIMS = int(os.environ.get("PRIMORDIA_BURST_CLAIMS", "30"))
POOL = int(os.environ.get("PRIMORDIA_BURST_POOL", "5"))
FORKS = int(os.environ.get("PRIMORDIA_BURST_FORKS", str(CLAIMS)))
CLIENTS = 10
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")


@pytest.fixture(scope="module")
def many() -> Iterator[Many]:
    with many_nodes(Shape(1, 1, 1)) as built:
        yield built


@pytest.fixture
async def soup(many: Many) -> AsyncIterator[AsyncClient]:
    """A client of a soup whose template `py` has its forks waiting; afterwards no box is left, nor a microVM of one."""
    async with connect(many.config) as client:
        with contextlib.suppress(PrimordiaError):
            await client.create(warm_python("py", POOL))
        await eventually("the pool is full", lambda: full(client))
        yield client
        await clear(many, client)


async def full(client: AsyncClient) -> bool:
    status = (await client.get(Template, "py")).status
    return status.phase == "Ready" and [each.warm for each in status.nodes] == [POOL]


async def clear(many: Many, client: AsyncClient) -> None:
    """Every box goes, and then there are as many microVMs as wait in the pool."""
    for context in (await client.list(Context)).items:
        with contextlib.suppress(PrimordiaError):
            await client.delete(Context, context.metadata.name)

    async def gone() -> bool:
        return not (await client.list(Context)).items and await full(client) and len(many.machines()) == POOL

    await eventually("nothing but the pool is left", gone)


async def events(client: AsyncClient) -> set[str]:
    return {event.reason for event in (await client.list(Event)).items}


async def counted(many: Many, name: str) -> float:
    """A figure of the node's metrics."""
    async with connect(many.config) as client:
        text = (await client.transport.request("GET", "/metrics", accept="*/*")).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


# ---------------------------------------------------------------- a burst


async def test_a_burst_of_claims_has_no_twins(many: Many, soup: AsyncClient) -> None:
    ever: list[dict[str, object]] = []
    clocks: list[Clock] = []
    begun = time.monotonic()
    while len(ever) < FORKS:
        await eventually("the pool is full", lambda: full(soup))
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(many.config)) for _ in range(CLIENTS)]
            boxes = await asyncio.gather(*(clients[number % CLIENTS].box("py") for number in range(CLAIMS)))
            seen = await asyncio.gather(*(who(box) for box in boxes))
            assert duplicates(seen, alive=True) == []
            clocks += await asyncio.gather(*(right_clock(box) for box in boxes))
            ever += seen
            warm = sum(box.warm for box in boxes)
            slowest = max(box.confirmed_ms for box in boxes)
            print(f"{len(ever)} forks after {time.monotonic() - begun:.0f} s: {warm} were warm, confirmed in {slowest:.0f} ms")
            await asyncio.gather(*(box.kill() for box in boxes))
    assert duplicates(ever, alive=False) == []
    least, most = (sorted(1000 * getattr(each, name) for each in clocks) for name in ("least_s", "most_s"))
    middle = len(clocks) // 2
    print(f"clocks are off by {least[middle]:.1f} to {most[middle]:.1f} ms (p50), one by {least[-1]:.1f} ms")


async def right_clock(box: Box) -> Clock:
    """Its clock. One that was forgotten is as old as the template; how right they are where processors are short is printed."""
    clock = await clock_of(box)
    assert clock.least_s < 5
    return clock


async def test_nobody_writes_into_anothers_memory(soup: AsyncClient) -> None:
    async with soup.box("py") as parent:
        await parent.run_code("memory = bytearray(os.urandom(2**20) * 20)")
        first, second = await parent.fork(2)
        everybody = (parent, first, second)
        assert len({str(await told(each, "checksum()")) for each in everybody}) == 1
        for writer in (parent, first):
            before = [await told(each, "checksum()") for each in everybody]
            await writer.run_code("for at in range(0, len(memory), 2**20): memory[at:at + 2**20] = os.urandom(2**20)")
            after = [await told(each, "checksum()") for each in everybody]
            changed = [each for each, old, new in zip(everybody, before, after, strict=True) if old != new]
            assert changed == [writer]


# ---------------------------------------------------------------- faults


async def test_a_fork_bomb_hurts_nobody_else(soup: AsyncClient) -> None:
    async with soup.box("py") as bomb, soup.box("py") as neighbour:
        with pytest.raises(CapacityError, match="above the limit of"):
            await bomb.fork(201)
        youngest, generations = bomb, 0
        with pytest.raises(CapacityError, match="generation"):  # each forks itself, as deep as it may
            while True:
                (youngest,) = await youngest.fork(1)
                generations += 1
        assert generations == 8
        async with soup.box("py") as other:
            assert await told(other, "6 * 7") == await told(neighbour, "6 * 7") == 42


async def test_a_guest_that_never_confirms_is_destroyed_and_counted(many: Many, soup: AsyncClient) -> None:
    before = await counted(many, "primordia_forks_unconfirmed_total")
    victim = next(iter(many.machines().values()))
    os.kill(victim, signal.SIGSTOP)  # the whole microVM: it neither resumes nor answers
    try:
        boxes = await asyncio.gather(*(soup.box("py") for _ in range(POOL)))
        assert [await told(box, "6 * 7") for box in boxes] == [42] * POOL
        assert await counted(many, "primordia_forks_unconfirmed_total") == before + 1
        assert victim not in many.machines().values()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)


async def test_a_microvm_is_killed_in_mid_restore(many: Many, soup: AsyncClient) -> None:
    async with soup.box("py") as parent:
        await parent.run_code("x = 41")
        known = set(many.machines().values())
        forking = asyncio.create_task(parent.fork(3))
        fresh: set[int] = set()

        async def begun() -> bool:
            fresh.update(set(many.machines().values()) - known)
            return bool(fresh) or forking.done()

        await eventually("a child's microVM is there", begun)
        assert fresh, await forking
        os.kill(fresh.pop(), signal.SIGKILL)
        children = await survivors(forking)
        assert len(children) >= 2
        assert [await told(each, "x") for each in (parent, *children[:2])] == [41] * 3
        assert (await parent.context()).status.restarts == 0


async def survivors(forking: asyncio.Task[list[Box]]) -> list[Box]:
    """The children that can be spoken to."""
    try:
        children = await forking
    except ForkError as error:
        children = error.children
    found = []
    for each in children:
        with contextlib.suppress(PrimordiaError, AssertionError):
            await told(each, "x")
            found.append(each)
    return found


async def test_a_parent_is_killed_while_it_is_forked(many: Many, soup: AsyncClient) -> None:
    parent = await soup.box("py")
    pid = (await parent.context()).status.pid
    assert pid is not None and pid > 1
    forking = asyncio.create_task(parent.fork(3))
    await asyncio.sleep(random.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(PrimordiaError):
        await forking

    async def over() -> bool:
        try:
            return (await parent.context()).status.phase == "Failed"
        except BoxGoneError:
            return True

    await eventually("the parent is over", over)


async def test_a_daemon_is_killed_amid_claims_and_forks(many: Many, soup: AsyncClient) -> None:
    seed = int(os.environ.get("PRIMORDIA_FAULT_SEED") or secrets.randbits(32))
    print(f"PRIMORDIA_FAULT_SEED={seed}")
    after_s = random.Random(seed).uniform(0.05, 0.6)
    parent = await soup.box("py")
    await parent.run_code("x = 41")
    claims = [asyncio.create_task(once(soup)) for _ in range(POOL)]
    forking = asyncio.create_task(soup.fork_report(parent.name, ForkRequest(count=3), kind=Context))
    await asyncio.sleep(after_s)
    killed = many.kill("n1", "daemon")
    answers = await asyncio.gather(*claims, forking, return_exceptions=True)
    assert all(not isinstance(each, BaseException) or isinstance(each, PrimordiaError) for each in answers), answers
    boxes = [each for each in answers if isinstance(each, Box)]
    await eventually("the next daemon's pool is full", lambda: full(soup))
    assert many.pid("n1", "daemon") not in (0, killed)

    async def goes_on() -> bool:
        return await told(parent, "x") == 41

    await eventually("the parent goes on", goes_on)
    assert (await parent.context()).status.restarts == 0
    listed = [Box(soup, each.metadata.name, "default", each.metadata.uid) for each in (await soup.list(Context)).items]
    answered = {parent.uid, *(box.uid for box in boxes)}
    assert answered <= {box.uid for box in listed}
    seen = [each for box in listed if (each := await identity(box)) is not None]
    assert answered <= {each["uid"] for each in seen}
    assert duplicates(seen, alive=True) == []
    print(f"killed after {after_s:.2f} s: {len(boxes)} of {POOL} claims were answered, {len(seen)} contexts live")

    async def as_many_microvms_as_there_are() -> bool:
        return len(many.machines()) == len((await soup.list(Context)).items) + POOL

    await eventually("no microVM is nobody's", as_many_microvms_as_there_are)


async def identity(box: Box) -> dict[str, object] | None:
    """Who it is; None when it is no more: a daemon was killed before it told anybody of it, and the next one ends it."""
    said: list[dict[str, object] | None] = []

    async def known() -> bool:
        try:
            said.append(await who(box))
        except BoxGoneError:
            said.append(None)
        return True

    await eventually("it says who it is, or is no more", known)
    return said[-1]


async def claimed(soup: AsyncClient) -> Box:
    """A box, from the next daemon if this one is gone."""
    boxes: list[Box] = []

    async def have_one() -> bool:
        boxes.append(await soup.box("py"))
        return True

    await eventually("a box is claimed", have_one)
    return boxes[0]


async def once(soup: AsyncClient) -> Box:
    return await soup.box("py")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
async def test_a_damaged_template_is_put_aside_and_made_again(many: Many, soup: AsyncClient, damage: str) -> None:
    folder = many.paths("n1").templates
    digest = (await soup.get(Template, "py")).status.nodes[0].digest
    memory = folder / digest / "memory"
    harm(memory, damage)
    many.kill("n1", "daemon")  # the next one reads its templates before it uses them

    async def aside() -> bool:
        return any(path.name.startswith(f"{digest}.quarantined") for path in folder.iterdir())

    asked = [asyncio.create_task(claimed(soup)) for _ in range(3)]  # at once with each other, and with the node's own look
    await eventually("the template is put aside", aside)
    for each in await asyncio.gather(*asked):
        assert await told(each, "6 * 7") == 42
    assert (await soup.get(Template, "py")).status.nodes[0].digest != digest
    assert "TemplateCorrupt" in await events(soup)


def harm(path: Path, damage: str) -> None:
    """One wrong bit in its middle, or its second half gone."""
    half = path.stat().st_size // 2
    if damage == "cut":
        os.truncate(path, half)
        return
    with path.open("r+b") as file:
        file.seek(half)
        byte = file.read(1)[0]
        file.seek(half)
        file.write(bytes((byte ^ 1,)))
