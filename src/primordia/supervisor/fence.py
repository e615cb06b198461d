"""The fence of one node, carried out: it freezes, thaws and kills what the node runs, as `domain/fence.py` decides.

A thread of its own, which waits for no other machine and for nobody's lock but the lease keeper's short one: whatever the
rest of the supervisor does, it looks every second, and at the moment when everything must stand. What it knows of the
engine and of the other nodes it hears from their threads. Of the daemon it needs one sign: `run_dir/daemon.beat`, which the
daemon touches from its event loop.

A kill keeps its order: first the daemon, which would start again what ends; then the microVMs, until their cgroup reads
empty; then the record that the daemon reads says that it has no life; then the soup is told; then the daemon may start.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from primordia.domain import fence
from primordia.domain.fence import Action, AskPeers, DaemonView, FenceState, Freeze, Kill, Rest, Thaw, View
from primordia.domain.timings import Timings
from primordia.kit import cgroup, freezer
from primordia.kit.errors import PrimordiaError
from primordia.kit.files import write_atomic
from primordia.kit.identity import start_ticks
from primordia.supervisor.lease import LeaseKeeper, now
from primordia.supervisor.standing import Standing
from primordia.supervisor.watchdog import Watchdog

BEAT_FILE, FENCE_FILE = "daemon.beat", "fence.json"
_JOIN_S = 3.0
_LEAST_WAIT_S = 0.005
_DAEMON_DIES_WITHIN_S = 10.0
_KILL_AGAIN_S = 1.0

log = logging.getLogger("fence")


class Peers(Protocol):
    """Who asks the other nodes."""

    @property
    def round_s(self) -> float | None:
        """When the last round began in which every one of them said that it has no engine."""

    def ask(self) -> None:
        """Begin a round, if none is under way; returns at once."""


class DaemonChild:
    """What the fence does to the daemon, which is the main thread's child. While it `held`, nobody starts it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.pid = 0
        self.announced = False
        self.held = False
        self._wake = wake

    def begins(self, run_dir: Path) -> None:
        """It is about to be started: what the one before showed is no sign of this one's."""
        self.announced = False
        (run_dir / BEAT_FILE).unlink(missing_ok=True)

    def end(self) -> bool:
        """Kill it and keep it from being started; whether it is dead."""
        self.held = True
        pid = self.pid
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return True
        deadline = now() + _DAEMON_DIES_WITHIN_S
        while pid and start_ticks(pid) and now() < deadline:
            time.sleep(0.01)
        return not pid or not start_ticks(pid)

    def release(self) -> None:
        """Let it be started again."""
        self.held = False
        self._wake()


class Fence:
    """Guards the cgroup `group`. `start` and `stop` belong to the supervisor's main thread; any may call `status`."""

    def __init__(
        self,
        run_dir: Path,
        group: str,
        keeper: LeaseKeeper,
        peers: Peers,
        daemon: DaemonChild,
        watchdog: Watchdog,
        timings: Timings,
    ) -> None:
        self._run_dir = run_dir
        self._group = group
        self._keeper = keeper
        self._peers = peers
        self._daemon = daemon
        self._watchdog = watchdog
        self._timings = timings
        self._standing = Standing(run_dir)
        if self._standing.ended:
            self._standing.write(None)
        self._state = FenceState()
        if cgroup.pids(group):
            # Where nobody has said from when on it should stand, that is now.
            known = self._standing.read()
            self._state = FenceState(until=now() if known is None else known)
        self._all_stands = True
        self._last: tuple[str, str] = ("", "")
        self._looks_at_daemon = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)

    def start(self) -> None:
        """Begin to guard."""
        self._thread.start()

    def stop(self) -> None:
        """End guarding. What was told to whoever watches over the fence stays as it is."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    def let_daemon_end(self) -> None:
        """From here on the daemon's silence is nothing to act on: it is told to end."""
        self._looks_at_daemon = False

    def everything_has_ended(self) -> None:
        """Nothing runs, and nothing will: nobody needs to watch any more. Call it after `stop`."""
        self._standing.end()

    def status(self) -> dict[str, Any]:
        """How it stands, for people. Ages are seconds."""
        state, at = self._state, now()
        return {
            "frozen": state.frozen_s is not None,
            "why": state.why,
            "frozenSeconds": 0 if state.frozen_s is None else round(at - state.frozen_s, 3),
            "leftSeconds": None if state.until is None else round(state.until - at, 3),
            "lastAction": self._last[0],
            "lastReason": self._last[1],
            "daemonSilentSeconds": round(state.silence_s, 1),
        }

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._stopping.is_set():
            try:
                pause_s = self._turn()
            except Exception:
                log.exception("the fence failed, and tries again")
                pause_s = _KILL_AGAIN_S
            self._stopping.wait(max(_LEAST_WAIT_S, pause_s))
        self._watchdog.disarm()

    def _turn(self) -> float:
        """Look, decide, act; how long may be waited before the next look."""
        view = self._view()
        self._state = fence.observe(self._state, self._timings, view)
        self._feed()
        self._standing.write(fence.stands_from(self._state, view))
        action = fence.decide(self._state, self._timings, view)
        if self._state.frozen_s is None and not isinstance(action, Freeze) and freezer.stands(self._group):
            log.warning("%s stands already: the warden, or an earlier supervisor, froze it", self._group)
            action = Freeze("it was frozen while this supervisor could not look")
        if isinstance(action, Rest):
            return action.until - now()
        began = now()
        if self._perform(action):
            self._state = fence.after(self._state, action, began, now())
            if not isinstance(action, AskPeers):
                self._tell(action)
            return 0.0
        return _KILL_AGAIN_S

    def _feed(self) -> None:
        """Not while something runs that should stand: then a reset is what everybody else counts on."""
        self._all_stands = self._all_stands or self._state.frozen_s is None or freezer.stands(self._group)
        if self._all_stands:
            self._watchdog.feed()

    def _view(self) -> View:
        others = self._keeper.others
        daemon = DaemonView()
        if self._looks_at_daemon and not self._daemon.held:
            daemon = DaemonView(self._daemon.pid, self._beat(), self._daemon.announced)
        return View(
            now=now(),
            lease=self._keeper.view(),
            others=None if others is None else frozenset(others),
            round_s=self._peers.round_s,
            daemon=daemon,
        )

    def _beat(self) -> float | None:
        try:
            return (self._run_dir / BEAT_FILE).stat().st_mtime
        except OSError:
            return None

    def _perform(self, action: Action) -> bool:
        try:
            if isinstance(action, AskPeers):
                self._peers.ask()
            elif isinstance(action, Freeze):
                self._all_stands = freezer.freeze(self._group)
                if not self._all_stands:
                    log.error("not everything in %s stands yet; the kernel, or else the watchdog, will see to it", self._group)
                self._keeper.look_again()
            elif isinstance(action, Thaw):
                freezer.thaw(self._group)
            elif isinstance(action, Kill):
                return self._kill(action)
        except PrimordiaError as error:
            log.error("%s", error)
            return False
        return True

    def _kill(self, kill: Kill) -> bool:
        log.error("killing what runs here: %s", kill.why)
        if not self._daemon.end():
            log.error("the daemon does not die; it is tried again")
            return False
        cgroup.kill_tree(self._group)
        self._keeper.nothing_runs(kill.why if kill.prove else "")
        self._daemon.release()
        return True

    def _tell(self, action: Action) -> None:
        """Log it, and leave word for the daemon, which tells the soup once there is one to tell."""
        name, why = type(action).__name__, getattr(action, "why", "")
        self._last = name, why
        log.warning("%s: %s", {"Freeze": "frozen", "Thaw": "thawed", "Kill": "killed"}[name], why)
        word = {"frozen": self._state.frozen_s is not None, "last": name, "reason": why, "at": now()}
        try:
            write_atomic(self._run_dir / FENCE_FILE, json.dumps(word).encode(), durable=False)
        except OSError as error:
            log.error("%s cannot be written: %s", self._run_dir / FENCE_FILE, error)
