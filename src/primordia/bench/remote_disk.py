"""A disk that another node serves, over the soup's network: what there would be without data beside its lifeform.

The server is QEMU's own, for the Network Block Device protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md), on a raw
file, with the flushes and the page cache that a volume has; the client is the one in the guest's QEMU. Nothing in between is
ours, and nothing is encrypted: it is as fast as such a thing gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from primordia.drivers.vmm_qemu.driver import environment
from primordia.kit import netns
from primordia.kit.errors import PrimordiaError
from primordia.wire.nodeconfig import NodeConfig

PORT = 10809
_EXPORT = "disk"
_ANSWER_S = 30.0


@contextlib.asynccontextmanager
async def served(config: NodeConfig, file: Path) -> AsyncIterator[dict[str, object]]:
    """The file on that node's address, for the block; gives what QEMU's client is told (a `file` of a blockdev)."""
    disk = {
        "driver": "raw",
        "node-name": _EXPORT,
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(file), "aio": "threads"},
    }
    words = [config.tools.qemu, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    argv = netns.argv_in(config.netns, [*words, "-blockdev", json.dumps(disk), "-qmp", "stdio"])
    process = await asyncio.create_subprocess_exec(
        *argv, env=environment(config.tools), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    server = {"type": "inet", "data": {"host": config.address, "port": str(PORT)}}
    try:
        await _ask(process, "qmp_capabilities")
        await _ask(process, "nbd-server-start", addr=server)
        await _ask(process, "block-export-add", type="nbd", id=_EXPORT, writable=True, **{"node-name": _EXPORT})
        yield {"driver": "nbd", "server": {"type": "inet", "host": config.address, "port": str(PORT)}, "export": _EXPORT}
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, command: str, **arguments: object) -> None:
    """One QMP command. Raises PrimordiaError with what QEMU says of it."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + os.linesep.encode())
    async with asyncio.timeout(_ANSWER_S):
        while line := await process.stdout.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise PrimordiaError(f"The disk cannot be served: {answer['error'].get('desc')}")
            if "return" in answer:
                return
    raise PrimordiaError("The disk cannot be served: QEMU ended.")
