"""A real soup of one node and a lifeform with data: what was written outlives the microVM, the daemon, the suspension and the
soup's own end, grows while it is in use, and goes only when somebody says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from primordia.client.aio import AsyncClient
from primordia.drivers.volumes_btrfs import pool
from primordia.host import up as host
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape
from primordia.kit.errors import PrimordiaError
from primordia.testing.soup import Many, eventually, is_ready, lifeform, many_nodes, running
from primordia.wire.boxes import ForkRequest
from primordia.wire.conditions import find
from primordia.wire.resources import Context, Lifeform, Node, Volume
from primordia.wire.volumes import Data

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

POOL_BYTES = 384 << 20
SERVE = ("/bin/sh", "-c", "date >> /var/data/starts; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")


def with_data(name: str, size: str) -> Lifeform:
    made = lifeform(name, command=SERVE)
    (context,) = made.spec.contexts
    return replace(made, spec=replace(made.spec, contexts=(replace(context, data=Data(size=size, mount_path="/var/data")),)))


async def said(client: AsyncClient, script: str) -> str:
    result = await client.exec("db", ["sh", "-c", script])
    assert result.code == 0, result
    return result.stdout.decode()


async def starts(client: AsyncClient, count: int) -> None:
    async def reached() -> bool:
        return int(await said(client, "cat /var/data/starts 2>/dev/null | wc -l")) == count

    await eventually(f"start {count}", reached)


async def change(client: AsyncClient, **spec: object) -> None:
    stored = await client.get(Lifeform, "db")
    await client.replace(replace(stored, spec=replace(stored.spec, **spec)))


def machine(soup: Many) -> int:
    (pid,) = soup.runs().values()
    return pid


def mounted(soup: Many) -> bool:
    point = soup.paths("n1").volumes
    return any(each.point == point for each in pool.mounted_pools())


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(1), PoolWish(size_bytes=POOL_BYTES)) as built:
        yield built


async def test_data_outlives_everything_but_its_destruction(soup: Many) -> None:
    assert mounted(soup)
    async with soup.client() as client:
        await running(client, with_data("db", "128Mi"))
        await starts(client, 1)
        await said(client, "echo kept > /var/data/file && sync")
        before = machine(soup)
        os.kill(before, signal.SIGKILL)
        await starts(client, 2)
        assert await said(client, "cat /var/data/file") == "kept\n"
        again = machine(soup)
        assert again != before
        soup.kill("n1", "daemon")
        await starts(client, 2)
        assert machine(soup) == again
        await grows_in_use(client)
        assert machine(soup) == again
        await forks_with_its_data(client, soup)
        await change(client, operating_mode="Suspended")
        assert await client.wait(Lifeform, "db", lambda one: one is not None and one.status.phase == "Suspended")
        assert soup.runs() == {}
        await change(client, operating_mode="Running")
        await starts(client, 3)
        await goes_on_from_its_memory(client, soup)
        await refuses_what_does_not_fit(client)
        await deleted(client, Lifeform, "db")
    await host.down(soup.soup.name, lambda step: None)
    assert not mounted(soup) and soup.paths("n1").pool_file.stat().st_size == POOL_BYTES
    await host.up(host.UpOptions(soup=soup.soup.name, client_config=soup.config), lambda step: None)
    assert mounted(soup)
    async with soup.client() as client:
        await running(client, with_data("db", "256Mi"))
        assert await said(client, "cat /var/data/file") == "kept\n"
        assert (await client.get(Context, "db.main")).spec.epoch == 2
        with pytest.raises(PrimordiaError):
            await client.delete(Volume, "db.main")
        await promotes_a_fork(client)
        await deleted(client, Lifeform, "db")
        await deleted(client, Volume, "db.main")
    assert list((soup.paths("n1").volumes / "volumes").iterdir()) == []


async def goes_on_from_its_memory(client: AsyncClient, soup: Many) -> None:
    """Its program is not started again, unless what is on its disk is another thing than it knows."""
    await said(client, "echo three > /tmp/memory; echo unwritten > /var/data/late")
    for started_from, text in (("memory", "three\n"), ("disk", "")):
        await change(client, operating_mode="Suspended", keep_memory=True)
        assert await client.wait(Lifeform, "db", lambda one: one is not None and one.status.phase == "Suspended")
        assert soup.runs() == {}
        kept = (await client.get(Context, "db.main")).status
        assert kept.reason == "MemoryKept", kept
        if not text:
            volume = await client.get(Volume, "db.main")
            disk = soup.paths("n1").volumes / "volumes" / volume.metadata.uid / "live" / "disk"
            os.utime(disk)  # as any write does
        await change(client, operating_mode="Running")
        await starts(client, 3 if text else 4)
        assert await said(client, "cat /tmp/memory 2>/dev/null || true") == text
        assert await said(client, "cat /var/data/late") == "unwritten\n"
        status = (await client.get(Context, "db.main")).status
        assert (status.started_from == "memory") == (started_from == "memory"), status
        told = find(status.conditions, "ResumedFromMemory")
        assert told is not None and told.status == ("True" if text else "False"), told


async def deleted(client: AsyncClient, kind: type[Lifeform] | type[Volume], name: str) -> None:
    await client.delete(kind, name, uid=(await client.get(kind, name)).metadata.uid)
    assert await client.wait(kind, name, lambda one: one is None) is None


async def promotes_a_fork(client: AsyncClient) -> None:
    """With what it wrote, synced or not; its parent does not notice."""
    (child,) = (await client.fork_report("db", ForkRequest())).children
    result = await client.exec(child.name, ["sh", "-c", "echo twin > /var/data/file"], kind=Context)
    assert result.code == 0, result
    promoted = await client.promote(child.name, "twin")
    assert promoted.volume == "twin.main"
    assert is_ready(await client.wait(Lifeform, "twin", is_ready))
    assert (await client.exec("twin", ["cat", "/var/data/file"])).stdout == b"twin\n"
    assert await said(client, "cat /var/data/file") == "kept\n"
    await deleted(client, Lifeform, "twin")
    await deleted(client, Volume, "twin.main")


async def forks_with_its_data(client: AsyncClient, soup: Many) -> None:
    """A child has what its parent had at that moment, for itself."""
    pool_folder = soup.paths("n1").volumes / "volumes"
    (child,) = (await client.fork_report("db", ForkRequest())).children
    try:
        script = "cat /var/data/file; echo child > /var/data/file; sync; cat /var/data/file"
        result = await client.exec(child.name, ["sh", "-c", script], kind=Context)
        assert (result.code, result.stdout) == (0, b"kept\nchild\n")
        assert await said(client, "cat /var/data/file") == "kept\n"
        assert len(list(pool_folder.iterdir())) == 2
    finally:
        await client.delete(Context, child.name)

    async def alone() -> bool:
        return len(list(pool_folder.iterdir())) == 1

    await eventually("the end of the clone", alone)


async def grows_in_use(client: AsyncClient) -> None:
    await change(client, contexts=with_data("db", "256Mi").spec.contexts)

    async def grown() -> bool:
        return int(await said(client, "df -k /var/data | tail -1 | awk '{print $2}'")) > 200 * 1024

    await eventually("growth", grown)
    assert await said(client, "cat /var/data/file") == "kept\n"


async def refuses_what_does_not_fit(client: AsyncClient) -> None:
    """Before anything of it is begun, and in words."""
    await client.create(with_data("large", "2Gi"))

    def refused(one: Lifeform | None) -> bool:
        found = find(one.status.conditions, "Scheduled") if one is not None else None
        return found is not None and found.status == "False"

    one = await client.wait(Lifeform, "large", refused)
    assert one is not None
    found = find(one.status.conditions, "Scheduled")
    assert found is not None and "pool" in found.message
    ready = find((await client.get(Node, "n1")).status.conditions, "PoolReady")
    assert ready is not None and ready.status == "True"
    await client.delete(Lifeform, "large")
