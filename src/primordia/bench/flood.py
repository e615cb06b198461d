"""What a lifeform costs its neighbour on the same node when it floods the daemon with output.

The neighbour is asked to run a command, again and again. Meanwhile the other one writes to its exec's output, its main
program's log and its console as fast as it can; in the baseline it does the same work and throws the output away. So the
processor that it uses is in both, and the ratio is of what its output does to the daemon that they share. The two take
short turns, and turns at being first, so that a busy machine slows both. Whoever reads the flood is a program of its
own, as a user's is.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from primordia.bench import lifeforms
from primordia.bench.figures import Figure, figure, paired
from primordia.bench.ground import Ground, Progress
from primordia.client.aio import AsyncClient
from primordia.kit.errors import PrimordiaError
from primordia.wire.meta import LABEL_NODE
from primordia.wire.resources import Lifeform

TURNS = 20
_PER_TURN = 5
_CONNECTED_S = 2.0
_SETTLE_S = 0.3
_MARK = "/tmp/flood"
# Twice what the log takes, and no more, for in a guest of one processor it would take that away from the exec's flood.
_MAIN = f"""trap 'exit 0' TERM
yes | head -c 200000 >/tmp/lines
while sleep 0.1; do
  if [ -e {_MARK} ]; then cat /tmp/lines; head -c 1000 /tmp/lines >/dev/console
  else cat /tmp/lines >/dev/null; fi
done"""
_EXEC = f"""while :; do
  if [ -e {_MARK} ]; then dd if=/dev/zero bs=64k count=64; else dd if=/dev/zero bs=64k count=1000 >/dev/null; fi 2>/dev/null
done"""


async def measure(ground: Ground, neighbour: str, rounds: int, progress: Progress) -> list[Figure]:
    """The figures exec_beside_flood, of `rounds` execs in the lifeform `neighbour`, and flood_rate, what its reader got.

    Raises PrimordiaError.
    """
    turns = max(1, rounds // _PER_TURN) if rounds else TURNS
    progress("exec: boot a neighbour that floods")
    node = (await ground.client.get(Lifeform, neighbour)).status.node
    beside: list[float] = []
    alone: list[float] = []
    rates = []
    async with lifeforms.running(ground.client, _manifest(node)) as flooder, _busy(ground, flooder) as reader:
        for turn in range(turns):
            progress(f"exec: beside a flood, {turn + 1} of {turns}")
            for floods in (True, False) if turn % 2 else (False, True):
                await _turn(ground.client, flooder, floods)
                begun, before = time.monotonic(), _read_bytes(reader)
                taken = await round_trips(ground.client, neighbour, _PER_TURN)
                (beside if floods else alone).extend(taken)
                if floods:
                    rates.append((_read_bytes(reader) - before) / (time.monotonic() - begun) / 1e6)
    return [paired("exec_beside_flood", "ms", beside, alone), figure("flood_rate", "MB/s", rates)]


async def round_trips(client: AsyncClient, name: str, count: int) -> list[float]:
    """So many times from the client's call to the exit code, in ms."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        result = await client.exec(name, ["/bin/true"])
        taken.append((time.perf_counter() - begun) * 1000)
        assert result.code == 0, result
    return taken


async def _turn(client: AsyncClient, flooder: str, floods: bool) -> None:
    """Let it flood, or do the same work quietly; returns when it has surely heard."""
    await client.exec(flooder, ["touch", _MARK] if floods else ["rm", "-f", _MARK])
    await asyncio.sleep(_SETTLE_S)


def _manifest(node: str) -> Lifeform:
    """One that works without a pause, on that node; where its output goes is for a file in it to say."""
    plain = lifeforms.manifest("flood")
    main = msgspec.structs.replace(plain.spec.contexts[0], command=("/bin/sh", "-c", _MAIN))
    spec = msgspec.structs.replace(plain.spec, contexts=(main,), node_selector={LABEL_NODE: node})
    return msgspec.structs.replace(plain, spec=spec)


@contextlib.asynccontextmanager
async def _busy(ground: Ground, name: str) -> AsyncIterator[int]:
    """An exec works in the lifeform, its output read by another program, whose pid this gives; both end with the block."""
    config = ("--client-config", str(ground.client_config)) if ground.client_config else ()
    program = (sys.executable, "-c", "from primordia.cli.main import entry; entry()")
    argv = (*program, "exec", *config, name, "--", "/bin/sh", "-c", _EXEC)
    reader = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await asyncio.sleep(_CONNECTED_S)
        yield reader.pid
        if reader.returncode is not None:
            raise PrimordiaError("The program that reads the flood ended too early.", remedy="Measure again.")
    finally:
        with contextlib.suppress(ProcessLookupError):
            reader.terminate()
        await reader.wait()


def _read_bytes(reader: int) -> int:
    """What the reader has read, for it writes it all to nowhere: wchar of proc(5)."""
    return parse_written(Path(f"/proc/{reader}/io").read_text())


def parse_written(io: str) -> int:
    """Bytes of the wchar line."""
    return int(next(line for line in io.splitlines() if line.startswith("wchar:")).split()[1])
