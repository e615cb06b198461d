"""`python -m primordia.probe`: cycles of real faults on a soup of its own. The exit code is 1 when something was wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from primordia.probe.cycles import POOL, SHAPE, Probe, chosen
from primordia.probe.faults import KINDS
from primordia.testing.soup import many_nodes


def main(arguments: list[str]) -> int:
    """Run and tell."""
    parser = argparse.ArgumentParser(prog="python -m primordia.probe", description="Real faults on a soup of six nodes.")
    parser.add_argument("--cycles", type=int, default=int(os.environ.get("CYCLES") or 50), metavar="N")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32)))
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind of fault, and others that are named so")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    say(f"CYCLES={options.cycles} SEED={options.seed}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="primordia-probe-") as folder, many_nodes(SHAPE, POOL) as soup:
        probe = Probe(soup, Path(folder), say)
        wrong = asyncio.run(probe.run(chosen(options.seed, options.cycles, options.only or KINDS)))
        say(probe.summary())
    say(f"0 leaks; {time.monotonic() - begun:.0f} s; SEED={options.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
