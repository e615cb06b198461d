"""How a machine becomes a node: tokens for administrators, admission for whoever holds one. `/join/v1/...`, no Kubernetes here.

The machine has no certificate yet, so these few paths alone are answered without one. What protects them: the machine
knows the authority's fingerprint from its token before it sends the secret; the secret is compared in constant time; a
stranger who fails often waits. Certificates are signed only where the authorities' keys lie, on the node that founded the
soup: the others name it. A request brings its key's proof, and never chooses its own role.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from primordia import __version__
from primordia.api import bodies
from primordia.api.answers import document_answer
from primordia.api.auth import ADMINS, NODES, User, user_of
from primordia.api.errors import RequestError
from primordia.domain.addresses import node_share
from primordia.domain.rate import FailureLimit
from primordia.kit import pki
from primordia.kit.errors import InvalidError, NotFoundError, PrimordiaError
from primordia.registry.joining import Joined, Joining, TokenError
from primordia.registry.registry import Registry
from primordia.registry.rules import timestamp
from primordia.wire import joining as wire
from primordia.wire.checks import is_label
from primordia.wire.resources import Node, Soup

_LARGEST_BYTES = 16 * 1024
_LEAST_TTL_S, _MOST_TTL_S, _MOST_USES = 10, 7 * 86_400, 256
_MOST_FAILURES, _WINDOW_S = 10, 60.0
_RETRY_S = 1.0

T = TypeVar("T")
Peer = Mapping[str, Any] | None


@dataclass(frozen=True)
class JoinPlace:
    """Where this is answered. `authority_dir` is the folder of the authorities' keys, None on a node without them.

    `ca` is the API authority's certificate; `endpoints` gives the engine's client URLs of the moment; `timings` are the soup's.
    """

    soup: str
    node: str
    url: str
    soup_pod_cidr: str
    domain: str
    ca: Path
    authority_dir: Path | None
    endpoints: Callable[[], tuple[str, ...]]
    timings: Mapping[str, float] = field(default_factory=dict)


class JoinApi:
    """Answers every path below `/join/v1/`."""

    def __init__(self, registry: Registry, place: JoinPlace) -> None:
        self._registry = registry
        self._place = place
        self._joining = Joining(registry.store, registry.clock)
        self._failures = FailureLimit(_MOST_FAILURES, _WINDOW_S)

    async def announce(self) -> None:
        """Write down that machines are let in here, once the store answers. Returns at once where they are not."""
        while self._place.authority_dir is not None:
            with contextlib.suppress(PrimordiaError):
                await self._joining.announce_signer(self._place.node, self._place.url)
                return
            await self._registry.clock.sleep(_RETRY_S)

    async def answer(self, request: web.BaseRequest, peer: Peer) -> web.Response:
        """The answer to one request; `peer` is its verified certificate. Raises PrimordiaError."""
        path = request.path
        name = path.rpartition("/")[2]
        match request.method:
            case "GET" if path == wire.AUTHORITY:
                return document_answer(await self._authority())
            case "POST" if path == wire.NODES:
                return document_answer(await self._join(request))
            case "GET" if path == wire.TOKENS:
                _admin(peer)
                return document_answer(wire.TokenList(items=await self._joining.tokens()))
            case "POST" if path == wire.TOKENS:
                return document_answer(await self._create_token(request, _admin(peer)))
            case "DELETE" if path == f"{wire.TOKENS}/{name}":
                _admin(peer)
                await self._joining.remove(name)
                return document_answer({})
            case "DELETE" if path == f"{wire.NODES}/{name}":
                await self._leave(name, user_of(peer))
                return document_answer({})
        raise RequestError(404, f"There is nothing to {request.method} at {path[:200]!r}.")

    async def _authority(self) -> wire.Authority:
        place = self._place
        return wire.Authority(
            soup=place.soup,
            node=place.node,
            ca=place.ca.read_text(),
            time=timestamp(self._registry.clock.wall()),
            signer=place.url if place.authority_dir is not None else await self._joining.signer(),
        )

    async def _create_token(self, request: web.BaseRequest, user: User) -> wire.TokenAnswer:
        wanted = await _read(request, wire.TokenRequest)
        if not _LEAST_TTL_S <= wanted.ttl_seconds <= _MOST_TTL_S:
            raise InvalidError("ttlSeconds", f"a token lives between {_LEAST_TTL_S} seconds and 7 days.")
        if not 1 <= wanted.uses <= _MOST_USES:
            raise InvalidError("uses", f"a token lets between 1 and {_MOST_USES} machines in.")
        if not await self._joining.signer() and self._place.authority_dir is None:
            raise RequestError(
                409,
                f"No machine can join soup {self._place.soup}: all its nodes live on one machine.",
                remedy="Found a soup that real machines can join with `primordia up --address IP`.",
            )
        fingerprint = pki.fingerprint(self._place.ca.read_bytes()).removeprefix("sha256:")
        token, info = await self._joining.create(user.name, wanted.ttl_seconds, wanted.uses, fingerprint)
        return wire.TokenAnswer(token=str(token), info=info)

    async def _join(self, request: web.BaseRequest) -> wire.JoinAnswer:
        if self._place.authority_dir is None:
            signer = await self._joining.signer()
            raise RequestError(
                409,
                f"Node {self._place.node} holds no authority's key and can let nobody in.",
                remedy=f"Ask {signer}." if signer else "This soup takes no machines in.",
            )
        stranger, now = request.remote or "", self._registry.clock.boottime()
        if (wait_s := self._failures.wait_s(stranger, now)) > 0:
            raise RequestError(429, f"{stranger} has failed too often.", remedy=f"Try again in {wait_s:.0f} seconds.")
        wanted = await _read(request, wire.JoinRequest)
        _check(wanted)
        # Both, so that neither is found broken when the token is used up.
        key = ".".join(pki.key_fingerprint(each.encode()) for each in (wanted.request, wanted.engine_request))
        nodes = (await self._registry.list(Node)).items
        try:
            joined = await self._joining.admit(wanted, key, self._place.soup_pod_cidr, tuple(nodes))
        except TokenError as error:
            self._failures.failed(stranger, now)
            raise RequestError(403, error.message, remedy=error.remedy) from error
        servers = [node.status.api_endpoint for node in nodes if node.status.api_endpoint]
        return await self._welcome(wanted, joined, self._place.authority_dir, tuple(dict.fromkeys((self._place.url, *servers))))

    async def _welcome(
        self, wanted: wire.JoinRequest, joined: Joined, authority: Path, servers: tuple[str, ...]
    ) -> wire.JoinAnswer:
        place = self._place
        leaf = pki.Leaf(
            joined.name, NODES, san_dns=(joined.name, "localhost"), san_ip=(joined.address, "127.0.0.1"), server=True
        )
        ca = pki.KeyPair.read(authority / "ca.crt", authority / "ca.key")
        engine_ca = pki.KeyPair.read(authority / "engine-ca.crt", authority / "engine-ca.key")
        return wire.JoinAnswer(
            soup=place.soup,
            soup_uid=(await self._registry.get(Soup, "soup")).metadata.uid,
            index=joined.index,
            pod_cidr=node_share(place.soup_pod_cidr, joined.index),
            soup_pod_cidr=place.soup_pod_cidr,
            domain=place.domain,
            certificate=pki.sign_request(ca, wanted.request.encode(), leaf).decode(),
            ca=ca.certificate.decode(),
            engine_certificate=pki.sign_request(engine_ca, wanted.engine_request.encode(), leaf).decode(),
            engine_ca=engine_ca.certificate.decode(),
            endpoints=place.endpoints(),
            servers=servers,
            version=__version__,
            timings=dict(place.timings),
        )

    async def _leave(self, name: str, user: User) -> None:
        """Forget a node whose daemon is down: its object and its name. For itself, or for an administrator."""
        if user.is_node and user.name != name and ADMINS not in user.roles:
            raise RequestError(403, f"Node {user.name} cannot send node {name} away.")
        with contextlib.suppress(NotFoundError):
            await self._registry.delete(Node, name)
        await self._joining.forget(name)


def _admin(peer: Peer) -> User:
    user = user_of(peer)
    if ADMINS not in user.roles:
        raise RequestError(403, f"{user.name} is no administrator, who alone may see and make tokens.")
    return user


async def _read(request: web.BaseRequest, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await bodies.read(request, _LARGEST_BYTES), type=kind)
    except msgspec.MsgspecError as error:
        raise RequestError(400, f"The body is not as it should be: {error}.") from error


def _check(wanted: wire.JoinRequest) -> None:
    """What a machine may be called, and where it may be."""
    if not is_label(wanted.name):
        raise InvalidError("--name", f"{wanted.name[:80]!r} is not a lower-case label.", remedy="Use a-z, 0-9 and dashes.")
    for flag, value in (("--rack", wanted.rack), ("--segment", wanted.segment)):
        if not is_label(value):
            raise InvalidError(flag, f"{value[:80]!r} is not a lower-case label.", remedy="Use a-z, 0-9 and dashes.")
    try:
        address = ipaddress.IPv4Address(wanted.address)
    except ValueError as error:
        raise InvalidError("--address", f"{wanted.address[:80]!r} is no IPv4 address.") from error
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        raise InvalidError("--address", f"{address} cannot be reached from other machines.")
