"""The node's lease, kept by a thread of the supervisor: its loop must never wait for another machine.

The thread performs what `domain/lease.py` decides; what others have to know lies in `lease_file.py`'s record. The daemon's
crash does not touch the lease. A supervisor's own crash is mended by the next one: the incarnation, a random word made once
for this run folder and boot, lies in the record, and a live key of that incarnation is taken over with its create revision.
Nobody else can have it: the supervisor holds the folder's lock.

Nothing is done under a new life before it is settled what becomes of all that ran under the life before: no death names
it, and the soup knew it until the new one began, or the fence has ended it.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from primordia.domain.contact import Contact, has_engine, heard
from primordia.domain.fence import LeaseView, ended_by
from primordia.domain.lease import (
    Action,
    Failed,
    Granted,
    LeaseState,
    Look,
    Mine,
    Outcome,
    Taken,
    Wait,
    after,
    deadline,
    decide,
    holds,
)
from primordia.domain.timings import Timings
from primordia.kit.errors import PrimordiaError
from primordia.kit.files import write_atomic
from primordia.supervisor.engine_client import EngineClient
from primordia.supervisor.lease_file import LEASE_FILE, Holder, Past, past_of
from primordia.supervisor.node_key import NodeKey
from primordia.supervisor.touch import SharedContact

_JOIN_S = 3.0
_BURY_AGAIN_S = 0.2
_AFTER_BUG_S = 1.0

log = logging.getLogger("lease")


class LeaseKeeper:
    """Keeps one node's lease. `start` and `stop` belong to the supervisor's thread; any may call the others.

    `runs` says whether microVMs of the node run. The fence ends what must end: it reads `view`, and calls `nothing_runs`.
    """

    def __init__(
        self,
        holder: Holder,
        client: EngineClient,
        run_dir: Path,
        timings: Timings = Timings(),  # noqa: B008 (frozen)
        *,
        runs: bool = False,
    ) -> None:
        self._holder = holder
        self._key = NodeKey(holder, client)
        self._file = run_dir / LEASE_FILE
        self._timings = timings
        self._state = LeaseState()
        self._past = past_of(run_dir, holder.boot_id, runs)
        self._ended = ""
        self._burial = ""
        self._pardoned = False
        self._heard = self._look = False
        self._shared = SharedContact(run_dir)
        self._contact: Contact | None = None
        self._told: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping, self._give_back = False, True
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Begin to hold the key."""
        self._thread.start()

    def stop(self, *, give_back: bool = True) -> None:
        """End; a few seconds at most. With `give_back` the key goes at once, if the engine answers: only where nothing runs."""
        self._stopping, self._give_back = True, give_back
        self._wake.set()
        self._thread.join(_JOIN_S)

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these servers of the engine from now on."""
        self._key.client.use(endpoints)

    def view(self) -> LeaseView:
        """What the fence has to know."""
        with self._lock:
            state, past = self._state, self._past
            if not self._heard and not self._burial:
                return LeaseView(life=past.life or 0, trouble=state.trouble)
            if not self._settled():
                return LeaseView(trouble=state.trouble, ended=self._ended)
            return LeaseView(state.create_revision, state.acked_s, state.looked_s, state.trouble)

    @property
    def has_engine(self) -> bool:
        """What this node says to others that have none. One that has not tried yet does not say that there is none."""
        return has_engine(self._contact, now()) or not self._state.trouble

    @property
    def others(self) -> Mapping[str, str] | None:
        """The addresses of the soup's other nodes, by name, as the engine last said; None while they are not known.

        A node is alone only with an engine of its own: elsewhere somebody has just not been seen yet.
        """
        known = self._past.others
        return known if known or self._key.client.only_at(self._holder.address) else None

    def look_again(self) -> None:
        """Read the key before anything else."""
        self._look = True
        self._wake.set()

    def nothing_runs(self, why: str = "") -> None:
        """All that ran here has ended, and the daemon too. With `why`, this life is declared over before there is another.

        When this returns, a daemon that starts finds no life to start anything under.
        """
        with self._lock:
            self._past = replace(self._past, life=None)
            self._burial, self._ended = why, ""
        self._tell()
        self._wake.set()

    def pardon(self) -> None:
        """The engine begins anew and knows no life: what runs here may go on under the next one, whatever it says."""
        with self._lock:
            self._pardoned = True

    def status(self) -> dict[str, Any]:
        """How it stands, for people. Ages are seconds; `doubtfulSeconds` is 0 while the lease is surely held."""
        state, at = self._state, now()
        end = deadline(state, self._timings)
        return {
            "key": self._key.name,
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
        while not self._stopping:
            self._wake.clear()
            try:
                self._turn()
            except Exception:  # a lease that nobody keeps would freeze the node for good
                log.exception("keeping the lease failed, and goes on")
                self._wake.wait(_AFTER_BUG_S)
        self._resign()

    def _turn(self) -> None:
        if self._burial:
            self._bury()
            return
        if self._state.create_revision and not self._settled() and not self._ended:
            self._settle()
        if self._look and self._state.create_revision:
            self._look, self._state = False, replace(self._state, looked_s=None, next_s=0.0)
        action = decide(self._state, self._timings, now())
        if isinstance(action, Wait):
            self._wake.wait(action.until - now())
        else:
            self._step(action)

    def _step(self, action: Action) -> None:
        sent = now()
        outcome = self._key.perform(action)
        if isinstance(action, Look) and isinstance(outcome, Mine):
            self._learn_others()
        with self._lock:
            before = self._state
            self._state = after(before, self._timings, outcome, sent, now())
            self._heard = self._heard or not isinstance(outcome, Failed | Granted)
            if not isinstance(outcome, Failed):
                self._contact = heard(self._contact, self._timings, sent, now())
                self._shared.write(self._contact)
        self._log(before, outcome)
        self._tell()

    def _settled(self) -> bool:
        """Whether all that runs here runs under the life that the key stands for."""
        return bool(self._state.create_revision) and self._state.create_revision == self._past.life and not self._burial

    def _settle(self) -> None:
        """Find out what becomes of what ran under an earlier life."""
        life = self._state.create_revision
        try:
            death, others = self._key.death(), self._key.others()
        except PrimordiaError as error:
            log.warning("it is not known yet whether life %d may go on with what runs here: %s", life, error)
            return
        with self._lock:
            self._ended = "" if self._pardoned else ended_by(self._past.life, life, self._key.previous, death)
            self._pardoned = False
            self._past = Past(self._past.life if self._ended else life, others)
        if self._ended:
            log.error("what runs here is ended: %s", self._ended)
        self._tell()

    def _learn_others(self) -> None:
        """Nodes come and go; who cannot be read is as before."""
        try:
            others = self._key.others()
        except PrimordiaError as error:
            log.debug("the soup's nodes are not read: %s", error)
            return
        with self._lock:
            self._past = replace(self._past, others=others)

    def _bury(self) -> None:
        """Declare the life over that the fence has ended, and give the lease back; until it is done, or known to be void."""
        life, lease = self._state.create_revision, self._state.lease
        next_s = 0.0
        try:
            if life and self._key.bury(life, self._burial):
                log.warning("life %d is declared over: %s", life, self._burial)
                next_s = now() + self._timings.first_word_s
            if lease:
                self._key.client.revoke(lease)
        except PrimordiaError as error:
            self._state = replace(self._state, trouble=str(error))
            self._wake.wait(_BURY_AGAIN_S)
            return
        with self._lock:
            self._state, self._burial = LeaseState(next_s=next_s), ""

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
            log.info("holding %s, lease %x, create revision %d", self._key.name, state.lease, state.create_revision)
        elif before.create_revision and not state.create_revision:
            log.warning("%s is lost: %s", self._key.name, type(outcome).__name__)
        elif state.trouble and not before.trouble:
            log.warning("the lease is not renewed: %s", state.trouble)
        elif before.trouble and not state.trouble:
            log.info("the engine answers again")

    def _tell(self) -> None:
        """Bring the record up to date, if what it says has changed."""
        with self._lock:
            settled = self._settled()
            record = {
                "node": self._holder.node,
                "bootId": self._holder.boot_id,
                "incarnation": self._holder.incarnation,
                "key": self._key.name,
                "lease": self._state.lease if settled else 0,
                "createRevision": self._state.create_revision if settled else 0,
                "settled": self._past.life,
                "others": self._past.others,
            }
            if record == self._told:
                return
            try:
                write_atomic(self._file, json.dumps(record).encode(), durable=False)
                self._told = record
            except OSError as error:
                log.error("%s cannot be written: %s", self._file, error)

    def _resign(self) -> None:
        lease = self._state.lease
        try:
            if self._give_back:
                with self._lock:
                    self._state = LeaseState()
                self._tell()
                if lease:
                    self._key.client.revoke(lease)
                    log.info("%s is given back", self._key.name)
        except PrimordiaError as error:
            log.warning("%s ends by itself within %d s: %s", self._key.name, self._timings.ttl_s, error)
        finally:
            self._key.client.close()


def now() -> float:
    """Seconds on the clock that counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
