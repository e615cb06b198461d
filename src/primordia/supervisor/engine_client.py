"""Asking the engine for the little that a lease needs, with the standard library alone: etcd's JSON gateway over mutual TLS.

One connection is kept and reused, for a TLS handshake each second would cost more than all else the supervisor does. A
server that fails or is silent costs one try; the next goes to the next server. The words are those of
`drivers/store_etcd/gateway.py` (etcd's `rpc.proto`): bytes are base64, 64-bit integers are text, zeros are left out.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from primordia.kit.errors import NotFoundError, TemporaryError

_RANGE, _TXN = "/v3/kv/range", "/v3/kv/txn"
_GRANT, _KEEP_ALIVE, _REVOKE = "/v3/lease/grant", "/v3/lease/keepalive", "/v3/lease/revoke"
_LONGEST_ANSWER = 1 << 20


class EngineAwayError(TemporaryError):
    """No usable answer in time; what was asked for may have been done or not."""

    reason = "StoreUnavailable"


@dataclass(frozen=True)
class StoredKey:
    """A key as the engine has it."""

    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True)
class Claimed:
    """A key is ours. `previous` is the revision at which the life before it began; 0: nothing is known of one."""

    create_revision: int
    previous: int


@dataclass(frozen=True)
class Identity:
    """PEM files: the engine's authority, and a certificate and key of ours that it signed."""

    ca: str
    certificate: str
    key: str


class EngineClient:
    """Requests to any one of `endpoints` (`https://HOST:PORT`). For one thread. Every call takes `timeout_s` or so at most.

    Every method raises EngineAwayError.
    """

    def __init__(self, endpoints: Sequence[str], identity: Identity, timeout_s: float) -> None:
        self._servers = _places(endpoints)
        self._identity = identity
        self._timeout_s = timeout_s
        self._current = 0
        self._connection: http.client.HTTPSConnection | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def server(self) -> str:
        """The server that is asked next."""
        host, port = self._place()
        return f"{host}:{port}"

    def only_at(self, address: str) -> bool:
        """Whether no other machine has a server of the engine."""
        return all(host == address for host, _ in self._servers)

    def use(self, endpoints: Sequence[str]) -> None:
        """Ask these servers from the next connection on. May be called by another thread; none at all is ignored."""
        self._servers = _places(endpoints) or self._servers

    def get(self, key: str) -> StoredKey | None:
        """One key, linearizable."""
        return _first(self._call(_RANGE, {"key": _text(key)}))

    def grant(self, ttl_s: int) -> int:
        """A new lease."""
        return _number(self._call(_GRANT, {"TTL": ttl_s}).get("ID"))

    def claim(self, key: str, life: str, value: bytes, lease: int) -> Claimed | StoredKey:
        """Put `key` under a lease, and the same value as `life` under none; or give the key that is there.

        NotFoundError: no such lease.
        """
        encoded = base64.b64encode(value).decode()
        answer = self._call(
            _TXN,
            {
                "compare": [_created(key, 0)],
                "success": [
                    {"request_range": {"key": _text(life)}},
                    {"request_put": {"key": _text(key), "value": encoded, "lease": lease}},
                    {"request_put": {"key": _text(life), "value": encoded}},
                ],
                "failure": [{"request_range": {"key": _text(key)}}],
            },
        )
        found = _first(_dict((_list(answer.get("responses")) or [{}])[0].get("response_range")))
        if answer.get("succeeded"):
            revision = _number(_dict(answer.get("header")).get("revision"))
            return Claimed(revision, 0 if found is None else found.mod_revision)
        if found is None:
            raise EngineAwayError(f"The engine at {self.server} says neither that {key} is there nor that it is not.")
        return found

    def bury(self, key: str, life: int, death: str, value: bytes) -> bool:
        """If `key` is still of that life, put `death` and delete it; whether it was."""
        answer = self._call(
            _TXN,
            {
                "compare": [_created(key, life)],
                "success": [
                    {"request_put": {"key": _text(death), "value": base64.b64encode(value).decode()}},
                    {"request_delete_range": {"key": _text(key)}},
                ],
                # One that neither writes nor reads is answered without asking the engine's leader.
                "failure": [{"request_range": {"key": _text(key)}}],
            },
        )
        return bool(answer.get("succeeded"))

    def list(self, prefix: str) -> dict[str, StoredKey]:
        """The keys that begin so, linearizable, by what follows in their names."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        answer = self._call(_RANGE, {"key": _text(prefix), "range_end": _text(end)})
        return {name.removeprefix(prefix): _stored(item) for item in _list(answer.get("kvs")) for name in [_name(item)]}

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False when it is gone."""
        answer = self._call(_KEEP_ALIVE, {"ID": lease})
        if "result" not in answer:
            raise EngineAwayError(f"The engine at {self.server} did not renew the lease: {_reason(answer)}.")
        return _number(_dict(answer["result"]).get("TTL")) > 0

    def revoke(self, lease: int) -> None:
        """End a lease and its keys; one that is gone is no error."""
        with contextlib.suppress(NotFoundError):
            self._call(_REVOKE, {"ID": lease})

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ------------------------------------------------------------ inside

    def _call(self, path: str, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; after a failure the next one goes to the next server."""
        try:
            connection = self._connected()
            # No Accept header: etcd logs a warning for each request of the gateway that has one.
            connection.putrequest("POST", path, skip_accept_encoding=True)
            body = json.dumps(message).encode()
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            text = response.read(_LONGEST_ANSWER)
            response.read()
            answer = _dict(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            server = self.server
            self._next_server()
            raise EngineAwayError(
                f"The engine at {server} gives no usable answer ({error or type(error).__name__})."
            ) from error
        if response.status == 200:
            return answer
        reason = _reason(answer)
        if "lease not found" in reason:
            raise NotFoundError("The lease is gone.")
        server = self.server
        self._next_server()
        raise EngineAwayError(f"The engine at {server} refused: {reason}.")

    def _connected(self) -> http.client.HTTPSConnection:
        if self._connection is None:
            if self._tls is None:
                self._tls = _context(self._identity)
            host, port = self._place()
            connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
            connection.connect()
            self._connection = connection
        return self._connection

    def _place(self) -> tuple[str, int]:
        servers = self._servers
        return servers[self._current % len(servers)]

    def _next_server(self) -> None:
        self.close()
        self._current = (self._current + 1) % len(self._servers)


def _context(identity: Identity) -> ssl.SSLContext:
    """TLS with nothing but the engine's authority trusted. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(identity.ca)
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def _places(endpoints: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((split.hostname or "", split.port or 2379) for split in map(urlsplit, endpoints))


def _text(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def _created(key: str, revision: int) -> dict[str, Any]:
    return {"key": _text(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision}


def _first(answer: dict[str, Any]) -> StoredKey | None:
    """The key of a range's answer. Raises EngineAwayError when it is none."""
    items = _list(answer.get("kvs"))
    return _stored(items[0]) if items else None


def _stored(item: dict[str, Any]) -> StoredKey:
    revisions = _number(item.get("create_revision")), _number(item.get("mod_revision"))
    return StoredKey(_bytes(item.get("value")), *revisions, _number(item.get("lease")))


def _name(item: dict[str, Any]) -> str:
    return _bytes(item.get("key")).decode(errors="replace")


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(str(value or ""), validate=True)
    except ValueError as error:
        raise EngineAwayError(f"The engine's answer cannot be read ({error}).") from error


def _number(value: object) -> int:
    try:
        return int(str(value or 0))
    except ValueError as error:
        raise EngineAwayError(f"The engine's answer cannot be read: {value!r} is no number.") from error


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [_dict(each) for each in value] if isinstance(value, list) else []


def _reason(answer: dict[str, Any]) -> str:
    """etcd 3.4 fills `error`, newer ones `message` too; in streams they are inside `error`."""
    inside = answer.get("error")
    if isinstance(inside, dict):
        return _reason(inside)
    return str(answer.get("message") or inside or "no reason given")
