"""The supervisor of one node: `python -m primordia.supervisor NODE.JSON`.

One select in one thread, where nothing can block on another machine; other threads keep the node's lease, guard what it runs
(`fence.py`) and answer other nodes (`failsafe.py`). It starts the daemon and, where the node has them, the engine server and
the uplink, as siblings: a daemon's crash costs no engine member. It restarts what ends. On SIGTERM it ends its children and
itself and leaves the microVMs to the next one; `down` over the control socket ends them too, first gently through the
daemon, then by the cgroup. One that asks to be held ends its engine server only when the asker lets go: of many nodes every
daemon can then still write down that it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primordia.kit import cgroup, netns
from primordia.kit.errors import PrimordiaError
from primordia.kit.identity import write_pid_file
from primordia.supervisor import control, engine_data, process
from primordia.supervisor.children import ChildSpec, after_exit, ending
from primordia.supervisor.guards import guards_of
from primordia.supervisor.plan import child_specs, node_cgroup, vm_cgroup

HOUSEKEEPING_S = 30.0
GRACE_FOR_MICROVMS_S = 40.0
HELD_AT_MOST_S = 60.0
LOCK_FILE, PID_FILE, SOCKET_FILE = "supervisor.lock", "supervisor.pid", "supervisor.sock"

log = logging.getLogger("supervisor")


@dataclass
class Child:
    """A child's spec and what is going on with it. `pid` 0 means it is not running and starts at `start_at`."""

    spec: ChildSpec
    pid: int = 0
    started_at: float = 0.0
    start_at: float = 0.0
    short_lives: int = 0
    restarts: int = 0
    last_end: str = ""


def now() -> float:
    """Seconds on the clock that counts suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Supervisor:
    """Owns the children of one node."""

    def __init__(self, config: dict[str, Any], config_path: Path, host_netns: int | None) -> None:
        self._config = config
        self._config_path = config_path
        self._run_dir = Path(config["run_dir"])
        self._host_netns = host_netns
        self._children = {spec.name: Child(spec) for spec in child_specs(config, config_path, host_netns)}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._guards = guards_of(config, self._wake)
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._down_reply: socket.socket | None = None
        self._held = False
        self._housekeeping_at = now() + HOUSEKEEPING_S

    def run(self) -> None:
        """Run until told to stop; returns when every child has ended."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, lambda *_: self._stop())
        server = control.listen(self._run_dir / SOCKET_FILE)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(server, selectors.EVENT_READ)
        self._guards.start()
        while not self._stopping:
            self._start_due()
            for key, _ in self._selector.select(self._next_wait()):
                if key.fileobj is server:
                    self._serve(server)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
            self._reap()
            self._keep_house()
        self._end_children()
        server.close()
        (self._run_dir / SOCKET_FILE).unlink(missing_ok=True)

    def _stop(self) -> None:
        self._stopping = True

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def _may_start(self, child: Child) -> bool:
        return not (child.spec.name == "daemon" and self._guards.daemon.held)

    def _next_wait(self) -> float:
        due = [child.start_at for child in self._children.values() if not child.pid and self._may_start(child)]
        return max(0.0, min([self._housekeeping_at, *due]) - now())

    def _start_due(self) -> None:
        for child in self._children.values():
            if child.pid or child.start_at > now() or not self._may_start(child):
                continue
            child.started_at = now()
            if child.spec.name == "daemon":
                self._guards.daemon.begins(self._run_dir)
            if child.spec.data_dir and engine_data.is_lost(Path(child.spec.data_dir)):
                self._ended(child, "its data is lost, and it must not begin anew as the same member")
                continue
            try:
                child.pid = process.start(child.spec, self._host_netns)
                log.info("started %s as pid %d", child.spec.name, child.pid)
                if child.spec.name == "daemon":
                    self._guards.daemon.pid = child.pid
                write_pid_file(self._run_dir / f"{child.spec.name}.pid", child.pid)
            except OSError as error:
                self._ended(child, f"cannot be started: {error}")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children.values():
                if child.pid == pid:
                    self._ended(child, ending(status))

    def _ended(self, child: Child, why: str) -> None:
        decision = after_exit(now(), child.started_at, child.short_lives)
        child.pid, child.start_at, child.short_lives = 0, decision.at, decision.short_lives
        if child.spec.name == "daemon":
            self._guards.daemon.pid = 0
        child.restarts += 1
        child.last_end = why
        log.warning("%s ended (%s); starting it again in %.2f s", child.spec.name, why, max(0.0, decision.at - now()))

    def _keep_house(self) -> None:
        if now() < self._housekeeping_at:
            return
        self._housekeeping_at = now() + HOUSEKEEPING_S
        self._remember_data()
        for path in {Path(child.spec.log) for child in self._children.values()}:
            process.bound_log(path)
        process.bound_log(Path(self._config["state_dir"]) / "log" / "supervisor.log")

    def _remember_data(self) -> None:
        for child in self._children.values():
            if child.spec.data_dir:
                engine_data.remember(Path(child.spec.data_dir))

    def _serve(self, server: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = server.accept()
            request = control.receive(connection)
            command = request.get("command")
            if command == "status":
                control.answer(connection, self._status())
            elif command == "restart-daemon":
                self._guards.daemon.announced = True
                process.send(self._children["daemon"].pid, signal.SIGTERM)
                control.answer(connection, {"ok": True})
            elif command == "pardon":
                self._guards.lease.pardon()
                control.answer(connection, {"ok": True})
            elif command == "reload":
                self._reload()
                control.answer(connection, {"ok": True})
            elif command == "down":
                self._down_reply, self._held = connection, request.get("hold") is True
                self._stop()
            else:
                control.answer(
                    connection, {"ok": False, "message": "commands are status, restart-daemon, pardon, reload and down"}
                )

    def _reload(self) -> None:
        """Take a changed node.json: end what it has no more, begin what is new. The daemon, who asks, goes on as it is."""
        try:
            config = json.loads(self._config_path.read_text())
            wanted = {spec.name: spec for spec in child_specs(config, self._config_path, self._host_netns)}
        except (OSError, ValueError, KeyError) as error:
            log.error("%s cannot be read, and what was known holds: %s", self._config_path, error)
            return
        self._config = config
        self._guards.lease.use(config["engine"]["endpoints"])
        for name in [name for name in self._children if name not in wanted]:
            child = self._children[name]
            self._end(child, signal.SIGTERM, child.spec.stop_timeout_s)
            del self._children[name]
        for name, spec in wanted.items():
            if name in self._children:
                self._children[name].spec = spec
                self._children[name].start_at = 0.0  # what could not be started may be able to now
            else:
                self._children[name] = Child(spec)

    def _status(self) -> dict[str, Any]:
        return {
            "ok": True,
            "pid": os.getpid(),
            **self._guards.status(),
            "children": {
                name: {
                    "pid": child.pid,
                    "restarts": child.restarts,
                    "lastEnd": child.last_end,
                    "upSeconds": round(now() - child.started_at, 3) if child.pid else 0,
                }
                for name, child in self._children.items()
            },
        }

    def _end_children(self) -> None:
        """The daemon first, then the lease, then the engine, so that both can still write down that they end.

        Microvms that go on without us are the next supervisor's: their lease is left to it, and runs out if none comes.
        """
        end_microvms = self._down_reply is not None
        self._remember_data()
        self._guards.fence.let_daemon_end()
        daemon = self._children["daemon"]
        if end_microvms:
            self._end(daemon, signal.SIGUSR1, GRACE_FOR_MICROVMS_S)
            cgroup.kill_tree(vm_cgroup(self._config))
        else:
            self._end(daemon, signal.SIGTERM, daemon.spec.stop_timeout_s)
        self._guards.stop(nothing_runs=end_microvms)
        if self._down_reply is not None and self._held:
            control.held(self._down_reply, HELD_AT_MOST_S)
        for name, child in self._children.items():
            if name != "daemon" and (end_microvms or not child.spec.outlives):
                self._end(child, signal.SIGTERM, child.spec.stop_timeout_s)
        if self._down_reply is not None:
            control.answer(self._down_reply, {"ok": True})

    def _end(self, child: Child, number: int, timeout_s: float) -> None:
        deadline = now() + timeout_s
        process.send(child.pid, number) if child.pid else None
        while child.pid:
            self._reap()
            if child.pid and now() > deadline:
                log.warning("%s did not end within %.0f s and is killed", child.spec.name, timeout_s)
                process.send(child.pid, signal.SIGKILL)
                deadline = now() + timeout_s
            time.sleep(0.02)
        (self._run_dir / f"{child.spec.name}.pid").unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """Entry: takes the lock of its node, then its place (cgroup, namespace), then runs."""
    if len(arguments) != 1:
        print("usage: python -m primordia.supervisor NODE.JSON", file=sys.stderr)
        return 2
    config_path = Path(arguments[0])
    config = json.loads(config_path.read_text())
    run_dir = Path(config["run_dir"])
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    with (run_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: node {config['name']} already has a supervisor.", file=sys.stderr)
            return 3
        write_pid_file(run_dir / PID_FILE, os.getpid())
        cgroup.enter_self(f"{node_cgroup(config)}/system")
        host_netns: int | None = None
        if config["netns"]:
            host_netns = netns.open_current()
            node_netns = netns.open_named(config["netns"])
            netns.enter(node_netns)
            os.close(node_netns)
        process.become_subreaper()
        try:
            supervisor = Supervisor(config, config_path, host_netns)
        except PrimordiaError as error:
            print(f"error: node {config['name']}: {error}", file=sys.stderr)
            return 2
        supervisor.run()
        (run_dir / PID_FILE).unlink(missing_ok=True)
    return 0
