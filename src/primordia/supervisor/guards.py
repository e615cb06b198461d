"""The parts of a supervisor that guard what its node runs, put together from node.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primordia.domain.timings import Timings
from primordia.kit import cgroup
from primordia.kit.identity import boot_id
from primordia.supervisor.engine_client import EngineClient, Identity
from primordia.supervisor.failsafe import PORT_ABOVE_API, Failsafe, Place
from primordia.supervisor.fence import DaemonChild, Fence
from primordia.supervisor.lease import LeaseKeeper
from primordia.supervisor.lease_file import Holder, incarnation_of
from primordia.supervisor.plan import vm_cgroup
from primordia.supervisor.watchdog import Watchdog

_API_PORT = 7443


@dataclass(frozen=True)
class Guards:
    """One node's: who keeps the lease, who answers other nodes, who freezes and kills, and what that does to the daemon."""

    lease: LeaseKeeper
    failsafe: Failsafe
    fence: Fence
    daemon: DaemonChild

    def start(self) -> None:
        """Begin to guard."""
        self.lease.start()
        self.failsafe.start()
        self.fence.start()

    def stop(self, *, nothing_runs: bool) -> None:
        """End. Where nothing runs any more, nobody needs to watch, and the lease is given back. Takes a few seconds at most."""
        self.fence.stop()
        self.failsafe.stop()
        if nothing_runs:
            self.fence.everything_has_ended()
        self.lease.stop(give_back=nothing_runs)

    def status(self) -> dict[str, Any]:
        """How they stand, for people."""
        return {"lease": self.lease.status(), "fence": self.fence.status(), "failsafe": self.failsafe.status()}


def guards_of(config: dict[str, Any], wake: Callable[[], None]) -> Guards:
    """Those of the node that node.json describes; `wake` wakes whoever starts the daemon. Raises InvalidError (timings)."""
    run_dir, pki, group = Path(config["run_dir"]), Path(config["state_dir"]) / "pki", vm_cgroup(config)
    timings, boot = Timings.of(config.get("timings", {})), boot_id()
    identity = Identity(str(pki / "engine-ca.crt"), str(pki / "engine.crt"), str(pki / "engine.key"))
    client = EngineClient(config["engine"]["endpoints"], identity, timings.request_timeout_s)
    holder = Holder(config["name"], boot, incarnation_of(run_dir, boot), config["address"])
    lease = LeaseKeeper(holder, client, run_dir, timings, runs=bool(cgroup.pids(group)))
    port = int(config.get("api_port", _API_PORT)) + PORT_ABOVE_API
    failsafe = Failsafe(Place(holder.node, holder.incarnation, holder.address, port), pki, lease, timings)
    daemon, watchdog = DaemonChild(wake), Watchdog(config.get("watchdog", ""), timings.ttl_s)
    return Guards(lease, failsafe, Fence(run_dir, group, lease, failsafe, daemon, watchdog, timings), daemon)
