"""The store's side of joining: tokens, and who has joined.

    /primordia/join/tokens/ID    hash of the secret, uses; under a lease a day longer than the token's life
    /primordia/join/live/ID      there while the token lives, under a lease of just that life
    /primordia/join/nodes/NAME   who joined, by which key
    /primordia/join/indexes/N    the number that a node's share of the context addresses comes from
    /primordia/join/signers/NAME the URL of a node that holds the authorities' keys

Expiry is the engine's lease, so that no machine's clock decides it; the record outlives it by a day so that an expired
token can be told from one that never was. Admission is one guarded transaction: the token's use, the name and the number
are taken together or not at all. A machine that asks again with the same key and token gets the same answer: its first
one may have been lost on the way.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from primordia.domain.addresses import most_nodes, node_share
from primordia.kit.clock import Clock
from primordia.kit.errors import AlreadyExistsError, CapacityError, NotFoundError, PermanentError, TemporaryError
from primordia.ports.store import Compare, Delete, KeyValue, Put, Store
from primordia.registry import lives
from primordia.registry.rules import timestamp
from primordia.wire.joining import JoinRequest, JoinToken, TokenInfo
from primordia.wire.resources import Node

ROOT = "/primordia/join/"
_AFTERLIFE_S = 86_400
_ATTEMPTS = 8

T = TypeVar("T")


class TokenError(PermanentError):
    """The token does not let anybody in; the sentence says why."""

    reason = "BadToken"


class StoredToken(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    created_by: str
    created_at: str
    expires_at: str
    uses: int
    used_by: tuple[str, ...] = ()


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """A node that joined. `key` stands for its keys, `token` the id that let it in."""

    name: str
    index: int
    address: str
    rack: str
    segment: str
    key: str
    token: str


class Joining:
    """Tokens and admissions in one store. All methods raise StoreUnavailableError."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    # ------------------------------------------------------------ tokens

    async def create(self, created_by: str, ttl_s: int, uses: int, fingerprint: str) -> tuple[JoinToken, TokenInfo]:
        """A new token for the authority with that fingerprint (hex)."""
        token = JoinToken(secrets.token_hex(4), secrets.token_hex(20), fingerprint)
        now = self._clock.wall()
        stored = StoredToken(
            hash=_hash(token.secret),
            created_by=created_by,
            created_at=timestamp(now),
            expires_at=timestamp(now + datetime.timedelta(seconds=ttl_s)),
            uses=uses,
        )
        record, life = await self._store.grant(ttl_s + _AFTERLIFE_S), await self._store.grant(ttl_s)
        done = await self._store.txn(
            [Compare(_token(token.id), "create", 0)],
            [Put(_token(token.id), msgspec.json.encode(stored), record), Put(_live(token.id), b"", life)],
        )
        if not done.done:  # one in four thousand million
            raise TemporaryError("The token's id is taken.", remedy="Try again.")
        return token, _info(token.id, stored, expired=False)

    async def tokens(self) -> tuple[TokenInfo, ...]:
        """Every token of late, the expired ones included."""
        records = await self._store.list(_token(""))
        live = {item.key.removeprefix(_live("")) for item in (await self._store.list(_live(""))).items}
        found = [(item.key.removeprefix(_token("")), _decode(StoredToken, item)) for item in records.items]
        return tuple(_info(id_, stored, expired=id_ not in live) for id_, stored in found)

    async def remove(self, id_: str) -> None:
        """Make a token worthless at once. Raises NotFoundError."""
        known = await self._store.get(_token(id_)) if id_ and "/" not in id_ else None
        if known is None:
            raise NotFoundError(f"There is no token {id_[:40]!r}.", remedy="`primordia token ls` shows them.")
        await self._store.txn([], [Delete(_token(id_)), Delete(_live(id_))])

    # ------------------------------------------------------------ admission

    async def admit(self, request: JoinRequest, key: str, soup_pod_cidr: str, nodes: tuple[Node, ...]) -> Joined:
        """Let a machine in: use the token up, take the name and a number. `key` stands for its keys.

        Raises TokenError, AlreadyExistsError for a name or address of another node, CapacityError when the soup is full.
        """
        for _ in range(_ATTEMPTS):
            token, stored = await self._genuine(request)
            joined = await self._joined()
            if (same := joined.get(request.name)) is not None and same.key == key and same.token == request.token_id:
                return same
            live = await self._usable(request, stored)
            _check_free(request, nodes, joined.values())
            entry = Joined(
                name=request.name,
                index=_free_index(soup_pod_cidr, nodes, joined.values()),
                address=request.address,
                rack=request.rack,
                segment=request.segment,
                key=key,
                token=request.token_id,
            )
            spent = msgspec.structs.replace(stored, used_by=(*stored.used_by, request.name))
            done = await self._store.txn(
                [
                    Compare(token.key, "mod", token.mod_revision),
                    Compare(live.key, "mod", live.mod_revision),
                    Compare(_node(entry.name), "create", 0),
                    Compare(_index(entry.index), "create", 0),
                ],
                [
                    Put(token.key, msgspec.json.encode(spent), token.lease),
                    Put(_node(entry.name), msgspec.json.encode(entry)),
                    Put(_index(entry.index), entry.name.encode()),
                ],
            )
            if done.done:
                return entry
        raise TemporaryError("Too many machines join at once.", remedy="Try again in a moment.")

    async def forget(self, name: str) -> None:
        """Free the name and number of a node that has left, and its life's keys; harmless when it is not known."""
        await lives.forget(self._store, name)
        found = await self._store.get(_node(name))
        if found is not None:
            entry = _decode(Joined, found)
            await self._store.txn(
                [Compare(found.key, "mod", found.mod_revision)], [Delete(found.key), Delete(_index(entry.index))]
            )

    async def announce_signer(self, name: str, url: str) -> None:
        """Say where machines are let in."""
        await self._store.txn([], [Put(f"{ROOT}signers/{name}", url.encode())])

    async def signer(self) -> str:
        """The URL of a node that lets machines in; empty when there is none."""
        found = await self._store.list(f"{ROOT}signers/", limit=1)
        return found.items[0].value.decode() if found.items else ""

    async def _genuine(self, request: JoinRequest) -> tuple[KeyValue, StoredToken]:
        """The token's record, if the secret is right. What is not known takes as long as what is wrong."""
        usual = request.token_id.isalnum() and len(request.token_id) <= 40
        record = await self._store.get(_token(request.token_id)) if usual else None
        stored = _decode(StoredToken, record) if record is not None else None
        right = hmac.compare_digest(_hash(request.secret), stored.hash if stored is not None else _hash(""))
        if record is None or stored is None or not right:
            raise TokenError(
                "The token is not one of this soup: it is mistyped, was removed, or expired long ago.",
                remedy="Make a new one with `primordia token create`.",
            )
        return record, stored

    async def _usable(self, request: JoinRequest, stored: StoredToken) -> KeyValue:
        remedy = "Make a new one with `primordia token create`."
        live = await self._store.get(_live(request.token_id))
        if len(stored.used_by) >= stored.uses:
            raise TokenError(f"Token {request.token_id} has been used already, by {', '.join(stored.used_by)}.", remedy=remedy)
        if live is None:
            raise TokenError(f"Token {request.token_id} has expired (at {stored.expires_at}).", remedy=remedy)
        return live

    async def _joined(self) -> dict[str, Joined]:
        found = await self._store.list(_node(""))
        return {entry.name: entry for entry in (_decode(Joined, item) for item in found.items)}


def _check_free(request: JoinRequest, nodes: tuple[Node, ...], joined: Iterable[Joined]) -> None:
    places = {node.metadata.name: node.status.address for node in nodes}
    places |= {entry.name: entry.address for entry in joined}
    if request.name in places:
        raise AlreadyExistsError(
            f"The soup has a node {request.name} already, at {places[request.name] or 'an unknown address'}.",
            remedy="Choose another with --name, or remove that one with `primordia leave` on its machine.",
        )
    for name, address in places.items():
        if address == request.address:
            raise AlreadyExistsError(
                f"Address {address} is node {name}'s.", remedy="Say with --address which address of this machine is its own."
            )


def _free_index(soup_pod_cidr: str, nodes: tuple[Node, ...], joined: Iterable[Joined]) -> int:
    taken = {entry.index for entry in joined}
    ranges = {node.spec.pod_cidr for node in nodes}
    for index in range(2, most_nodes(soup_pod_cidr) + 1):  # the founder is the first
        if index not in taken and node_share(soup_pod_cidr, index) not in ranges:
            return index
    raise CapacityError(f"The soup's addresses {soup_pod_cidr} are divided among {most_nodes(soup_pod_cidr)} nodes already.")


def _hash(secret: str) -> str:
    """A plain hash does: the secret is 160 random bits, which nobody can try through."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _decode(kind: type[T], item: KeyValue) -> T:
    try:
        return msgspec.json.decode(item.value, type=kind)
    except msgspec.MsgspecError as error:
        raise PermanentError(f"{item.key} in the store cannot be read ({error}).", remedy="Remove it there.") from error


def _info(id_: str, stored: StoredToken, *, expired: bool) -> TokenInfo:
    return TokenInfo(
        id=id_,
        created_by=stored.created_by,
        created_at=stored.created_at,
        expires_at=stored.expires_at,
        uses=stored.uses,
        used_by=stored.used_by,
        expired=expired,
    )


def _token(id_: str) -> str:
    return f"{ROOT}tokens/{id_}"


def _live(id_: str) -> str:
    return f"{ROOT}live/{id_}"


def _node(name: str) -> str:
    return f"{ROOT}nodes/{name}"


def _index(number: int) -> str:
    return f"{ROOT}indexes/{number}"
