"""Reading /proc as the kernel writes it."""

from __future__ import annotations

import os
import subprocess

from primordia.bench import idle

STAT = "4711 (a) odd (name) S 1 4711 4711 0 -1 4194560 1 2 3 4 50 7 11 13 20 0 1 0 100 1 1 " + " ".join(["0"] * 30)


def test_ticks_behind_an_odd_name() -> None:
    assert idle.parse_ticks(STAT) == 50 + 7 + 11 + 13


def test_pss_in_bytes() -> None:
    assert idle.parse_pss("55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:    12 kB\nPss_Anon: 5 kB\n") == 12 * 1024


def test_a_process_that_has_ended_counts_for_nothing() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert idle.cpu_seconds(frozenset({child.pid})) == 0
    assert idle.pss_mb(frozenset({child.pid})) == 0


def test_this_process_has_had_time_and_memory() -> None:
    here = frozenset({os.getpid()})
    assert idle.cpu_seconds(here) > 0
    assert idle.pss_mb(here) > 1
