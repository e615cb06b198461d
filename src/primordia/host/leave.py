"""`leave`: this machine stops being a node of its soup.

It says goodbye with its own certificate, to another node, after its own daemon has stopped: while that runs, it would make
its Node object anew. A machine that was lost cannot say goodbye; an administrator removes its Node object.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from primordia.client.aio import AsyncClient
from primordia.client.config import ClientConfig
from primordia.host.join import own_client
from primordia.host.soup import API_PORT, read_config, read_soup
from primordia.host.up import down, require_root
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
from primordia.kit.paths import SoupPaths
from primordia.wire import joining as wire
from primordia.wire.resources import Context, Node, Volume

Progress = Callable[[str], None]


async def leave(name: str, progress: Progress, *, force: bool = False) -> str:
    """Leave the soup, and give the name that the node had.

    Raises NotFoundError when this machine is no node of it, PermanentError when it founded the soup, runs an engine member
    or has lifeforms or volumes (the last two unless `force`).
    """
    require_root()
    paths = SoupPaths.of(name)
    soup = read_soup(paths)
    if soup is None or not soup.real:
        raise NotFoundError(f"This machine has not joined a soup {name!r}.", remedy="`primordia down` stops a local one.")
    if not soup.joined:
        raise PermanentError(
            f"This machine founded soup {name} and holds its authorities' keys.",
            remedy="Delete the soup on it with `primordia down --destroy`.",
        )
    node = soup.nodes[0]
    here = paths.node(node.name)
    if read_config(here.config).engine.member:
        raise PermanentError(
            f"Node {node.name} runs a member of the engine.", remedy=f"First `primordia engine remove {node.name}`."
        )
    progress("ask the soup what is here")
    others: tuple[str, ...] = ()
    try:
        async with own_client(here, (f"https://{node.address}:{API_PORT}",)) as client:
            others = await _look(client, node.name, force=force)
    except PermanentError:
        raise
    except PrimordiaError:
        if not force:
            raise
    config = _config_before(here.pki, others) if others else None
    await down(name, progress)
    if config is not None:
        progress("say goodbye")
        try:
            async with AsyncClient(config) as client:
                await client.transport.request("DELETE", f"{wire.NODES}/{node.name}")
        except PrimordiaError:
            if not force:
                raise
    await down(name, progress, destroy=True)
    return node.name


async def _look(client: AsyncClient, name: str, *, force: bool) -> tuple[str, ...]:
    """The URLs of the other nodes. Raises PermanentError when lifeforms or volumes are here, unless `force`."""
    contexts = (await client.list(Context, all_namespaces=True)).items
    names = ((each.metadata.namespace, each.spec.lifeform or each.metadata.name) for each in contexts if each.spec.node == name)
    here = sorted({"/".join(each) for each in names})
    if here and not force:
        raise PermanentError(
            f"Node {name} has lifeforms or boxes: {', '.join(here[:5])}{' and more' if len(here) > 5 else ''}.",
            remedy=f"`primordia node evacuate {name}` moves them away, with all data; or say --force.",
        )
    volumes = (await client.list(Volume, all_namespaces=True)).items
    owned = sorted(f"{each.metadata.namespace}/{each.metadata.name}" for each in volumes if each.status.node == name)
    if owned and not force:
        raise PermanentError(
            f"Node {name} has the data of {', '.join(owned[:5])}{' and more' if len(owned) > 5 else ''}: it would be lost.",
            remedy=f"`primordia node evacuate {name}` moves it away; or export and destroy the volumes; or say --force.",
        )
    nodes = (await client.list(Node)).items
    return tuple(each.status.api_endpoint for each in nodes if each.metadata.name != name and each.status.api_endpoint)


def _config_before(folder: Path, servers: tuple[str, ...]) -> ClientConfig:
    """The node's own config, read before its files go."""
    pem = [(folder / file).read_bytes() for file in ("ca.crt", "node.crt", "node.key")]
    return ClientConfig.of_pem(servers, ca=pem[0], cert=pem[1], key=pem[2])
