"""What befalls a soup whose machines die, and when: decided by the seed before anything begins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from enum import StrEnum

from primordia.sim.faults import Fault


class Harm(StrEnum):
    """Every way to hurt machines, links, disks, clocks and the engine."""

    POWER_CUT = "power cut"
    SUSPEND = "machine suspended"
    DAEMON_STOP = "daemon stopped"
    DAEMON_CRASH = "daemon crash"
    SUPERVISOR_STOP = "supervisor stopped"
    SUPERVISOR_CRASH = "supervisor crash"
    ENGINE_CUT = "cut from the engine"
    ENGINE_CUT_ONE_WAY = "cut from the engine, one way"
    PEERS_CUT = "cut from all peers"
    PEER_CUT_ONE_WAY = "cut from one peer, one way"
    ISOLATED = "cut from everything"
    MANY_CUT = "many cut from the engine"
    RACK_LOSS = "rack loss"
    HEIR_BEHIND = "all lost but a copy that is behind"
    SEGMENT_CUT = "segment cut"
    SLOW_NODE = "slow node"
    DRIFT = "clock drift"
    WALL_JUMP = "wall clock jumps"
    MESSAGES_LOST = "messages lost"
    MESSAGES_DOUBLED = "messages doubled"
    MESSAGES_LATE = "messages late"
    LEASE_REVOKED = "lease revoked early"
    REVOKED_UNHEARD = "lease revoked from one that cannot hear it"
    ENGINE_LEADER = "engine leader changes"
    ENGINE_QUORUM = "engine without quorum"
    DISK_FULL = "disk full"
    DISK_ROT = "snapshot rots"
    COMPACTION = "compaction"
    CORDON = "node cordon"


LONGEST_S: Mapping[Harm, float] = {
    Harm.POWER_CUT: 120,
    Harm.SUSPEND: 40,
    Harm.DAEMON_STOP: 50,
    Harm.DAEMON_CRASH: 0,
    Harm.SUPERVISOR_STOP: 30,
    Harm.SUPERVISOR_CRASH: 3,
    Harm.ENGINE_CUT: 40,
    Harm.ENGINE_CUT_ONE_WAY: 40,
    Harm.PEERS_CUT: 40,
    Harm.PEER_CUT_ONE_WAY: 40,
    Harm.ISOLATED: 60,
    Harm.MANY_CUT: 30,
    Harm.RACK_LOSS: 90,
    Harm.HEIR_BEHIND: 60,
    Harm.SEGMENT_CUT: 40,
    Harm.SLOW_NODE: 60,
    Harm.DRIFT: 120,
    Harm.WALL_JUMP: 120,
    Harm.MESSAGES_LOST: 30,
    Harm.MESSAGES_DOUBLED: 30,
    Harm.MESSAGES_LATE: 30,
    Harm.LEASE_REVOKED: 0,
    Harm.REVOKED_UNHEARD: 20,
    Harm.ENGINE_LEADER: 3,
    Harm.ENGINE_QUORUM: 30,
    Harm.DISK_FULL: 40,
    Harm.DISK_ROT: 0,
    Harm.COMPACTION: 0,
    Harm.CORDON: 60,
}
"""The longest each lasts."""


def schedule(rng: random.Random, duration_s: float, pause_s: float, kinds: Sequence[Harm]) -> tuple[Fault[Harm], ...]:
    """Faults in order of time, on average one in `pause_s`; every one of the kinds is as likely as any other."""
    faults = []
    at_s = rng.expovariate(1 / pause_s)
    while at_s < duration_s:
        kind = rng.choice(kinds)
        faults.append(Fault(at_s, kind, rng.uniform(0, LONGEST_S[kind]), rng.random()))
        at_s += rng.expovariate(1 / pause_s)
    return tuple(faults)
