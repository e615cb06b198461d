"""How the daemon's API lets machines in: the API's collaborator for it, from the node's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from primordia.api.joining import JoinApi, JoinPlace
from primordia.registry.registry import Registry
from primordia.wire.nodeconfig import NodeConfig


def join_api(config: NodeConfig, registry: Registry, endpoints: Callable[[], tuple[str, ...]]) -> JoinApi:
    """`endpoints` gives the engine's client URLs of the moment."""
    place = JoinPlace(
        soup=config.soup,
        node=config.name,
        url=f"https://{config.address}:{config.api_port}",
        soup_pod_cidr=config.soup_pod_cidr,
        domain=config.domain,
        ca=Path(config.state_dir) / "pki" / "ca.crt",
        authority_dir=Path(config.authority_dir) if config.authority_dir else None,
        endpoints=endpoints,
        timings=config.timings,
    )
    return JoinApi(registry, place)
