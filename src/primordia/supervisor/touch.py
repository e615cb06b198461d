"""The node's contact with the engine (`domain/contact.py`) in `run_dir/contact`, where the daemon that leads reads it.

A new run of contact begins with its first number, an extension is the second; whoever reads takes the second first. So what
is read is never a run that was longer than the true one.
"""

from __future__ import annotations

import math
from pathlib import Path

from primordia.domain.contact import Contact
from primordia.kit.moments import Moments

CONTACT_FILE = "contact"
_SINCE, _UNTIL = 0, 1


class SharedContact:
    """One run folder's. Raises OSError at construction."""

    def __init__(self, run_dir: Path) -> None:
        self._numbers = Moments(run_dir / CONTACT_FILE, 2)

    def read(self) -> Contact | None:
        """What was last said; None before that."""
        until_s = self._numbers[_UNTIL]
        since_s = self._numbers[_SINCE]
        return None if math.isnan(until_s) or math.isnan(since_s) else Contact(since_s, until_s)

    def write(self, contact: Contact) -> None:
        """Say it."""
        self._numbers[_SINCE] = contact.since_s
        self._numbers[_UNTIL] = contact.until_s
