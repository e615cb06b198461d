"""What the node holds of one context right now: its wish, its record, its open handles. Lost with the daemon, except the
record; everything else is found again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from primordia.domain.contexts import Failure, MainPhase, Seen, Wish
from primordia.domain.probes import Readiness
from primordia.kit.tasks import TaskSet
from primordia.node.logs import LogBook
from primordia.node.program import fingerprint
from primordia.node.records import Record, to_run
from primordia.ports.guest import ExitStatus, Guest, Program
from primordia.ports.vmm import Drive, Exit, Machine
from primordia.wire.resources import Context, ContextSpec


@dataclass
class Live:
    """One context. `context` is the registry's object, None when it is gone or was never seen by this daemon.

    While it is `freezing`, for its children, nobody but who freezes it lets its processes go on. `data` is its drive while it
    is being started, `told` the names of peers that its guest was given then.
    """

    record: Record
    log: LogBook
    context: Context | None = None
    known: bool = False
    boot_id: str = ""
    machine: Machine | None = None
    machine_uid: str = ""
    data: Drive | None = None
    confirmed: tuple[str, ...] = ()
    exit: Exit | None = None
    guest: Guest | None = None
    main: MainPhase | None = None
    main_status: ExitStatus | None = None
    failure: Failure | None = None
    readiness: Readiness | None = None
    phase: str = "Pending"
    progress: str = ""
    freezing: bool = False
    faults: tuple[str, ...] = ()
    peers: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    died: asyncio.Event = field(default_factory=asyncio.Event)
    spec_changed: asyncio.Event = field(default_factory=asyncio.Event)
    hosts_changed: asyncio.Event = field(default_factory=asyncio.Event)
    machine_tasks: TaskSet = field(default_factory=lambda: TaskSet("machine"))
    guest_tasks: TaskSet = field(default_factory=lambda: TaskSet("guest"))
    log_task: asyncio.Task[None] | None = None

    @property
    def uid(self) -> str:
        return self.record.uid

    @property
    def spec(self) -> ContextSpec:
        """What is wanted now, or was wanted at last."""
        return self.context.spec if self.context is not None else self.record.spec

    @property
    def is_fork(self) -> bool:
        """Whether it is a box, or the child of a running context."""
        return self.record.is_fork

    @property
    def program(self) -> Program:
        """The main program as it was started; its environment, folder and user are those of probes and execs too."""
        run = self.record.run
        return run.program if run is not None else Program(())

    @property
    def title(self) -> str:
        """How logs and events name it."""
        return f"{self.record.namespace}/{self.record.name}"

    def wake(self) -> None:
        """Something has changed: decide again."""
        self.woken.set()

    def wish(self) -> Wish:
        """What the registry wants; what the record says, while the registry has not been read."""
        if not self.known and self.context is None:
            spec = self.record.spec
            return Wish(known=False, fingerprint=self._own_print(spec), restart_policy=spec.restart_policy, fork=self.is_fork)
        if self.context is None:
            return Wish(exists=False)
        spec = self.context.spec
        return Wish(
            deleted=self.context.metadata.deletion_timestamp is not None,
            running=spec.wanted == "Running",
            # A fork is what it is: there is no other one to start instead.
            fingerprint=self._own_print(spec) if self.is_fork else fingerprint(spec),
            restart_policy=spec.restart_policy,
            fork=self.is_fork,
            keep_memory=spec.keep_memory,
            taken_over=spec.recovered is not None and (self.record.run is None or self.record.spec.epoch != spec.epoch),
        )

    def _own_print(self, spec: ContextSpec) -> str:
        return self.record.run.fingerprint if self.record.run else fingerprint(spec)

    def seen(self) -> Seen:
        """What the node knows."""
        return Seen(
            run=to_run(self.record.run, self.boot_id),
            machine=self.machine is not None,
            guest=self.guest is not None,
            main=self.main if self.guest is not None else None,
            failure=self.failure,
        )
