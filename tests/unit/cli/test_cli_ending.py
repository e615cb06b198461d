"""A program that is told to end takes away what it made, once, however often it is told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_benchmark_that_is_told_to_end_takes_its_soup_down(number: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert await process.stdout.readline() == b"told\n"
        process.send_signal(number)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"down\n"), err
    assert b"Traceback" not in err
