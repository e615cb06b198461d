"""Every period, patience and deadline of leases, fence and failover, in one place, because they are safe only together.

A node must have stopped writing before anybody may start what it ran. Its own clock says when it stops, another machine's
when that one may start; between the two lie a renewal, a freeze and the drift of two clocks. So a value is never judged
alone: `Timings` refuses any set in which a node could still write when another may.

All nodes of a soup need the same ones. `node.json` has them under `timings`, `soup.yaml` under `spec.timings`, by the
names used here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from primordia.kit.errors import InvalidError

FIELD = "timings"


@dataclass(frozen=True)
class Timings:
    """Seconds, unless a name says otherwise. Raises ValueError, with a sentence, when they are unsafe together."""

    # ------------------------------------------------------------ the lease

    ttl_s: int = 6
    """What the engine grants: whoever says nothing for so long has lost the key."""

    renew_every_s: float = 1.0
    """Leaves several tries in the lease."""

    request_timeout_s: float = 0.5
    """Bounds one try, so that a stalled server costs a try and not the lease."""

    deadline_s: float = 4.0
    """So long after the last acknowledged renewal was sent the holder must take its own lease for doubtful: a node freezes
    its microVMs then, a leader stops."""

    check_every_s: float = 10.0
    """How often the holder looks whether the key is still its own: a lease may outlive its key by an operator's hand."""

    refused_every_s: float = 5.0
    """How often one that found the key taken looks again."""

    # ------------------------------------------------------------ the fence

    drift_s: float = 0.5
    """How much later than its deadline, by another machine's clock, the last write of a node may be: the freeze itself,
    and what two clocks differ by in one deadline."""

    failsafe_round_s: float = 1.0
    """Without an engine, how often every other node is asked whether it has one; also how long it may take to say."""

    contact_s: float = 2.0
    """So long after its last acknowledged request was sent a node says that it has the engine, and may declare others dead."""

    beat_every_s: float = 1.0
    """How often the daemon shows that its event loop turns."""

    daemon_silence_s: float = 30.0
    """A daemon that shows nothing for so long is killed with its microVMs: nobody looks after them."""

    restart_silence_s: float = 90.0
    """The same for one that is starting, or whose restart was announced: adopting many microVMs takes time."""

    first_word_s: float = 3.0
    """A node that has proved its death leaves it to the others for so long to start what it ran, before it begins another life
    and would start it itself: they are ready, and its daemon is not."""

    # ------------------------------------------------------------ failover

    takeover_ttl_s: float = 1.5
    """A lease with at most so much left, that then went, ran out. The engine tells whole seconds, rounded down: a reading
    of N stands for anything below N + 1."""

    absent_grace_s: float = 30.0
    """A node that was absent when a leader began to look is given so long: soups start one node after another."""

    hold_share: float = 1 / 3
    """Where more than this part of all nodes, on several racks, goes within one lease, nothing is declared dead."""

    holdings_wait_s: float = 1.5
    """How long the living are given to say what they hold of a dead node's volumes."""

    reprotect_after_s: float = 60.0
    """A copy on a node that has been dead for so long counts as lost, and another one is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be above 0, and finite")
        if self.deadline_s + self.renew_every_s + self.request_timeout_s > self.ttl_s:
            raise ValueError(
                f"deadline_s ({self.deadline_s:g}) + renew_every_s ({self.renew_every_s:g}) + "
                f"request_timeout_s ({self.request_timeout_s:g}) must not be above ttl_s ({self.ttl_s:g})"
            )
        if self.renew_every_s + 2 * self.request_timeout_s > self.deadline_s:
            raise ValueError(
                f"deadline_s ({self.deadline_s:g}) must leave room for a period and two tries "
                f"({self.renew_every_s + 2 * self.request_timeout_s:g})"
            )
        if self.deadline_s + self.drift_s > self.ttl_s - self.takeover_ttl_s:
            raise ValueError(
                f"deadline_s ({self.deadline_s:g}) + drift_s ({self.drift_s:g}) must not be above ttl_s - takeover_ttl_s "
                f"({self.ttl_s - self.takeover_ttl_s:g}): a node must stand before it can be declared dead"
            )
        if self.contact_s < self.renew_every_s + self.request_timeout_s:
            raise ValueError(
                f"contact_s ({self.contact_s:g}) must not be below renew_every_s + request_timeout_s "
                f"({self.renew_every_s + self.request_timeout_s:g}): a single slow answer must not break it"
            )
        if self.contact_s + self.failsafe_round_s > self.deadline_s - self.renew_every_s:
            raise ValueError(
                f"contact_s ({self.contact_s:g}) + failsafe_round_s ({self.failsafe_round_s:g}) must not be above "
                f"deadline_s - renew_every_s ({self.deadline_s - self.renew_every_s:g}): a soup without an engine must hear of "
                "it in time"
            )
        if 2 * self.failsafe_round_s > self.deadline_s:
            raise ValueError(
                f"failsafe_round_s ({self.failsafe_round_s:g}) must be at most half of deadline_s ({self.deadline_s:g}): "
                "one lost answer must not freeze a node"
            )
        if 3 * self.beat_every_s > self.daemon_silence_s or self.daemon_silence_s > self.restart_silence_s:
            raise ValueError(
                f"daemon_silence_s ({self.daemon_silence_s:g}) must be at least three times beat_every_s "
                f"({self.beat_every_s:g}), and at most restart_silence_s ({self.restart_silence_s:g})"
            )
        if self.absent_grace_s < self.ttl_s:
            raise ValueError(f"absent_grace_s ({self.absent_grace_s:g}) must not be below ttl_s ({self.ttl_s:g})")
        if self.hold_share > 1:
            raise ValueError(f"hold_share ({self.hold_share:g}) must be a part of all nodes, at most 1")

    @staticmethod
    def of(settings: Mapping[str, object]) -> Timings:
        """The usual ones with these instead. Raises InvalidError naming what is unknown, no number, or unsafe."""
        kinds = {field.name: field.type for field in dataclasses.fields(Timings)}
        values: dict[str, float] = {}
        for name, value in settings.items():
            if name not in kinds:
                raise InvalidError(f"{FIELD}.{name}", "there is no such timing.", remedy=f"They are {', '.join(kinds)}.")
            if isinstance(value, bool) or not isinstance(value, int | float) or (kinds[name] == "int" and value != int(value)):
                wanted = "whole number" if kinds[name] == "int" else "number"
                raise InvalidError(f"{FIELD}.{name}", f"{value!r} is no {wanted} of seconds.")
            values[name] = int(value) if kinds[name] == "int" else value
        try:
            return Timings(**values)  # type: ignore[arg-type]
        except ValueError as error:
            raise InvalidError(FIELD, f"{error}.", remedy="Leave out what you do not need: the usual ones are safe.") from error
