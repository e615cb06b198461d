"""How fast a volume's data may go to its copies, as its replication says. Pure."""

from __future__ import annotations

from primordia.kit.units import parse_bytes
from primordia.wire.resources import Volume


def bandwidth_of(volume: Volume) -> float:
    """Bytes a second, 0 for no limit; words that cannot be read are none, and were refused when they were written."""
    replication = volume.spec.replication
    if replication is None or not replication.bandwidth:
        return 0.0
    try:
        return float(parse_bytes(replication.bandwidth))
    except ValueError:
        return 0.0
