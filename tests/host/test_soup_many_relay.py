"""Every node serves exec, logs, files and ports of every context, and says it in one sentence when it cannot."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator

import pytest

from primordia.client.errors import BrokenAnswerError
from primordia.host.shape import Shape
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.testing.soup import PATIENCE_S, SERVE, Many, eventually, lifeform, many_nodes, running
from primordia.wire.resources import Lifeform

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 2)) as built:

        async def populate() -> None:
            async with built.client() as client:
                await running(client, lifeform("far", node="n2"), lifeform("web", node="n3", command=SERVE))

        asyncio.run(populate())
        yield built


async def test_exec_through_every_node(soup: Many) -> None:
    for node in soup.names:
        async with soup.client(node) as client:
            result = await client.exec("far", ["sh", "-c", "cat; hostname >&2; exit 7"], stdin=b"hello")
            assert (result.code, result.stdout, result.stderr) == (7, b"hello", b"far-main\n")
            with pytest.raises(PrimordiaError, match="nonesuch"):
                await client.exec("far", ["nonesuch"])


async def test_logs_through_a_foreign_node(soup: Many) -> None:
    async with soup.client("n1") as client:
        assert b"".join([piece async for piece in client.logs("far")]) == b"born\n"
        stamped = b"".join([piece async for piece in client.logs("far", tail=1, timestamps=True)])
        assert stamped.endswith(b"Z born\n")


async def test_files_through_a_foreign_node(soup: Many) -> None:
    content = hashlib.sha256(b"seed").digest() * 60_000
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("data")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    async with soup.client("n1") as writer, soup.client("n3") as reader, asyncio.timeout(PATIENCE_S):
        await writer.write_tar("far", "/tmp", [buffer.getvalue()])
        back = b"".join([piece async for piece in reader.read_tar("far", "/tmp/data")])
        with tarfile.open(fileobj=io.BytesIO(back)) as tar:
            extracted = tar.extractfile("data")
            assert extracted is not None
            assert extracted.read() == content
        with pytest.raises(PrimordiaError, match="/nope"):
            [piece async for piece in reader.read_tar("far", "/nope")]
        with pytest.raises(PrimordiaError, match="/nope"):
            await writer.write_tar("far", "/nope", [buffer.getvalue()])


async def test_a_port_through_a_foreign_node(soup: Many) -> None:
    async with soup.client("n1") as client:
        async with client.connect_port("web", 8000) as stream:
            await stream.write(b"GET / HTTP/1.0\r\n\r\n")
            await stream.end()
            answer = b""
            while piece := await stream.read():
                answer += piece
        assert answer.endswith(b"web-main\n")
        with pytest.raises(PrimordiaError, match="refused"):
            async with client.connect_port("web", 1234):
                pass


async def test_a_client_that_leaves_takes_its_command_along(soup: Many) -> None:
    async with soup.client("n1") as client, soup.client("n2") as other:

        async def sleepers() -> int:
            return int((await other.exec("far", ["sh", "-c", "ps | grep -c '[s]leep 4242'"])).stdout)

        async def is_there() -> bool:
            return await sleepers() == 1

        async def is_gone() -> bool:
            return await sleepers() == 0

        async with client.exec_session("far", ["sleep", "4242"]):
            await eventually("the command runs", is_there)
        await eventually("the command is gone", is_gone)


async def test_a_node_whose_daemon_is_away(soup: Many) -> None:
    """Killed: one sentence until the next daemon serves. Its microVM never notices. Frozen: the same sentence, in time."""
    machines = soup.runs()
    async with soup.client("n1") as client:
        async with client.exec_session("far", ["sh", "-c", "echo up; sleep 100"]) as session:
            output = session.output()
            assert await anext(output) == ("stdout", b"up\n")
            soup.kill("n2", "daemon")
            with pytest.raises((TemporaryError, BrokenAnswerError), match=r"n2|broke off"):
                async for _ in output:
                    pass
                await session.result()

        async def works_again() -> bool:
            return (await client.exec("far", ["true"])).code == 0

        await eventually("the next daemon serves", works_again)
        with soup.frozen("n2", "daemon"), pytest.raises(TemporaryError, match="Node n2, where the context is, does not answer"):
            async with asyncio.timeout(PATIENCE_S):
                await client.exec("far", ["true"])
        await eventually("the thawed daemon serves", works_again)
    assert soup.runs() == machines


async def test_a_client_goes_on_to_the_next_node(soup: Many) -> None:
    async with soup.client("n1", "n2", "n3") as client:
        await client.get(Lifeform, "far")
        with soup.frozen("n1", "daemon"):
            assert (await client.get(Lifeform, "far")).status.node == "n2"
        async with soup.client("n1", "n3") as another:
            soup.kill("n1", "supervisor")  # its daemon dies with it, and nobody starts the next

            async def is_away() -> bool:
                return not soup.pid("n1", "daemon")

            await eventually("the daemon is dead", is_away)
            assert (await another.exec("far", ["echo", "there"])).stdout == b"there\n"
