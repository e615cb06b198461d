"""What ends boxes and forks: their time, their parent's end, or that they are over. Decided purely, carried out by deleting
the Context, as a user would; its worker does the rest.

Time is boot-time seconds: `expiresAt` in the spec is for people, and a wall clock that is set ends nobody. A reboot ends
every fork anyway, for its memory is gone.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.errors import ConflictError, NotFoundError, PrimordiaError
from primordia.node.live import Live
from primordia.node.services import Services
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.rules import timestamp
from primordia.wire.resources import Context

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_OVER = ("Succeeded", "Failed", "Stopped")


@dataclass(frozen=True)
class Leaf:
    """A box or fork as its end is decided. Times are boot-time seconds, `expires_s` 0 is never.

    `over_since_s` is when it ended, None while it has not; `cut_off` says that nobody was ever told of it. `parent` is its
    parent's phase, empty for one that is gone, None where it does not end with its parent.
    """

    expires_s: float = 0.0
    over_since_s: float | None = None
    cut_off: bool = False
    parent: str | None = None


def reason_to_end(leaf: Leaf, now: float, keep_s: float) -> str:
    """Why it ends now; empty when it does not."""
    if leaf.cut_off:
        return "it was cut off before it was anybody"
    if leaf.expires_s and now >= leaf.expires_s:
        return "its time is over"
    if leaf.parent is not None and (not leaf.parent or leaf.parent in _OVER):
        return "its parent has ended"
    if leaf.over_since_s is not None and now >= leaf.over_since_s + keep_s:
        return "it is over, and could be looked at long enough"
    return ""


def expires_at(clock: Clock, ttl_s: float) -> str:
    """The end as people read it; empty without one."""
    return timestamp(clock.wall() + datetime.timedelta(seconds=ttl_s)) if ttl_s else ""


class Reaper:
    """Ends the forks of one node. `lives` are its contexts, by uid."""

    def __init__(self, services: Services, informers: Informers, lives: Callable[[], Mapping[str, Live]]) -> None:
        self._services = services
        self._contexts = informers.of(Context)
        self._lives = lives
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Look again and again until cancelled."""
        await self._contexts.synced()
        self._contexts.subscribe(self._on_context)
        while True:
            self._wake.clear()
            for live in list(self._lives().values()):
                if live.is_fork and live.known:
                    await self._look(live)
            await wait_event(self._services.clock, self._wake, _LOOK_S if self._has_forks() else None)

    # ------------------------------------------------------------ inside

    def _has_forks(self) -> bool:
        return any(live.is_fork for live in self._lives().values())

    def _on_context(self, change: Change[Context]) -> None:
        """A child may have come, or a parent may have gone."""
        about = change.new or change.old
        if about is not None and (not about.spec.lifeform or change.new is None or change.new.status.phase in _OVER):
            self._wake.set()

    async def _look(self, live: Live) -> None:
        context = live.context
        if context is None or context.metadata.deletion_timestamp is not None:
            return
        settings = self._services.settings
        reason = reason_to_end(self._leaf(live, context), self._services.clock.boottime(), settings.dead_box_keep_s)
        if not reason:
            return
        meta = context.metadata
        log.info("%s ends: %s", live.title, reason)
        self._services.events.record(context, "Expired" if "time" in reason else "Reaped", f"It ends: {reason}.")
        try:
            await self._services.registry.delete(Context, meta.name, meta.namespace, uid=meta.uid)
        except (NotFoundError, ConflictError):
            return
        except PrimordiaError as error:
            log.warning("%s cannot be ended yet: %s", live.title, error)

    def _leaf(self, live: Live, context: Context) -> Leaf:
        run = live.record.run
        over_since_s, cut_off = None, False
        if live.machine is None:
            cut_off = run is None or (run.phase == "starting")
            same_boot = run is not None and run.boot_id == live.boot_id
            over_since_s = run.ended_s if run is not None and same_boot else 0.0
            if run is not None and run.phase == "running":
                over_since_s = None  # its end is being recorded
        return Leaf(live.record.expires_s, over_since_s, cut_off, self._parent_phase(context))

    def _parent_phase(self, context: Context) -> str | None:
        """By the node's own word: a parent is always where its children are, and the registry's news may be late."""
        spec = context.spec
        if not spec.parent_uid or spec.lifetime != "parent":
            return None
        parent = self._lives().get(spec.parent_uid)
        return "" if parent is None or parent.wish().removed else parent.phase
