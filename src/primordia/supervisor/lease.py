"""The node's lease, kept by a thread of the supervisor: its loop must never wait for another machine.

The thread performs what `domain/lease.py` decides. What the daemon has to know lies in `run_dir/lease.json`, written when
the key comes or goes and not at each renewal, so that whoever follows the file sleeps meanwhile. The daemon's crash does
not touch the lease. A supervisor's own crash is mended by the next one: the incarnation, a random word made once for
this run folder and boot, lies in the same file, and a live key of that incarnation is taken over with its create revision.
Nobody else can have it: the supervisor holds the folder's lock.
"""

from __future__ import annotations

import json
import logging
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primordia.domain.lease import (
    Action,
    Claim,
    Failed,
    Free,
    Gone,
    Grant,
    Granted,
    LeaseState,
    Look,
    Mine,
    Outcome,
    Renew,
    Renewed,
    Taken,
    Wait,
    after,
    deadline,
    decide,
    holds,
    lease_key,
    life_key,
)
from primordia.domain.timings import Timings
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.files import write_atomic
from primordia.kit.identity import boot_id
from primordia.supervisor.engine_client import EngineClient, Identity, StoredKey

LEASE_FILE = "lease.json"
_JOIN_S = 3.0

log = logging.getLogger("lease")


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


class LeaseKeeper:
    """Keeps one node's lease. `start` and `stop` belong to the supervisor's thread, as does `status`."""

    def __init__(self, holder: Holder, client: EngineClient, run_dir: Path, timings: Timings = Timings()) -> None:  # noqa: B008 (frozen)
        self._holder = holder
        self._client = client
        self._file = run_dir / LEASE_FILE
        self._timings = timings
        self._key = lease_key(holder.node)
        self._value = holder.encode()
        self._state = LeaseState()
        self._told: LeaseState | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to hold the key."""
        self._thread.start()

    def stop(self) -> None:
        """End the lease in order: the key goes at once, if the engine answers. Takes a few seconds at most."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these servers of the engine from now on."""
        self._client.use(endpoints)

    def status(self) -> dict[str, Any]:
        """How it stands, for people. Ages are seconds; `doubtfulSeconds` is 0 while the lease is surely held."""
        state, at = self._state, now()
        end = deadline(state, self._timings)
        return {
            "key": self._key,
            "held": holds(state, self._timings, at),
            "lease": f"{state.lease:x}",
            "createRevision": state.create_revision,
            "incarnation": self._holder.incarnation,
            "ackAgeSeconds": None if state.acked_s is None else round(at - state.acked_s, 3),
            "doubtfulSeconds": 0 if end is None else max(0, round(at - end, 3)),
            "takenBy": state.taken_by,
            "trouble": state.trouble,
        }

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        # Signals are the main thread's: one delivered here would not wake its select.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._tell()
        while not self._stopping.is_set():
            action = decide(self._state, self._timings, now())
            if isinstance(action, Wait):
                self._stopping.wait(action.until - now())
                continue
            sent = now()
            outcome = self._perform(action)
            before = self._state
            self._state = after(before, self._timings, outcome, sent, now())
            self._log(before, outcome)
            self._tell()
        self._resign()

    def _perform(self, action: Action) -> Outcome:
        try:
            return self._ask(action)
        except NotFoundError:
            return Gone()
        except PrimordiaError as error:
            return Failed(str(error))
        except Exception as error:
            log.exception("asking the engine failed")
            return Failed(f"It is a bug: {error!r}.")

    def _ask(self, action: Action) -> Outcome:
        if isinstance(action, Renew):
            return Renewed() if self._client.keep_alive(action.lease) else Gone()
        if isinstance(action, Grant):
            return Granted(self._client.grant(action.ttl_s))
        if isinstance(action, Claim):
            answer = self._client.claim(self._key, life_key(self._holder.node), self._value, action.lease)
            return self._judge(answer) if isinstance(answer, StoredKey) else Mine(action.lease, answer.create_revision)
        assert isinstance(action, Look)
        found = self._client.get(self._key)
        return Free() if found is None else self._judge(found)

    def _judge(self, found: StoredKey) -> Outcome:
        if found.value == self._value:
            return Mine(found.lease, found.create_revision)
        return Taken(describe(found.value))

    def _log(self, before: LeaseState, outcome: Outcome) -> None:
        state = self._state
        if isinstance(outcome, Taken) and before.taken_by != state.taken_by:
            log.error(
                "Node name %s is taken by %s. Nothing is started here. Give this node another name, or stop that one; "
                "this one tries again every %g s.",
                self._holder.node,
                state.taken_by,
                self._timings.refused_every_s,
            )
        elif state.create_revision and not before.create_revision:
            log.info("holding %s, lease %x, create revision %d", self._key, state.lease, state.create_revision)
        elif before.create_revision and not state.create_revision:
            log.warning("%s is lost: %s", self._key, type(outcome).__name__)
        elif state.trouble and not before.trouble:
            log.warning("the lease is not renewed: %s", state.trouble)
        elif before.trouble and not state.trouble:
            log.info("the engine answers again")

    def _tell(self) -> None:
        """Bring the file up to date, if what it says has changed."""
        state = self._state
        if self._told is not None and self._told.create_revision == state.create_revision and self._told.lease == state.lease:
            return
        record = {
            "node": self._holder.node,
            "bootId": self._holder.boot_id,
            "incarnation": self._holder.incarnation,
            "key": self._key,
            "lease": state.lease,
            "createRevision": state.create_revision,
        }
        try:
            write_atomic(self._file, json.dumps(record).encode(), durable=False)
            self._told = state
        except OSError as error:
            log.error("%s cannot be written: %s", self._file, error)

    def _resign(self) -> None:
        lease, self._state = self._state.lease, LeaseState()
        self._tell()
        try:
            if lease:
                self._client.revoke(lease)
                log.info("%s is given back", self._key)
        except PrimordiaError as error:
            log.warning("%s ends by itself within %d s: %s", self._key, self._timings.ttl_s, error)
        finally:
            self._client.close()


def now() -> float:
    """Seconds on the clock that counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def keeper_of(config: dict[str, Any]) -> LeaseKeeper:
    """The keeper of the node that node.json describes."""
    run_dir, pki = Path(config["run_dir"]), Path(config["state_dir"]) / "pki"
    timings = Timings.of(config.get("timings", {}))
    identity = Identity(str(pki / "engine-ca.crt"), str(pki / "engine.crt"), str(pki / "engine.key"))
    client = EngineClient(config["engine"]["endpoints"], identity, timings.request_timeout_s)
    boot = boot_id()
    holder = Holder(config["name"], boot, incarnation_of(run_dir, boot), config["address"])
    return LeaseKeeper(holder, client, run_dir, timings)


def incarnation_of(run_dir: Path, boot: str) -> str:
    """The one that an earlier supervisor of this run folder and boot had, else a new one. The caller holds the lock."""
    try:
        record = json.loads((run_dir / LEASE_FILE).read_text())
        if record["bootId"] == boot and record["incarnation"]:
            return str(record["incarnation"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return secrets.token_hex(8)


def describe(value: bytes) -> str:
    """A key's holder in words, whatever is in it."""
    try:
        record = json.loads(value)
        return f"a node at {record['address']} (incarnation {record['incarnation']}, boot {str(record['bootId'])[:8]})"
    except (ValueError, KeyError, TypeError):
        return "somebody whose entry cannot be read"
