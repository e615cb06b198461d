"""A guest's data file system stands still while its disk is cut, if that was asked for.

A cut is consistent without it, as after a power cut; standing still (FIFREEZE) makes it what the file system would unmount.
It is a wish and no condition: a guest that does not answer, or stood no longer when the cut was done, is told of in `note`, and
the cut is made all the same. The agent thaws by itself after its deadline, so that a daemon that dies here stops nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from primordia.kit.clock import Clock
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import to_the_end
from primordia.node.volumes.owned import OwnedVolume
from primordia.ports.guest import Guest

log = logging.getLogger(__name__)

DEADLINE_S = 5.0
"""After this the agent thaws by itself."""
_ANSWER_S = 3.0


@dataclass
class Stand:
    """`stood` is known when the block has ended."""

    stood: bool = False
    note: str = ""


@asynccontextmanager
async def standing(owned: OwnedVolume, clock: Clock, *, wanted: bool) -> AsyncIterator[Stand]:
    """For the block the guest's data stands still, if `wanted` and it can."""
    stand, live = Stand(), owned.live
    if not wanted:
        yield stand
        return
    if live is None:
        stand.stood = not owned.is_open
        yield stand
        return
    guest, begun_s = live.guest, clock.boottime()
    stand.note = await _freeze(guest, clock) if guest is not None else "the guest's agent cannot be reached"
    try:
        yield stand
    finally:
        if guest is not None:  # also one that froze after nobody waited for it any more
            late = await to_the_end(_thaw(guest, clock, begun_s))
            stand.note = stand.note or late
        stand.stood = not stand.note
        if stand.note:
            stand.note = f"The snapshot is crash-consistent: {stand.note}."
            log.info("volume %s was cut without standing still: %s", owned.title, stand.note)


async def _freeze(guest: Guest, clock: Clock) -> str:
    """What went wrong; empty when it stands."""
    try:
        await within(clock, _ANSWER_S, guest.freeze_data(DEADLINE_S))
    except TimeoutError:
        return f"the guest did not freeze its data within {_ANSWER_S:g} s"
    except PrimordiaError as error:
        return f"the guest could not freeze its data ({error.message})"
    except asyncio.CancelledError:
        await to_the_end(_thaw(guest, clock, clock.boottime()))
        raise
    return ""


async def _thaw(guest: Guest, clock: Clock, begun_s: float) -> str:
    """Let it go on; what makes the cut doubtful, if anything does."""
    late = clock.boottime() - begun_s >= DEADLINE_S
    try:
        await within(clock, _ANSWER_S, guest.thaw_data())
    except TimeoutError:
        return "the guest did not answer afterwards; its agent thaws by itself"
    except PrimordiaError as error:
        return f"the guest no longer stood at its end ({error.message})"
    return "it took longer than the guest may stand still" if late else ""
