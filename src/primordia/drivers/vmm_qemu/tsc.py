"""The frequency of the host's time-stamp counter, which a TCG guest sees as its own.

The kernel keeps it to itself (tsc_freq_khz exists on few), so it is measured: the counter, read by the processor's own
instruction, against CLOCK_MONOTONIC_RAW, which nothing steers. Each reading is the tightest of many, so that being
interrupted does not count; 20 ms are enough for a few parts in a million.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time

_MEASURE_S = 0.02
_READINGS = 50
# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_CODE = bytes.fromhex("0f3148c1e2204809d0c3")


@functools.cache
def host_tsc_khz() -> int:
    """Thousands of ticks each second; 0 where memory must not be executed. Blocks for 20 ms, the first time only."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0
    page.write(_CODE)
    read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))

    def reading() -> tuple[int, float, int]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks: int = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return after - before, (before + after) / 2, ticks

    first = min(reading() for _ in range(_READINGS))
    time.sleep(_MEASURE_S)
    last = min(reading() for _ in range(_READINGS))
    return round((last[2] - first[2]) / (last[1] - first[1]) * 1_000_000)
