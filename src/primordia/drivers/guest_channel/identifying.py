"""Telling a guest who it is, with a clock that is right before anybody in it looks.

A clock is set to the time at which the host asked, and is late by whatever passes until the guest does it: nothing on a
quiet machine, half a second was seen where processors are short. So nobody in the guest is let go at first; what the call
took beside the guest's own work bounds the error, and while that is too much the clock is set again. Nobody's clock need
be trusted but the host's: a guest that lies of what it spent has a wrong clock and hurts itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from primordia.drivers.guest_channel.calls import Params, confirmed_items, hook_params, identity_params
from primordia.ports.guest import GuestIdentity

log = logging.getLogger(__name__)

RIGHT_WITHIN_S = 0.05
_TRIES = 10

Call = Callable[[str, Params], Awaitable[dict[str, str]]]


@dataclass(frozen=True)
class Identified:
    """The answer to `identify`, and the microseconds that each confirmed item took, in order."""

    answer: dict[str, str]
    spent_us: dict[str, int]


async def identify(call: Call, identity: GuestIdentity) -> Identified:
    """Have the guest become that; a rehearsal ends before its processes go on. Raises ValueError for a NUL, and as calls do."""
    asked_s = time.monotonic()
    hooks = hook_params(identity)
    answer = await call("identify", identity_params(identity))
    spent_us = confirmed_items(answer)
    if identity.rehearsal:
        return Identified(answer, spent_us)
    late_s = time.monotonic() - asked_s - sum(spent_us.values()) / 1e6
    await _set_right(call, identity, asked_s, late_s)
    return Identified(answer, spent_us | confirmed_items(await call("release", hooks)))


async def _set_right(call: Call, identity: GuestIdentity, asked_s: float, late_s: float) -> None:
    """Set the clock again until it is late by no more than is allowed; say so when it stays too late."""
    tries = 0
    while late_s > RIGHT_WITHIN_S and tries < _TRIES:
        tries += 1
        now_s = time.monotonic()
        await call("clock", [("wall_ns", str(identity.wall_ns + round((now_s - asked_s) * 1e9)))])
        late_s = time.monotonic() - now_s
    if late_s > RIGHT_WITHIN_S:
        log.warning(
            "the clock of guest %s may be late by %.0f ms: the machine is too busy to set it", identity.hostname, late_s * 1000
        )
    elif tries:
        log.debug("the clock of guest %s was set %d times", identity.hostname, tries + 1)
