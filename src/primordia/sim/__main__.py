"""`python -m primordia.sim`: many seeds, or one again. The exit code is 1 when a checker found something."""

from __future__ import annotations

import argparse
import concurrent.futures
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from primordia.sim.report import Summary, explain
from primordia.sim.survival.faults import Harm
from primordia.sim.survival.world import SurvivalProfile, survive
from primordia.sim.world import Profile, Result, simulate

CONTROL, SURVIVAL, BOTH = "control", "survival", "both"


def run(world: str, seed: int, options: argparse.Namespace) -> Result:
    """One seed of one kind of world."""
    if world == CONTROL:
        profile = replace(Profile(), nodes=options.nodes, lifeforms=options.lifeforms, duration_s=options.duration)
        return simulate(seed, profile)
    return survive(seed, replace(SurvivalProfile(), duration_s=options.duration / 2))


def main(arguments: list[str]) -> int:
    """Run seeds and tell."""
    options = _parser().parse_args(arguments)
    _log(options)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(2**32)
    worlds = (CONTROL, SURVIVAL) if options.world == BOTH else (options.world,)
    count = 1 if options.seed is not None else options.seeds
    jobs = [(worlds[number % len(worlds)], first + number) for number in range(count)]
    if options.seed is not None:
        jobs = [(world, options.seed) for world in worlds]
    begun = time.monotonic()
    summaries = {world: Summary() for world in worlds}
    try:
        for world, result in _results(jobs, options):
            summaries[world].add(result)
            for line in explain(result, world) if result.violations else ():
                print(line, flush=True)
            if options.seed is not None:
                print(f"{world} seed {result.seed}: fingerprint {result.fingerprint}")
    except KeyboardInterrupt:
        print("interrupted")
    seconds = time.monotonic() - begun
    for world, summary in summaries.items():
        print(f"\n== {world}")
        print("\n".join(summary.lines(seconds)))
    missed = [harm.value for harm in Harm if SURVIVAL in summaries and not summaries[SURVIVAL].faults[harm]]
    if SURVIVAL in summaries and options.seed is None:
        total = len(Harm)
        print(
            f"{total - len(missed)} of {total} kinds of faults were injected" + (f"; not {', '.join(missed)}" if missed else "")
        )
    print(f"{sum(each.runs for each in summaries.values()) / max(seconds, 0.001):.2f} seeds/s")
    return 1 if any(summary.failed for summary in summaries.values()) else 0


def _results(jobs: Sequence[tuple[str, int]], options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Each job's, in whatever order they end. Several processes share many; the wish to see a log keeps it to one."""
    workers = min(options.jobs, len(jobs))
    if workers < 2 or options.verbose:
        for world, seed in jobs:
            yield world, run(world, seed, options)
        return
    with concurrent.futures.ProcessPoolExecutor(workers, initializer=_log, initargs=(options,)) as pool:
        running = {pool.submit(run, world, seed, options): world for world, seed in jobs}
        try:
            for done in concurrent.futures.as_completed(running):
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _log(options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO if options.verbose else logging.CRITICAL, format="%(name)s: %(message)s")
    if not options.verbose:
        logging.disable(logging.CRITICAL)


def _parser() -> argparse.ArgumentParser:
    default = Profile()
    parser = argparse.ArgumentParser(prog="python -m primordia.sim", description="Simulate soups with faults.")
    parser.add_argument(
        "--world",
        choices=(CONTROL, SURVIVAL, BOTH),
        default=BOTH,
        help="placing and counting; machines that die; or seeds of both in turns (default)",
    )
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many fresh seeds (default: 20)")
    parser.add_argument("--seed", type=int, metavar="SEED", help="one seed, again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--nodes", type=int, default=default.nodes, metavar="N", help="nodes of a control world")
    parser.add_argument("--lifeforms", type=int, default=default.lifeforms, metavar="N", help="the most of a control world")
    parser.add_argument(
        "--duration", type=float, default=default.duration_s, metavar="SECONDS", help="simulated seconds of trouble"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="the controllers' own log, too")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
