"""Which children a node has, from its node.json and, for the uplink, from what `/` is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from primordia.kit.enclosure import mounts_can_be_own
from primordia.supervisor.children import ChildSpec
from primordia.supervisor.engine import EngineServer, EngineTls, etcd_argv
from primordia.supervisor.uplink import slirp4netns_argv

WARDEN = "warden"
HOST_NETNS_VARIABLE = "PRIMORDIA_HOST_NETNS_FD"


def node_cgroup(config: dict[str, Any]) -> str:
    """The node's cgroup below the hierarchy's root."""
    return f"primordia/{config['soup']}/{config['name']}"


def vm_cgroup(config: dict[str, Any]) -> str:
    """The cgroup of all of the node's microVMs."""
    return f"{node_cgroup(config)}/vm"


def child_specs(config: dict[str, Any], config_path: Path, host_netns: int | None) -> list[ChildSpec]:
    """The engine first, for the daemon waits for it anyway; the uplink only where a local soup's node needs one."""
    state = Path(config["state_dir"])
    logs = state / "log"
    specs = []
    if config["engine"]["member"]:
        argv = ["env", "-i", *etcd_argv(config["tools"]["etcd"], _engine_server(config))]
        specs.append(ChildSpec("engine", tuple(argv), str(logs / "engine.log"), data_dir=str(state / "engine")))
    if config["netns"] and config["tools"]["slirp4netns"]:
        argv = slirp4netns_argv(
            config["tools"]["slirp4netns"],
            config["netns"],
            sandbox=mounts_can_be_own(),
        )
        specs.append(ChildSpec("uplink", tuple(argv), str(logs / "uplink.log"), in_host_netns=True, stop_timeout_s=2))
    argv = [sys.executable, "-m", "primordia.supervisor.warden", config["run_dir"], vm_cgroup(config)]
    specs.append(ChildSpec(WARDEN, tuple(argv), str(logs / "warden.log"), outlives=True, stop_timeout_s=2))
    env = {HOST_NETNS_VARIABLE: str(host_netns)} if host_netns is not None else {}
    argv = [sys.executable, "-m", "primordia.daemon", str(config_path)]
    specs.append(ChildSpec("daemon", tuple(argv), str(logs / "daemon.log"), env=env))
    return specs


def _engine_server(config: dict[str, Any]) -> EngineServer:
    state = Path(config["state_dir"])
    pki = state / "pki"
    engine = config["engine"]
    return EngineServer(
        name=config["name"],
        data_dir=str(state / "engine"),
        address=config["address"],
        tls=EngineTls(str(pki / "engine-ca.crt"), str(pki / "engine.crt"), str(pki / "engine.key")),
        cluster=engine["initial_cluster"],
        token=_token(config["soup"], int(engine.get("incarnation", 1))),
        state=engine["initial_state"],
    )


def _token(soup: str, incarnation: int) -> str:
    """What tells clusters apart: an engine that began anew is none of the old one's servers."""
    return f"primordia-{soup}" if incarnation <= 1 else f"primordia-{soup}-{incarnation}"
