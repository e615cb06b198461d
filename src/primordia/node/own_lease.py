"""What the node's daemon knows of the node's own lease: the file that the supervisor writes when the key comes or goes."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.deadline import wait_event
from primordia.kit.follow import followed
from primordia.registry.ownership import NodeLife

LEASE_FILE = "lease.json"
_LOOK_AGAIN_S = 30.0

log = logging.getLogger(__name__)


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    key: str
    create_revision: int
    boot_id: str
    incarnation: str


class OwnLease:
    """The lease of the node whose run folder this is, in this boot."""

    def __init__(self, run_dir: Path, boot_id: str, clock: Clock) -> None:
        self._folder = run_dir
        self._boot_id = boot_id
        self._clock = clock

    def life(self) -> NodeLife | None:
        """The node's life now; None while it holds no key. Whether the lease still stands only the engine can say."""
        record = self._read()
        if record is None or not record.create_revision:
            return None
        return NodeLife(record.key, record.create_revision)

    @property
    def incarnation(self) -> str:
        """The random word that tells this run folder and boot from any other; empty while there is none."""
        record = self._read()
        return "" if record is None else record.incarnation

    async def held(self) -> None:
        """Wait until the node holds its key."""
        with followed(self._folder) as changed:
            while self.life() is None:
                changed.clear()
                # A look now and then costs nothing, and forgives whatever a notification may miss.
                await wait_event(self._clock, changed, _LOOK_AGAIN_S)

    def _read(self) -> _Record | None:
        try:
            record = msgspec.json.decode((self._folder / LEASE_FILE).read_bytes(), type=_Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read: %s", self._folder / LEASE_FILE, error)
            return None
        return record if record.boot_id == self._boot_id else None
