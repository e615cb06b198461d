"""What a node leaves in the network of the machine that it is: its filter and its routes.

A local soup's go with its namespaces.

`net.ipv4.ip_forward` stays on: nobody can know whether another program has come to need it since.
"""

from __future__ import annotations

from primordia.kit.command import run


async def clear(pod_cidr: str) -> None:
    """Take the node's filter and routes away; harmless when there are none. For when no microVM runs any more."""
    await run(["nft", "delete", "table", "inet", "primordia"], check=False)
    await run(["ip", "-4", "route", "flush", "root", pod_cidr], check=False)
