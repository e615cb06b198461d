"""`node.json`: what one node is told by `up` or `join`. Written once, read by its supervisor and its daemon.

The supervisor reads it with the standard library alone, so every value is plain JSON.
"""

from __future__ import annotations

import msgspec


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """Programs and files that were found or unpacked for this machine. Empty text means: not to be had here.

    `launcher` becomes QEMU, without any privilege. `initramfs_xfs` is for guests whose data is an xfs: the driver is as large
    as all the others together.
    """

    qemu: str = ""
    qemu_library_path: str = ""
    qemu_data: str = ""
    launcher: str = ""
    kernel: str = ""
    kernel_version: str = ""
    initramfs: str = ""
    initramfs_xfs: str = ""
    etcd: str = ""
    slirp4netns: str = ""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """`member` says whether this node runs an engine server; `endpoints` are all servers' client URLs. `incarnation` counts
    how often the engine began anew."""

    member: bool
    endpoints: tuple[str, ...]
    initial_cluster: str = ""
    initial_state: str = "new"
    incarnation: int = 1


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `address` is its own in the soup's network; `host_address` is where the host's clients reach it.

    A node that is a whole real machine has no `netns`, and both addresses are the same. `uplink` is then the interface that
    leads to the outside. `authority_dir` holds the authorities' keys, on the one machine that lets others join.
    Without `plain_templates` lifeforms boot instead of starting as forks. `pool` is the file or device of its pool of volumes
    (`volumes` names the driver); empty is none, for `pool_reason`. `timings` are those of `domain/timings.py` that differ
    from the usual ones; all nodes need the same. `watchdog` is a device that resets the machine when the fence is silent.
    """

    soup: str
    name: str
    index: int
    rack: str
    segment: str
    state_dir: str
    run_dir: str
    cache_dir: str
    netns: str
    uplink: str = ""
    authority_dir: str = ""
    address: str
    host_address: str
    pod_cidr: str
    soup_pod_cidr: str = "10.128.0.0/9"
    soup_cidr: str = "10.77.0.0/16"
    api_port: int = 7443
    engine: Engine
    tools: Tools
    vmm: str = "qemu"
    domain: str = "soup.internal"
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    overcommit_cpu: float = 4.0
    plain_templates: bool = True
    volumes: str = "btrfs"
    pool: str = ""
    pool_reason: str = ""
    timings: dict[str, float] = {}
    watchdog: str = ""
