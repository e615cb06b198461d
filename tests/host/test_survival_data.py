"""The power of a lifeform's node is cut, for real: it goes on from its copy, and what the dead node had beyond it is not lost.

The copy's node is stopped for the last of what is written, so that there is something that only the dead node has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.host.pool import PoolWish
from primordia.host.power import cut_power, restore_power
from primordia.host.shape import Shape
from primordia.testing.soup import Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Context, Lifeform, Volume
from primordia.wire.volumes import Data, Layout, Replication

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

POOL_BYTES = 384 << 20
NAME = "db.main"


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


def with_data() -> Lifeform:
    made = lifeform("db", command=("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"))
    (context,) = made.spec.contexts
    spec = replace(
        made.spec,
        contexts=(replace(context, data=Data(size="128Mi", mount_path="/var/data")),),
        replication=Replication(layout=Layout(mirror=1)),
    )
    return replace(made, spec=spec)


async def said(client: AsyncClient, script: str, *, who: str = "db") -> str:
    result = await client.exec(who, ["sh", "-c", script])
    assert result.code == 0, result
    return result.stdout.decode()


async def test_a_power_cut_of_the_owner_and_its_return(soup: Many) -> None:
    async with soup.client() as client:
        await running(client, with_data())
        await said(client, "echo one > /var/data/file")
        synced = await client.sync(NAME, timeout_s=60)
        before = await client.get(Volume, NAME)
        owner, (copy,) = before.status.node, synced.copies

        async def is_prepared() -> bool:
            return any(not each.name.startswith(".") for each in soup.paths(copy).templates.iterdir())

        await eventually("who holds the copy has the template", is_prepared)
        await only_the_owner_has(soup, client, owner, copy)
    begun_s = time.monotonic()
    others = [name for name in soup.names if name != owner]
    async with soup.client(*others) as client:

        async def goes_on() -> bool:
            after = await client.get(Volume, NAME)
            return after.status.node == copy and await said(client, "cat /var/data/file") == "one\n"

        await eventually("it goes on from its copy", goes_on)
        print(f"it answered {time.monotonic() - begun_s:.1f} s after the power cut")
        context = await client.get(Context, NAME)
        assert context.spec.node == copy
        assert context.status.started_from in ("warm", "cold"), "it booted, though all was prepared"
        after = await client.get(Volume, NAME)
        began = after.status.restored_from
        assert began is not None
        assert (began.node, began.number, began.allow_loss) == (owner, synced.number, False)
        assert await said(client, "ls /var/data/noise 2>/dev/null | wc -l") == "0\n"
        await said(client, "echo two >> /var/data/file && sync")

        await restore_power(soup.soup, owner)

        async def is_a_copy() -> bool:
            told = {each.node: each.state for each in (await client.get(Volume, NAME)).status.copies}
            return told.get(owner) == "InSync"

        await eventually("the dead node holds a copy", is_a_copy)
        assert await said(client, "cat /var/data/file") == "one\ntwo\n"
        synced = await client.sync(NAME, timeout_s=60)
        assert synced.copies == (owner,)
        await what_only_the_dead_had_is_there(soup, client, owner, began.number)
        await client.delete(Lifeform, "db")
        await soup.clear()
        await client.delete(Volume, NAME, uid=after.metadata.uid)
        assert await client.wait(Volume, NAME, lambda one: one is None, timeout_s=60) is None
    for name in soup.names:
        assert list((soup.paths(name).volumes / "volumes").iterdir()) == []


async def what_only_the_dead_had_is_there(soup: Many, client: AsyncClient, owner: str, number: int) -> None:
    """Put aside, and a volume of its own for who wants to look into it."""
    found = await client.orphans(owner)
    tails = [each.snapshot for each in found if each.name == NAME and each.snapshot is not None]
    assert tails and all(each.number > number and each.epoch == 1 for each in tails), found
    for name in soup.names:
        assert name == owner or await client.orphans(name) == ()
    made = await client.clone(NAME, "look", orphan=f"{owner}/{tails[-1].number}")
    disk = soup.paths(owner).volumes / "volumes" / made.uid / "live" / "disk"
    assert made.node == owner and disk.stat().st_blocks * 512 >= 16 << 20
    await client.delete(Volume, "look", uid=made.uid)
    assert await client.wait(Volume, "look", lambda one: one is None, timeout_s=60) is None


async def only_the_owner_has(soup: Many, client: AsyncClient, owner: str, copy: str) -> None:
    """Sixteen megabytes of noise, more than a connection to a node that stands still can hold; then the power goes."""
    before = (await client.snapshots(NAME))[-1].number
    with soup.frozen(copy, "daemon"):
        async with soup.client(owner) as own:
            await said(own, "head -c 16777216 /dev/urandom > /var/data/noise && sync")

            async def cut() -> bool:
                found = [each for each in await own.snapshots(NAME) if each.number > before]
                return sum(each.changed_bytes for each in found) >= 16 << 20

            await eventually("the noise is cut", cut)
        await cut_power(soup.soup, owner)
