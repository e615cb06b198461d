"""What is asked again, and how long, of servers that refuse."""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from primordia.drivers.store_etcd import gateway
from primordia.drivers.store_etcd.transport import Settings, Transport

_CHOOSING = {"error": "etcdserver: leader changed", "message": "etcdserver: leader changed", "code": 14}


class Server:
    """Refuses the first `refusals` requests as a server without a leader does, then answers."""

    def __init__(self, refusals: int, refusal: dict[str, object]) -> None:
        self.asked = 0
        self._refusals, self._refusal = refusals, refusal

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if self.asked <= self._refusals:
            return web.json_response(self._refusal, status=503)
        return web.json_response({"header": {"revision": "7"}})


@contextlib.asynccontextmanager
async def asking(server: Server, settings: Settings) -> AsyncIterator[Transport]:
    application = web.Application()
    application.router.add_post("/v3/kv/range", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    transport = Transport([f"http://{host}:{port}"], ssl.create_default_context(), settings, random.Random(1))
    try:
        yield transport
    finally:
        await transport.close()
        await runner.cleanup()


async def ask(transport: Transport, *, repeat: bool = True) -> int:
    answer = await transport.call(gateway.RANGE, gateway.get_request("k"), gateway.RangeAnswer, repeat=repeat)
    return answer.header.revision


async def test_a_read_waits_until_the_servers_have_their_leader() -> None:
    server = Server(8, _CHOOSING)
    async with asking(server, Settings(election_s=60)) as transport:
        assert await ask(transport) == 7
    assert server.asked == 9


async def test_a_read_does_not_wait_longer_than_it_may() -> None:
    server = Server(10**6, _CHOOSING)
    async with asking(server, Settings(election_s=0.3)) as transport:
        with pytest.raises(gateway.NoLeaderError, match="leader changed"):
            await ask(transport)
    assert server.asked > 2


async def test_what_must_not_be_repeated_is_not() -> None:
    server = Server(1, _CHOOSING)
    async with asking(server, Settings(election_s=60)) as transport:
        with pytest.raises(gateway.NoLeaderError):
            await ask(transport, repeat=False)
    assert server.asked == 1


async def test_other_refusals_are_tried_twice() -> None:
    server = Server(10**6, {"error": "etcdserver: too many requests", "code": 8})
    async with asking(server, Settings(election_s=60)) as transport:
        with pytest.raises(gateway.StoreUnavailableError, match="too many requests"):
            await ask(transport)
    assert server.asked == 2
