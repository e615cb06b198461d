"""`run_dir/lease.json`: what the supervisor tells the daemon, and the next supervisor of this boot, of the node's lease.

It is written when the key comes or goes and not at each renewal, so that whoever follows the file sleeps meanwhile. The
daemon reads `createRevision`, under which it may start something; it is there only once all that ran under an earlier life
has been settled. The next supervisor reads `settled`, the life under which what it finds running runs.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEASE_FILE = "lease.json"


@dataclass(frozen=True)
class Holder:
    """Who holds a node's key: `incarnation` is the life of one run folder in one boot."""

    node: str
    boot_id: str
    incarnation: str
    address: str

    def encode(self) -> bytes:
        """The key's value."""
        return json.dumps(
            {"node": self.node, "bootId": self.boot_id, "incarnation": self.incarnation, "address": self.address}
        ).encode()


@dataclass(frozen=True)
class Past:
    """`life` is the one under which what runs here runs: None where nothing of an earlier one runs, 0 where it is not known.
    `others` are the addresses of the soup's other nodes, None where the engine has not said."""

    life: int | None = None
    others: Mapping[str, str] | None = None


def past_of(run_dir: Path, boot: str, runs: bool) -> Past:
    """What an earlier supervisor of this boot left; `runs` says whether any microVM does."""
    record = read(run_dir, boot)
    others = record.get("others")
    known = {str(name): str(address) for name, address in others.items()} if isinstance(others, dict) else None
    life = record.get("settled")
    return Past((life if isinstance(life, int) else 0) if runs else None, known)


def incarnation_of(run_dir: Path, boot: str) -> str:
    """The one that an earlier supervisor of this run folder and boot had, else a new one. The caller holds the lock."""
    return str(read(run_dir, boot).get("incarnation") or secrets.token_hex(8))


def read(run_dir: Path, boot: str) -> dict[str, Any]:
    """The record, empty where there is none of this boot."""
    try:
        record = json.loads((run_dir / LEASE_FILE).read_text())
        return record if isinstance(record, dict) and record.get("bootId") == boot else {}
    except (OSError, ValueError):
        return {}


def describe(value: bytes) -> str:
    """A key's holder in words, whatever is in it."""
    try:
        record = json.loads(value)
        return f"a node at {record['address']} (incarnation {record['incarnation']}, boot {str(record['bootId'])[:8]})"
    except (ValueError, KeyError, TypeError):
        return "somebody whose entry cannot be read"


def address_in(value: bytes) -> str:
    """The address in a key's value; empty when it cannot be read."""
    try:
        return str(json.loads(value)["address"])
    except (ValueError, KeyError, TypeError):
        return ""


def life_in(value: bytes) -> int:
    """The life that a death names. One that cannot be read names every life: it is a death."""
    try:
        return int(json.loads(value)["life"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
