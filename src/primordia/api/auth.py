"""Who asks, and whether they may: mutual TLS names the user, and two roles decide the rest.

The certificate's CN is the user, its O the roles. A client without a certificate gets through the handshake, so that it
can be told in words what is missing; it may read health and version, and nothing else.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primordia.api.errors import RequestError
from primordia.api.paths import ACTIONS, STREAMS, Target
from primordia.kit import pki
from primordia.wire.resources import Context, Node, Resource, Soup, Volume
from primordia.wire.streams import INTERNAL

ADMINS = "primordia:admins"
NODES = "primordia:nodes"

_SYSTEM_KINDS = (Context, Node)
_WRITES = ("POST", "PUT", "PATCH")


@dataclass(frozen=True, slots=True)
class User:
    """A verified identity."""

    name: str
    roles: frozenset[str]

    @property
    def is_node(self) -> bool:
        """Whether this is a node's daemon."""
        return NODES in self.roles


def server_tls(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS for the API: certificates of clients are asked for and verified, and their absence is answered in words."""
    context = pki.server_context(ca, certificate, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def user_of(peercert: Mapping[str, Any] | None) -> User:
    """The user that a verified certificate (as `ssl` gives it) names.

    Raises RequestError 401 without one, 403 for one of no role here.
    """
    try:
        identity = pki.identity(peercert or {})
    except pki.PkiError as error:
        raise RequestError(
            401,
            "Who asks is not known: the request came without a client certificate.",
            remedy="Use the certificate of ~/.config/primordia/config.",
        ) from error
    roles = frozenset(identity.groups)
    if not roles & {ADMINS, NODES}:
        raise RequestError(
            403, f"User {identity.name!r} is of no role that may use this API.", remedy="Ask an admin of the soup."
        )
    return User(identity.name, roles)


def authorize(user: User, method: str, target: Target) -> None:
    """Raise RequestError 403 when this user may not do this at all; `guard_change` looks at what is changed."""
    if target.between_nodes and not user.is_node:
        raise RequestError(403, "This path is for the soup's nodes alone.", remedy="Ask for the context by its name.")
    if user.is_node:
        if target.subresource in (*STREAMS, *ACTIONS) and not target.between_nodes:
            raise RequestError(403, "A node reaches into contexts only for a user, and by uid.", remedy=f"Use {INTERNAL}.")
        return
    kind = target.kind
    if kind is Soup and method == "DELETE":
        raise RequestError(403, "The Soup is not deleted here.", remedy="Use `primordia down --destroy`.")
    if kind is Volume and target.subresource == "status" and method in _WRITES:
        raise RequestError(403, "The status of a Volume is written by the soup itself, and not by users.")
    if kind not in _SYSTEM_KINDS or method not in _WRITES or target.subresource in ACTIONS:
        return
    if target.subresource == "status" or (kind is Context and not target.subresource) or (method == "POST" and not target.name):
        raise RequestError(403, _system(kind), remedy=_REMEDY.get(kind, ""))


def guard_change(user: User, old: Resource, new: Resource) -> None:
    """Of a Node, users change all but its range of addresses and its finalizers; of a Volume not who is to delete its data.

    Raises RequestError 403.
    """
    if not user.is_node and isinstance(old, Volume) and old.metadata.finalizers != new.metadata.finalizers:
        raise RequestError(403, "The finalizers of a Volume stand for the nodes that have its data; they take theirs away.")
    if user.is_node or not (isinstance(old, Node) and isinstance(new, Node)):
        return
    if old.spec.pod_cidr != new.spec.pod_cidr or old.metadata.finalizers != new.metadata.finalizers:
        raise RequestError(403, _system(Node), remedy=_REMEDY[Node])


def guard_removal(user: User, obj: Resource) -> None:
    """Of contexts, users remove boxes and forks. Raises RequestError 403 for one that a lifeform wants."""
    if isinstance(obj, Context) and obj.spec.lifeform and not user.is_node:
        raise RequestError(
            403,
            f"Context {obj.metadata.namespace}/{obj.metadata.name} is of Lifeform {obj.spec.lifeform}, and goes with it.",
            remedy="Delete or suspend that, or change its spec.",
        )


def _system(kind: type[Resource]) -> str:
    return f"A {kind.KIND} is written by the soup itself, and not by users."


_REMEDY: dict[type[Resource], str] = {
    Context: "Change its Lifeform instead.",
    Node: "Its labels, annotations, spec.unschedulable, spec.evacuating and spec.maintenance may be changed.",
}
