"""What a local soup is on this machine: its identity file, its nodes' settings, and the plan of `up`. Pure but for the files.

`soup.json` is written before anything else is made and removed after everything else is gone, so that a soup that was
killed half-way, up or down, can be found and finished.
"""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from primordia.domain.addresses import node_share
from primordia.kit.errors import CapacityError, PermanentError
from primordia.kit.files import write_atomic
from primordia.kit.paths import SoupPaths, is_soup_name
from primordia.supervisor.engine import client_url, initial_cluster, peer_url
from primordia.wire.nodeconfig import Engine, NodeConfig, Tools

MOST_NODES = 64
MOST_SLOTS = 256
API_PORT = 7443


class SoupNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node's place. `index` counts from 1 and never changes, for its addresses come from it.

    `address` is set where the node is a whole real machine, and is then the only one it has; see host/machine.py. What it
    offers (`cpu_milli` and what follows) is 0 where that is all that the machine has. `pool_bytes` is its
    pool's size, where somebody has said it.
    """

    name: str
    index: int
    rack: str
    segment: str
    engine: bool
    address: str = ""
    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    pool_bytes: int = 0


class SoupFile(msgspec.Struct, frozen=True, kw_only=True):
    """The identity of a soup on this machine: `slot` picks its loopback addresses 127.77.SLOT.INDEX.

    On a real machine `nodes` holds that machine alone. One that `joined` has no authority of its own.
    Without `plain_templates` every lifeform boots. `timings` are those of `domain/timings.py` that were asked for.
    `incarnation` counts how often its engine began anew.
    """

    name: str
    uid: str
    slot: int
    pod_cidr: str
    nodes: tuple[SoupNode, ...]
    created_by_version: str
    phase: str = "up"
    joined: bool = False
    plain_templates: bool = True
    timings: dict[str, float] = {}
    incarnation: int = 1

    @property
    def real(self) -> bool:
        """Whether it has this whole machine for a node, instead of namespaces on it."""
        return any(node.address for node in self.nodes)


def node_address(index: int) -> str:
    """A node's address in the soup's own network."""
    return f"10.77.{index >> 8}.{index & 255}"


def host_address(slot: int, index: int) -> str:
    """Where the host's clients reach a node."""
    return f"127.77.{slot}.{index}"


def own_address(node: SoupNode) -> str:
    """Where the other nodes reach it."""
    return node.address or node_address(node.index)


def reach(soup: SoupFile, node: SoupNode) -> str:
    """Where clients on this machine reach it."""
    return node.address or host_address(soup.slot, node.index)


def node_pod_cidr(pod_cidr: str, index: int) -> str:
    """The node's share of the soup's context addresses: 8,190 of them."""
    return node_share(pod_cidr, index)


def netns_name(soup: str, node: str) -> str:
    """The network namespace of a node."""
    return f"primordia-{soup}-{node}"


def node_config(soup: SoupFile, node: SoupNode, paths: SoupPaths, cache: Path, tools: Tools) -> NodeConfig:
    """Everything the node's processes are told."""
    members = [other for other in soup.nodes if other.engine]
    here = paths.node(node.name)
    return NodeConfig(
        soup=soup.name,
        name=node.name,
        index=node.index,
        rack=node.rack,
        segment=node.segment,
        state_dir=str(here.state),
        run_dir=str(here.run),
        cache_dir=str(cache),
        netns="" if node.address else netns_name(soup.name, node.name),
        address=own_address(node),
        host_address=reach(soup, node),
        pod_cidr=node_pod_cidr(soup.pod_cidr, node.index),
        soup_pod_cidr=soup.pod_cidr,
        engine=Engine(
            member=node.engine,
            endpoints=tuple(client_url(own_address(member)) for member in members),
            initial_cluster=initial_cluster({member.name: peer_url(own_address(member)) for member in members}),
            incarnation=soup.incarnation,
        ),
        api_port=API_PORT,
        tools=tools,
        cpu_milli=node.cpu_milli,
        memory_bytes=node.memory_bytes,
        disk_bytes=node.disk_bytes,
        plain_templates=soup.plain_templates,
        timings=soup.timings,
    )


def soup_file_path(paths: SoupPaths) -> Path:
    """Where the soup's identity lies."""
    return paths.state / "soup.json"


def read_soup(paths: SoupPaths) -> SoupFile | None:
    """The soup's identity, or None when there is no such soup. Raises PermanentError when the file is damaged."""
    try:
        return msgspec.json.decode(soup_file_path(paths).read_bytes(), type=SoupFile)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError) as error:
        raise PermanentError(
            f"{soup_file_path(paths)} cannot be read ({error}).",
            remedy="Restore the file, or remove the soup with `primordia down --destroy`.",
        ) from error


def write_soup(paths: SoupPaths, soup: SoupFile) -> None:
    """Write the soup's identity, durably."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o711)
    write_atomic(soup_file_path(paths), msgspec.json.format(msgspec.json.encode(soup)))


def read_config(path: Path) -> NodeConfig:
    """A node's settings. Raises PermanentError when they are missing or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeConfig)
    except (msgspec.MsgspecError, OSError) as error:
        raise PermanentError(
            f"{path} cannot be read ({error}).",
            remedy="Run again what made this node: `primordia up --address` or `primordia join`.",
        ) from error


def write_config(path: Path, config: NodeConfig) -> None:
    """Write a node's settings, durably."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(config)))


def soups_here() -> tuple[str, ...]:
    """The names of the soups whose identity is on this machine, whether they are up or not."""
    found = SoupPaths.of().state.parent.glob("*/soup.json")
    return tuple(sorted(path.parent.name for path in found if is_soup_name(path.parent.name)))


def free_slot(state_root: Path) -> int:
    """The lowest loopback slot that no soup of this machine has, and on whose first address nobody listens."""
    taken = set()
    for path in sorted(state_root.glob("*/soup.json")):
        try:
            taken.add(msgspec.json.decode(path.read_bytes(), type=SoupFile).slot)
        except (msgspec.MsgspecError, OSError):
            continue
    for slot in range(MOST_SLOTS):
        if slot not in taken and _is_free(host_address(slot, 1)):
            return slot
    raise CapacityError(
        f"This machine has {MOST_SLOTS} soups already.", remedy="Take one down with `primordia down --destroy`."
    )


def _is_free(address: str) -> bool:
    """Whether the API could listen there: soups whose state lies elsewhere are seen by their listeners alone."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, API_PORT))
        except OSError:
            return False
    return True
