"""What a machine that joins a soup and the soup say to each other, and the token that makes them trust each other.

A token is one line to copy, `ID.SECRET.FINGERPRINT`. The secret lets the machine in. The fingerprint, of the soup's
certificate authority, lets the machine know the soup: it is checked before anything secret is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from primordia.kit.errors import InvalidError

PREFIX = "/join/v1/"
AUTHORITY = PREFIX + "authority"
TOKENS = PREFIX + "tokens"
NODES = PREFIX + "nodes"

_TOKEN = re.compile(r"([0-9a-f]{8})\.([0-9a-f]{40})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class JoinToken:
    """`secret` is 160 random bits in hex; `fingerprint` the SHA-256 of the authority's certificate, in hex."""

    id: str
    secret: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.id}.{self.secret}.{self.fingerprint}"

    def __repr__(self) -> str:
        return f"JoinToken({self.id!r}, secret hidden)"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read a token. Raises InvalidError, which does not repeat it."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise InvalidError(
                "--token", "this is no token: one has three parts with dots between.", remedy="Copy the whole line."
            )
        return cls(*match.groups())


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of what is sent: JSON, camel case."""


class Authority(Message, frozen=True):
    """Whom one talks to, for anybody: checked against the token's fingerprint. `time` is RFC 3339, `signer` a URL."""

    soup: str
    node: str
    ca: str
    time: str
    signer: str = ""


class TokenRequest(Message, frozen=True):
    """A new token that lives `ttlSeconds` and lets `uses` machines in."""

    ttl_seconds: int = 3600
    uses: int = 1


class TokenInfo(Message, frozen=True):
    """A token as it is shown afterwards. Times are RFC 3339."""

    id: str
    created_by: str
    created_at: str
    expires_at: str
    uses: int
    used_by: tuple[str, ...] = ()
    expired: bool = False


class TokenAnswer(Message, frozen=True):
    """The only time that a token is shown."""

    token: str
    info: TokenInfo


class TokenList(Message, frozen=True):
    items: tuple[TokenInfo, ...]


class JoinRequest(Message, frozen=True):
    """Who wants to join. The requests for certificates (PEM) are for the API's authority and for the engine's."""

    token_id: str
    secret: str
    name: str
    rack: str
    segment: str
    address: str
    request: str
    engine_request: str


class JoinAnswer(Message, frozen=True):
    """What a node has to know. Certificates are PEM, `servers` the API's URLs of the nodes known so far. `timings` are the
    soup's, where they are not the usual ones: all nodes need the same."""

    soup: str
    soup_uid: str
    index: int
    pod_cidr: str
    soup_pod_cidr: str
    domain: str
    certificate: str
    ca: str
    engine_certificate: str
    engine_ca: str
    endpoints: tuple[str, ...]
    servers: tuple[str, ...]
    version: str
    timings: dict[str, float] = {}
