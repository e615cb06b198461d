"""The soup that a benchmark measures: one of its own that leaves nothing, or a running one by name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from primordia.client.aio import AsyncClient, connect
from primordia.host import up as host
from primordia.host.pool import PoolWish
from primordia.host.shape import Shape, check_same, plan_nodes, words_of
from primordia.host.soup import SoupFile, reach, read_soup
from primordia.kit import ids
from primordia.kit.errors import NotFoundError
from primordia.kit.paths import NodePaths, SoupPaths
from primordia.wire.nodeconfig import NodeConfig

Progress = Callable[[str], None]
NAMESPACE = "default"
ONE_NODE = Shape()


@dataclass(frozen=True)
class Ground:
    """A soup to measure, with a client on it; `client_config` is what the client was made from, None the user's own."""

    soup: SoupFile
    client: AsyncClient
    client_config: Path | None = None

    @property
    def node(self) -> str:
        """Its first node."""
        return self.soup.nodes[0].name

    @property
    def nodes(self) -> tuple[str, ...]:
        """All of its nodes."""
        return tuple(node.name for node in self.soup.nodes)

    @property
    def paths(self) -> NodePaths:
        """The first node's folders."""
        return self.paths_of(self.node)

    def paths_of(self, node: str) -> NodePaths:
        """A node's folders."""
        return SoupPaths.of(self.soup.name).node(node)

    @property
    def config(self) -> NodeConfig:
        """What the first node was told."""
        return self.config_of(self.node)

    def config_of(self, node: str) -> NodeConfig:
        """What a node was told."""
        return msgspec.json.decode(self.paths_of(node).config.read_bytes(), type=NodeConfig)

    def address(self, node: str) -> str:
        """Where this machine reaches the node: its API, and every published port."""
        return reach(self.soup, next(each for each in self.soup.nodes if each.name == node))


@contextlib.asynccontextmanager
async def ground(
    name: str,
    progress: Progress,
    shape: Shape = ONE_NODE,
    *,
    templates: bool = True,
    pool_bytes: int = 0,
    timings: Mapping[str, float] = MappingProxyType({}),
) -> AsyncIterator[Ground]:
    """The running soup `name`, or with an empty name a throw-away one that is destroyed at the end, whatever happens.

    Without `templates` the lifeforms of a throw-away one boot, and do not start as forks. Each of its nodes gets a pool of
    `pool_bytes`, 0 for the usual, and these `timings`.

    Raises PrimordiaError; InvalidError where `shape` asks for what the running soup has not.
    """
    host.require_root()
    if name:
        soup = read_soup(SoupPaths.of(name))
        if soup is None:
            raise NotFoundError(f"There is no soup {name!r} on this machine.", remedy="Leave out --soup to get one of its own.")
        check_same(shape, soup)
        async with connect() as client:
            yield Ground(soup, client)
        return
    name = f"bench-{ids.suffix()}"
    with tempfile.TemporaryDirectory(prefix="primordia-bench-") as folder:
        config = Path(folder) / "config"
        try:
            progress(f"bring up {words_of(plan_nodes(shape))} to measure")
            options = host.UpOptions(
                soup=name,
                shape=shape,
                client_config=config,
                plain_templates=templates,
                pool=PoolWish(pool_bytes),
                timings=dict(timings),
            )
            result = await host.up(options, lambda step: None)
            async with connect(config) as client:
                yield Ground(result.soup, client, config)
        finally:
            progress("take it down")
            with contextlib.suppress(NotFoundError):
                await host.down(name, lambda step: None, destroy=True, client_config=config)
