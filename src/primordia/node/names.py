"""The names that guests ask for, from the caches: one directory for all questions until something in it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from primordia.domain.names import Directory
from primordia.node.dns import Asker, NameServer, directory_of
from primordia.node.live import Live
from primordia.node.resolvers import Resolvers
from primordia.ports.guest import InboundHandler
from primordia.registry.informers import Informers
from primordia.wire.nodeconfig import NodeConfig
from primordia.wire.resources import Context, Lifeform


class Names:
    """Serves the `dns` streams of a node's contexts. `addresses` is the node's own word for them, by uid."""

    def __init__(
        self, informers: Informers, config: NodeConfig, resolvers: Resolvers, addresses: Callable[[], Mapping[str, str]]
    ) -> None:
        self._contexts = informers.of(Context)
        self._lifeforms = informers.of(Lifeform)
        self._domain = config.domain
        self._addresses = addresses
        self._directory: Directory | None = None
        self._known: tuple[object, object, Mapping[str, str]] | None = None
        self._server = NameServer(self._current, resolvers, (config.soup_pod_cidr, config.soup_cidr))

    def handler(self, live: Live) -> InboundHandler:
        """What serves one context."""

        def asker() -> Asker:
            return Asker(live.record.namespace, live.spec.lifeform, live.spec.network.egress)

        return self._server.handler(asker)

    def _current(self) -> Directory:
        """The directory as the caches are now: they give the same tuple as long as nothing has changed."""
        contexts, lifeforms, addresses = self._contexts.items(), self._lifeforms.items(), self._addresses()
        known = self._known
        if (
            self._directory is None
            or known is None
            or known[0] is not contexts
            or known[1] is not lifeforms
            or known[2] != addresses
        ):
            self._directory = directory_of(contexts, lifeforms, addresses, self._domain)
            self._known = (contexts, lifeforms, addresses)
        return self._directory
