"""`python -m primordia.sim`: many seeds, or one again. The exit code is 1 when a checker found something."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from dataclasses import replace

from primordia.sim.report import Summary, explain
from primordia.sim.world import Profile, simulate


def main(arguments: list[str]) -> int:
    """Run seeds and tell."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.CRITICAL, format="%(name)s: %(message)s")
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    count = 1 if options.seed is not None else options.seeds
    profile = replace(Profile(), nodes=options.nodes, lifeforms=options.lifeforms, duration_s=options.duration)
    begun = time.monotonic()
    summary = Summary()
    try:
        for seed in range(first, first + count):
            result = simulate(seed, profile)
            summary.add(result)
            for line in explain(result) if result.violations else ():
                print(line, flush=True)
            if count == 1:
                print(f"seed {seed}: fingerprint {result.fingerprint}")
    except KeyboardInterrupt:
        print("interrupted")
    print("\n".join(summary.lines(time.monotonic() - begun)))
    return 1 if summary.failed else 0


def _parser() -> argparse.ArgumentParser:
    default = Profile()
    parser = argparse.ArgumentParser(prog="python -m primordia.sim", description="Simulate soups with faults.")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many fresh seeds (default: 20)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="one seed, again")
    parser.add_argument("--nodes", type=int, default=default.nodes, metavar="N", help="nodes of the soup")
    parser.add_argument("--lifeforms", type=int, default=default.lifeforms, metavar="N", help="the most there are at once")
    parser.add_argument(
        "--duration", type=float, default=default.duration_s, metavar="SECONDS", help="simulated seconds of trouble"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="the controllers' own log, too")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
