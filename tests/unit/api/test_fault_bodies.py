"""Bodies that are no proper HTTP: the sender is told so, it is never a failure of ours, and the log keeps no trace of it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from primordia.client.tls import context_of
from primordia.testing.api import TestApi, running_api

LIFEFORMS = "/apis/primordia.dev/v1alpha1/namespaces/default/lifeforms"
BODIES = {
    "bad chunk": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "bad chunk at the end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nxx\r\n0\r\n\r\n",
    "no gzip": b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "half a gzip": b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "no deflate": b"Content-Encoding: deflate\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
    "bad trailer": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nbad trailer\x00\r\n\r\n",
}


async def answer(api: TestApi, request: bytes) -> bytes:
    """What a client of the administrator gets for these bytes, up to the first pause."""
    port = int(api.url.rpartition(":")[2])
    tls = context_of(api.admin)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1")
    try:
        writer.write(request)
        async with asyncio.timeout(30):
            return await reader.readuntil(b"\r\n\r\n") + await reader.read(65536)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_a_body_that_cannot_be_read_is_the_senders_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    async with running_api(tmp_path) as api:
        path = LIFEFORMS if method == "POST" else f"{LIFEFORMS}/x"
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
        for name, body in BODIES.items():
            said = await answer(api, head + body)
            assert said.split(b" ", 2)[1].startswith(b"4"), (name, said)
        if method == "POST":
            assert b"The body cannot be read (" in await answer(api, head + BODIES["no gzip"])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
