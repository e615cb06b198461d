"""What the node has left for forks: counts what there is, and asks the pure limits.

What was granted and has not become a context yet is counted too, so that claims that come together cannot take the same
room. Forks that wait are not counted against one who asks: they give way first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from primordia.domain import pool as planner
from primordia.domain.forklimits import Ask, Limits, Use, charge_bytes, refusal_of
from primordia.kit.errors import CapacityError
from primordia.kit.units import human_bytes, parse_bytes
from primordia.node.live import Live
from primordia.node.services import Services

_PAUSED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class _Grant:
    root: str
    ask: Ask


class ForkRoom:
    """One node's. `lives` are its contexts, by uid."""

    def __init__(self, services: Services, lives: Callable[[], Mapping[str, Live]]) -> None:
        self._services = services
        self._lives = lives
        self._granted: list[_Grant] = []

    @property
    def forks(self) -> int:
        """Boxes and forks that are there or on their way."""
        there = sum(1 for live in self._lives().values() if live.is_fork)
        return there + sum(grant.ask.count for grant in self._granted)

    @contextlib.contextmanager
    def granted(self, root: str, ask: Ask) -> Iterator[None]:
        """Room for so many forks of that root while the block runs. Raises CapacityError naming the numbers."""
        self._check(root, ask)
        grant = _Grant(root, ask)
        self._granted.append(grant)
        try:
            yield
        finally:
            self._granted.remove(grant)

    def for_pool(self, waiting: int, waiting_bytes: int) -> planner.Room:
        """What is left for forks that wait, of which there are so many, charged so much."""
        services, settings = self._services, self._services.settings
        host = services.host
        promised = self._memory_bytes() - self._charged_bytes() - waiting_bytes
        return planner.Room(
            # Its own reserve is taken off what is promised already; the machine's free memory has it still in it.
            free_bytes=min(host.memory_available(), promised + settings.memory_reserve_bytes),
            reserve_bytes=settings.memory_reserve_bytes,
            forks_left=settings.most_forks - self.forks - waiting,
            stalled_percent=host.memory_stalled_percent(),
        )

    # ------------------------------------------------------------ inside

    def _check(self, root: str, ask: Ask) -> None:
        settings = self._services.settings
        limits = Limits(settings.most_forks, settings.most_forks_of_root, settings.deepest_fork, self._memory_bytes())
        of_root = sum(1 for live in self._lives().values() if live.is_fork and live.record.root == root)
        of_root += sum(grant.ask.count for grant in self._granted if grant.root == root)
        refusal = refusal_of(ask, Use(self.forks, of_root, self._charged_bytes()), limits)
        if refusal is not None:
            raise CapacityError(refusal.message, remedy=refusal.remedy, reason=refusal.reason)
        free = self._services.host.memory_available() - settings.memory_reserve_bytes
        if ask.count * _PAUSED_BYTES > free:
            raise CapacityError(
                f"The machine has {human_bytes(max(0, free))} of memory free beside its reserve, and {ask.count} forks need "
                f"about {human_bytes(ask.count * _PAUSED_BYTES)} at once.",
                remedy="Stop something else on this machine, or fork fewer.",
                reason="InsufficientMemory",
            )

    def _memory_bytes(self) -> int:
        config, host = self._services.config, self._services.host
        return config.memory_bytes or max(0, host.memory_total() - self._services.settings.memory_reserve_bytes)

    def _charged_bytes(self) -> int:
        wanted = (live for live in self._lives().values() if live.machine is not None)
        there = sum(charge_bytes(parse_bytes(live.spec.template.resources.memory)) for live in wanted)
        return there + sum(grant.ask.count * charge_bytes(grant.ask.memory_bytes) for grant in self._granted)
