"""The uplink of a local soup's node: slirp4netns, a TCP/IP stack in user space.

It runs in the host's network namespace and serves an interface inside the node's. What contexts send to the world leaves
the host as ordinary connections of one process: no route, no address and no packet filter of the host is touched. It gives
the interface its address and its route itself, at every start, so that its crash costs connections and nothing else.

Standard library only: the supervisor starts it.
"""

from __future__ import annotations

INTERFACE = "egress0"
NETWORK = "198.18.77.0/24"
"""Addresses on the uplink itself. From the range for benchmarks (RFC 2544): slirp4netns' own default, 10.0.2.0/24, is the
network of many a virtual machine, whose host it would hide from the contexts."""


def slirp4netns_argv(program: str, netns_name: str, *, sandbox: bool = True) -> list[str]:
    """The command that serves the namespace `netns_name`; to be started in the host's network namespace.

    Its sandbox unmounts all but /etc and /run in a mount namespace of its own, but marks only `/` private before, so that
    as root the unmounts reach the host's shared mounts: `/run/netns` was seen to be emptied (slirp4netns 1.2.0). Below
    `unshare --propagation slave` nothing gets out, while the host's own unmounts still get in and nothing is pinned.

    Both need a `/` that is a mount point, which it is not in a plain chroot: there `sandbox` must be false.
    """
    return [
        *(("unshare", "--mount", "--propagation", "slave", "--") if sandbox else ()),
        program,
        "--configure",
        "--mtu=1500",
        f"--cidr={NETWORK}",
        "--disable-host-loopback",
        "--disable-dns",
        *(("--enable-sandbox",) if sandbox else ()),
        "--enable-seccomp",
        "--netns-type=path",
        f"/run/netns/{netns_name}",
        INTERFACE,
    ]
