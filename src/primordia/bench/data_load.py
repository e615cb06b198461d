"""The load that disks are measured with: one small program, the same for a guest and for the host.

It prints one JSON object: reads of 4 KiB at random places and writes of 4 KiB each with its fsync, both in operations a
second; writes without, in MB a second, with one fsync at the end; and the longest moment in which a write that goes to the
disk directly stood still. Files are made first, and what the page cache has of them is dropped before they are read.
"""

from __future__ import annotations

import msgspec

from primordia.kit.errors import PrimordiaError

PROGRAM = """
import json, mmap, os, random, sys, time
place, seconds, parts = sys.argv[1], float(sys.argv[2]), sys.argv[3].split(',')
BLOCK, SIZE = 4096, 16 << 20
now, rng = time.perf_counter, random.Random(1)
path = os.path.join(place, 'load')
data = os.urandom(1 << 20)
fd = os.open(path, os.O_RDWR | os.O_CREAT)
for at in range(0, SIZE, len(data)):
    os.pwrite(fd, data, at)
os.fsync(fd)
def place_of():
    return rng.randrange(SIZE // BLOCK) * BLOCK
def fsync():
    end, count, begun = now() + seconds, 0, now()
    while now() < end:
        os.pwrite(fd, data[:BLOCK], place_of())
        os.fsync(fd)
        count += 1
    return count / (now() - begun)
def write():
    end, count, begun = now() + seconds, 0, now()
    while now() < end:
        os.pwrite(fd, data[:BLOCK], place_of())
        count += 1
        if count % 256 == 0:
            os.fsync(fd)
    os.fsync(fd)
    return count * BLOCK / 1e6 / (now() - begun)
def read():
    end, count, begun = now() + seconds, 0, now()
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    while now() < end:
        os.preadv(direct, [page], place_of())
        count += 1
    os.close(direct)
    return count / (now() - begun)
def stall():
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, BLOCK)
    page[:] = data[:BLOCK]
    end, longest, last = now() + seconds, 0.0, now()
    while last < end:
        os.pwritev(direct, [page], place_of())
        longest, last = max(longest, now() - last), now()
    os.close(direct)
    return longest * 1000
print(json.dumps({part: globals()[part]() for part in parts}))
"""


def argv(python: str, place: str, seconds: float, *parts: str) -> list[str]:
    """How it is started, in the folder `place`; each of `parts` (fsync, write, read, stall) takes so long."""
    return [python, "-c", PROGRAM, place, f"{seconds:g}", ",".join(parts)]


def results(output: bytes) -> dict[str, float]:
    """What it said. Raises PrimordiaError."""
    try:
        return msgspec.json.decode(output, type=dict[str, float])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise PrimordiaError(f"The load ended without a result: {output[-200:]!r}.") from error
