"""A program that is told to end takes away what it made, once, however often it is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

PROGRAM = """
import asyncio, signal, sys
from primordia.bench import runner
from primordia.cli import bench, main

async def run(*_):
    try:
        print('up', flush=True)
        await asyncio.sleep(600)
    finally:
        print('told', flush=True)
        await asyncio.sleep(1)
        print('down', flush=True)

bench.run = run
sys.exit(main.main(['bench', 'idle']))
"""


@contextlib.asynccontextmanager
async def benchmark(before: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that is measuring, and has something to take down."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", before + PROGRAM, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"up\n"
            yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
    ],
)
async def test_a_benchmark_that_is_told_to_end_takes_its_soup_down(first: int, then: int) -> None:
    async with benchmark() as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert await process.stdout.readline() == b"told\n"
        process.send_signal(then)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"down\n"), err
    assert b"Traceback" not in err


async def test_one_in_the_background_whose_shell_has_it_ignore_sigint_ends_in_order_all_the_same() -> None:
    async with benchmark("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"told\ndown\n"), err
