"""The fence's deeds on real processes in a real cgroup, and those of the warden that watches over it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from primordia.domain.fence import LeaseView
from primordia.domain.timings import Timings
from primordia.kit import cgroup, freezer, ids
from primordia.supervisor.fence import BEAT_FILE, FENCE_FILE, DaemonChild, Fence
from primordia.supervisor.lease import now
from primordia.supervisor.standing import Standing
from primordia.supervisor.watchdog import Watchdog

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a cgroup, which needs root")

TIMINGS = Timings.of({"beat_every_s": 0.1, "daemon_silence_s": 2.0, "restart_silence_s": 60.0})
PATIENCE_S = 30.0


@dataclass
class Node:
    """A keeper and peers that say what the test says, and processes that stand for the daemon and a microVM."""

    run_dir: Path
    group: str
    told: list[str] = field(default_factory=list)
    others: Mapping[str, str] | None = field(default_factory=lambda: {"n2": "127.0.0.2"})
    round_s: float | None = None
    lease: LeaseView = field(default_factory=lambda: LeaseView(7, now(), now()))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: int = 0

    def view(self) -> LeaseView:
        return self.lease

    def look_again(self) -> None:
        self.told.append("look again")

    def ask(self) -> None:
        self.asked += 1

    def nothing_runs(self, why: str = "") -> None:
        dead = all(process.poll() is not None for process in self.processes)
        self.told.append(f"nothing runs: {why}" if dead and not cgroup.pids(self.group) else "something runs")
        self.lease = LeaseView()

    def process(self, *, microvm: bool) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(["/bin/sh", "-c", "while :; do :; done" if microvm else "exec sleep 600"])
        self.processes.append(made)
        if microvm:
            for file in cgroup.procs_files(self.group):
                file.write_text(str(made.pid))
        return made

    @contextlib.contextmanager
    def fence(self, daemon: int = 0) -> Iterator[tuple[Fence, DaemonChild]]:
        child = DaemonChild(lambda: self.told.append("wake"))
        child.pid = daemon
        made = Fence(self.run_dir, self.group, self, self, child, Watchdog("", 6), TIMINGS)  # type: ignore[arg-type]
        made.start()
        try:
            yield made, child
        finally:
            made.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, f"primordia-test-fence-{ids.suffix()}")
    cgroup.make(made.group)
    try:
        yield made
    finally:
        for process in made.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        cgroup.kill_tree(made.group)
        for process in made.processes:
            process.wait()


def until(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.02)


def said(node: Node) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((node.run_dir / FENCE_FILE).read_text())["last"])
    return ""


def test_what_runs_stands_at_the_deadline_and_goes_on_with_the_next_renewal(node: Node) -> None:
    node.process(microvm=True)
    with node.fence() as (fence, _):
        sent = node.lease.sent_s
        assert sent is not None
        until("it stands", lambda: freezer.stands(node.group))
        assert now() >= sent + TIMINGS.deadline_s
        until("it is said", lambda: said(node) == "Freeze" and fence.status()["frozen"])
        assert "look again" in node.told
        node.lease = LeaseView(7, now(), now())
        until("it goes on", lambda: not freezer.stands(node.group) and not fence.status()["frozen"])


def test_a_dead_life_is_killed_in_order(node: Node) -> None:
    daemon, microvm = node.process(microvm=False), node.process(microvm=True)
    with node.fence(daemon.pid) as (fence, child):
        node.lease = LeaseView(ended="it is dead")
        until("both are dead", lambda: daemon.poll() is not None and microvm.poll() is not None)
        until("the daemon may start", lambda: "wake" in node.told and not child.held)
        assert node.told == ["nothing runs: ", "wake"]
        assert daemon.returncode == -signal.SIGKILL
        assert (fence.status()["lastAction"], fence.status()["lastReason"]) == ("Kill", "it is dead")


def test_a_silent_daemon_is_killed_and_that_is_proved(node: Node) -> None:
    daemon = node.process(microvm=False)
    node.process(microvm=True)
    with node.fence(daemon.pid) as (_, child):
        end = time.monotonic() + TIMINGS.daemon_silence_s + 1
        while time.monotonic() < end:
            (node.run_dir / BEAT_FILE).write_text(str(time.monotonic_ns()))
            node.lease = LeaseView(7, now(), now())
            time.sleep(0.05)
        assert daemon.poll() is None and child.pid == daemon.pid
        while node.told == []:
            node.lease = LeaseView(7, now(), now()) if not node.told else node.lease
            assert time.monotonic() < end + PATIENCE_S
            time.sleep(0.05)
        until("the daemon may start", lambda: "wake" in node.told)
    assert node.told[0].startswith("nothing runs: the daemon has shown no sign of life for 2 s")


def test_without_the_engine_the_others_are_asked_and_their_word_counts(node: Node) -> None:
    node.process(microvm=True)
    node.lease = LeaseView(7, now(), now(), trouble="no answer")
    with node.fence():
        end = time.monotonic() + TIMINGS.deadline_s + 1.5
        while time.monotonic() < end:
            node.round_s = now()
            time.sleep(0.05)
        assert node.asked >= 3 and not freezer.stands(node.group)
        until("without a full round it stands", lambda: freezer.stands(node.group))


def test_the_next_fence_finds_what_stands(node: Node) -> None:
    node.process(microvm=True)
    node.lease = LeaseView(trouble="no answer")
    standing = Standing(node.run_dir)
    standing.write(now() + 0.5)
    freezer.freeze(node.group)
    with node.fence() as (fence, _):
        until("it is known", lambda: bool(fence.status()["frozen"]))
        node.lease = LeaseView(7, now(), now())
        until("it goes on", lambda: not freezer.stands(node.group))


def test_the_warden_freezes_what_nobody_speaks_for_and_ends_when_nobody_needs_it(node: Node) -> None:
    node.process(microvm=True)
    standing = Standing(node.run_dir)
    argv = [sys.executable, "-m", "primordia.supervisor.warden", str(node.run_dir), node.group]
    standing.write(None)
    first = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    second = None
    try:
        until("it watches", (node.run_dir / "warden").exists)
        standing.write(now() + 1.0)
        due = standing.read()
        assert due is not None
        until("it stands", lambda: freezer.stands(node.group))
        assert now() >= due
        second = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        until("the first leaves it to the second", lambda: first.poll() == 0)
        standing.end()
        until("the second ends", lambda: second is not None and second.poll() == 0)
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


def test_what_was_said_of_standing_is_there_for_the_next_one(tmp_path: Path) -> None:
    first = Standing(tmp_path)
    assert first.read() is None and not first.ended
    first.write(12.5)
    assert Standing(tmp_path).read() == 12.5
    first.write(None)
    assert Standing(tmp_path).read() is None and not first.ended
    first.end()
    assert Standing(tmp_path).ended
