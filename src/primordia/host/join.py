"""`join`: this machine becomes a node of a soup that runs elsewhere.

The order is the safety. First the authority's fingerprint is compared with the token's, over a connection that proves
nothing yet; then, over one that only the soup can answer, the secret is sent. Keys are made here and stay here. What is
slow, as downloads, comes before the token is used up; what is used up is kept, so that a `join` that was killed is
finished by the same command.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from primordia import __version__
from primordia.client.aio import AsyncClient
from primordia.client.config import ClientConfig
from primordia.client.errors import TlsError
from primordia.client.transport import Transport
from primordia.host import toolchain
from primordia.host.machine import NO_SLOT, checked, find_site, machine_name, settled, source_address
from primordia.host.pool import PoolWish
from primordia.host.soup import API_PORT, SoupFile, SoupNode, node_config, read_config, read_soup, write_config, write_soup
from primordia.host.up import UpOptions, require_root, soup_lock, up
from primordia.kit import pki
from primordia.kit.clock import Clock, SystemClock
from primordia.kit.errors import AlreadyExistsError, NotFoundError, PermanentError, TemporaryError
from primordia.kit.files import write_atomic
from primordia.kit.paths import NodePaths, SoupPaths, cache_dir
from primordia.supervisor import control
from primordia.supervisor.main import SOCKET_FILE
from primordia.wire import joining as wire
from primordia.wire.engine import MEMBERS, SeatRequest
from primordia.wire.nodeconfig import Engine, Tools
from primordia.wire.resources import Node

MOST_SKEW = datetime.timedelta(hours=23)
"""Certificates are valid from a day before they are made; two clocks that differ by more do not meet."""
_READY_WITHIN_S = 90.0
_CONNECT_S = 10.0
_STEADY_S = 3.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class JoinOptions:
    """`host` is a node of the soup. Empty name and address: the machine's own, and the one it has towards `host`."""

    host: str
    token: str
    rack: str
    segment: str
    port: int = API_PORT
    name: str = ""
    address: str = ""
    pool: PoolWish = field(default_factory=PoolWish)


@dataclass(frozen=True)
class JoinResult:
    """The node that this machine is now."""

    soup: str
    name: str
    url: str


async def join(options: JoinOptions, progress: Progress, clock: Clock | None = None) -> JoinResult:
    """Become a node, and wait until it is Ready. Raises PrimordiaError: one sentence for each way to fail."""
    require_root()
    token = wire.JoinToken.parse(options.token)
    name = checked("--name", options.name or machine_name())
    checked("--rack", options.rack)
    checked("--segment", options.segment)
    progress("ask who answers there")
    place = await asyncio.to_thread(_resolve, options.host)
    authority = await fetch_authority(place, options.port)
    check_authority(authority, token, (clock or SystemClock()).wall(), f"{options.host}:{options.port}")
    paths = SoupPaths.of(authority.soup)
    _check_unused(read_soup(paths), name, authority.soup)
    address = options.address or source_address(place)
    await find_site(address, "127.0.0.0/8")  # a wrong --address is said before anything is downloaded
    progress("unpack QEMU, kernel and engine")
    await toolchain.ensure(cache_dir(), progress)
    progress("ask to be let in")
    here = paths.node(name)
    async with soup_lock(paths):
        requests = _requests(here, name)
        answer = await ask(
            authority,
            wire.JoinRequest(
                token_id=token.id,
                secret=token.secret,
                name=name,
                rack=options.rack,
                segment=options.segment,
                address=address,
                request=requests[0].decode(),
                engine_request=requests[1].decode(),
            ),
        )
        node = SoupNode(
            name=name, index=answer.index, rack=options.rack, segment=options.segment, engine=False, address=address
        )
        await _settle(answer, node, paths)
    await up(UpOptions(soup=answer.soup, pool=options.pool), progress)
    progress("wait until the node is Ready")
    url = f"https://{address}:{API_PORT}"
    await _ready(own_client(here, (url,)), name)
    return JoinResult(answer.soup, name, url)


# ---------------------------------------------------------------- whom to trust


async def fetch_authority(place: str, port: int) -> wire.Authority:
    """Who answers there, by their own word: to be checked. Raises TemporaryError when nobody does."""
    timeout = aiohttp.ClientTimeout(total=2 * _CONNECT_S, sock_connect=_CONNECT_S)
    remedy = f"Check the address, that `primordia status` works there, and that port {port} is open."
    try:
        # The certificate is not checked, on purpose: what it should be is what is being asked. Nothing secret is sent.
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"https://{place}:{port}{wire.AUTHORITY}", ssl=False) as answer,
        ):
            content = await answer.read()
    except aiohttp.ClientConnectorError as error:
        raise TemporaryError(
            f"No soup answers at {place}:{port} ({error.strerror or error.os_error}).", remedy=remedy
        ) from error
    except (aiohttp.ClientError, TimeoutError, ssl.SSLError) as error:
        words = str(error) or "no answer in time"
        raise TemporaryError(f"No soup answers at {place}:{port} ({words}).", remedy=remedy) from error
    try:
        return msgspec.json.decode(content, type=wire.Authority)
    except msgspec.MsgspecError as error:
        raise PermanentError(f"What answers at {place}:{port} is no soup that machines can join.", remedy=remedy) from error


def check_authority(authority: wire.Authority, token: wire.JoinToken, now: datetime.datetime, place: str) -> None:
    """Whether it is the token's soup, and lives in our time. Pure. Raises PermanentError."""
    found = pki.fingerprint(authority.ca.encode()).removeprefix("sha256:")
    if found != token.fingerprint:
        raise PermanentError(
            f"The soup at {place} is not the one that the token is for: its authority is {found[:16]}..., "
            f"the token's is {token.fingerprint[:16]}.... Nothing was sent.",
            remedy="Take a token of that soup, or the right address.",
            reason="ForeignAuthority",
        )
    skew = now - datetime.datetime.fromisoformat(authority.time)
    if abs(skew) > MOST_SKEW:
        hours = abs(skew).total_seconds() / 3600
        raise PermanentError(
            f"This machine's clock is {hours:.0f} hours {'ahead of' if skew > MOST_SKEW else 'behind'} that of node "
            f"{authority.node}, so that neither would accept the other's certificate.",
            remedy="Set the clock, as with `timedatectl set-ntp true`, then join again.",
            reason="ClockSkew",
        )
    if not authority.signer:
        raise PermanentError(
            f"Soup {authority.soup} at {place} takes no machines in: it lives on one machine.",
            remedy="Found one that does with `primordia up --address IP`.",
        )


async def ask(authority: wire.Authority, request: wire.JoinRequest) -> wire.JoinAnswer:
    """Send the request to the node that lets machines in, over a connection that only the soup can answer."""
    ca = base64.b64encode(authority.ca.encode()).decode()
    transport = Transport(ClientConfig(servers=(authority.signer,), ca=ca, soup=authority.soup))
    try:
        content = await transport.request("POST", wire.NODES, body=msgspec.json.encode(request))
    except TlsError as error:
        raise TlsError(
            f"{authority.signer} cannot prove that it belongs to soup {authority.soup}: {error.message}",
            remedy="Check that the address leads to that machine itself, and both clocks.",
        ) from error
    finally:
        await transport.close()
    return msgspec.json.decode(content, type=wire.JoinAnswer)


async def give_engine(joined: JoinResult) -> None:
    """Have the node that this machine is now run an engine server; returns when it does. Raises PrimordiaError."""
    here = SoupPaths.of(joined.soup).node(joined.name)
    async with own_client(here, (joined.url,)) as client:
        await client.transport.request("POST", MEMBERS, body=msgspec.json.encode(SeatRequest(node=joined.name)))
    deadline = time.monotonic() + _READY_WITHIN_S
    while not read_config(here.config).engine.member or not await asyncio.to_thread(_engine_runs, here):
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"Node {joined.name} has joined, and its engine server does not start.",
                remedy=f"See {here.logs / 'engine.log'} and `primordia engine status`.",
            )
        await asyncio.sleep(0.2)


def _engine_runs(here: NodePaths) -> bool:
    try:
        return float(control.ask(here.run / SOCKET_FILE, "status")["children"]["engine"]["upSeconds"]) > _STEADY_S
    except (OSError, ValueError, KeyError):
        return False


def _resolve(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise NotFoundError(f"The host {host!r} is not known ({error.strerror}).", remedy="Give its IPv4 address.") from error


# ---------------------------------------------------------------- what stays here


def _check_unused(known: SoupFile | None, name: str, soup: str) -> None:
    if known is not None:
        node = known.nodes[0].name if known.nodes else "?"
        raise AlreadyExistsError(
            f"This machine belongs to a soup {soup} already, as node {node}.",
            remedy="`primordia up` starts it; `primordia leave` takes it out.",
        )


def _requests(here: NodePaths, name: str) -> tuple[bytes, bytes]:
    """The requests for both certificates, with keys that an earlier, unfinished `join` made, if there was one."""
    here.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = []
    for kind in ("node", "engine"):
        request = here.pki / f"{kind}.csr"
        if not request.exists():
            made = pki.request_certificate(name)
            write_atomic(here.pki / f"{kind}.key", made.key, mode=0o600)
            write_atomic(request, made.certificate)
        found.append(request.read_bytes())
    return found[0], found[1]


async def _settle(answer: wire.JoinAnswer, node: SoupNode, paths: SoupPaths) -> None:
    """Write everything down; the identity last, for with it the machine belongs to the soup."""
    site = await find_site(node.address, answer.soup_pod_cidr)
    here = paths.node(node.name)
    for name, pem in (
        ("node.crt", answer.certificate),
        ("ca.crt", answer.ca),
        ("engine.crt", answer.engine_certificate),
        ("engine-ca.crt", answer.engine_ca),
    ):
        write_atomic(here.pki / name, pem.encode(), mode=0o644)
    soup = SoupFile(
        name=answer.soup,
        uid=answer.soup_uid,
        slot=NO_SLOT,
        pod_cidr=answer.soup_pod_cidr,
        nodes=(node,),
        created_by_version=__version__,
        joined=True,
        timings=answer.timings,
    )
    config = settled(node_config(soup, node, paths, cache_dir(), Tools()), site)
    engine = Engine(member=False, endpoints=answer.endpoints)
    write_config(here.config, msgspec.structs.replace(config, engine=engine, domain=answer.domain))
    write_soup(paths, soup)


def own_client(here: NodePaths, servers: tuple[str, ...]) -> AsyncClient:
    """A client with the node's own certificate."""
    pair = pki.KeyPair.read(here.pki / "node.crt", here.pki / "node.key")
    ca = Path(here.pki / "ca.crt").read_bytes()
    return AsyncClient(ClientConfig.of_pem(servers, ca=ca, cert=pair.certificate, key=pair.key))


async def _ready(client: AsyncClient, name: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    async with client:
        while True:
            try:
                node = await client.get(Node, name)
                if any(each.type == "Ready" and each.status == "True" for each in node.status.conditions):
                    return
                why = next((each.message for each in node.status.conditions if each.type == "Ready"), "it has not said why")
            except (NotFoundError, TemporaryError) as error:
                why = str(error)
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"Node {name} has joined and is not Ready: {why}", remedy="See the logs in its state folder."
                )
            await asyncio.sleep(0.2)
