"""Names of contexts: what a name means to the lifeform that asks. Pure.

    CONTEXT                                 a context of the asker's own lifeform
    NAME.NAMESPACE.soup.internal            a lifeform: the address of its first context
    CONTEXT.NAME.NAMESPACE.soup.internal    one context of a lifeform

A lifeform of several contexts has one address under its own name, not all of them: its contexts do different things, so
that a client must not be given any one of them by chance. The first context of the spec is the one that speaks for it.
Names say where, not whether: a context that is not ready yet has its name all the same, and policy decides who connects.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

_REVERSE = ".in-addr.arpa"


@dataclass(frozen=True)
class Entry:
    """A context and its address. `position` is its place in the lifeform's spec."""

    namespace: str
    lifeform: str
    context: str
    address: str
    position: int = 0


class Outcome(Enum):
    """What is known about a name."""

    FOUND = "it is ours, and exists"
    MISSING = "it is ours, and does not exist"
    FOREIGN = "it is not ours"


@dataclass(frozen=True)
class Resolution:
    """`addresses` may be empty for a name that exists: a namespace, or the domain itself."""

    outcome: Outcome
    addresses: tuple[str, ...] = ()


_MISSING = Resolution(Outcome.MISSING)
_FOREIGN = Resolution(Outcome.FOREIGN)
_EXISTS = Resolution(Outcome.FOUND)


class Directory:
    """The names of a soup at one time."""

    def __init__(self, entries: Iterable[Entry] = (), domain: str = "soup.internal") -> None:
        self.domain = domain.lower().strip(".")
        self._contexts: dict[tuple[str, str, str], str] = {}
        self._lifeforms: dict[tuple[str, str], str] = {}
        self._namespaces: set[str] = set()
        self._names: dict[str, str] = {}
        for entry in sorted(entries, key=lambda one: (one.namespace, one.lifeform, one.position, one.context)):
            self._contexts[entry.namespace, entry.lifeform, entry.context] = entry.address
            self._lifeforms.setdefault((entry.namespace, entry.lifeform), entry.address)
            self._namespaces.add(entry.namespace)
            self._names[entry.address] = self.full_name(entry.namespace, entry.lifeform, entry.context)

    def full_name(self, namespace: str, lifeform: str, context: str) -> str:
        """The name by which everybody knows a context."""
        return f"{context}.{lifeform}.{namespace}.{self.domain}"

    def resolve(self, name: str, *, namespace: str, lifeform: str) -> Resolution:
        """What `name` means to a context of that lifeform. Case and a last dot do not matter (RFC 4343)."""
        plain = name.lower().rstrip(".")
        if plain == self.domain:
            return _EXISTS
        if plain.endswith(f".{self.domain}"):
            return self._resolve_ours(plain[: -len(self.domain) - 1].split("."))
        if "." not in plain:
            # One label is never asked of the world: it would tell it our names, and might get an answer.
            return _found(self._contexts.get((namespace, lifeform, plain)))
        return _FOREIGN

    def name_of(self, address: str) -> str | None:
        """The full name of the context with that address."""
        return self._names.get(address)

    def _resolve_ours(self, labels: list[str]) -> Resolution:
        match labels:
            case [namespace]:
                return _EXISTS if namespace in self._namespaces else _MISSING
            case [lifeform, namespace]:
                return _found(self._lifeforms.get((namespace, lifeform)))
            case [context, lifeform, namespace]:
                return _found(self._contexts.get((namespace, lifeform, context)))
            case _:
                return _MISSING


def address_of_reverse(name: str) -> str | None:
    """The address in a name of the reverse tree (RFC 1035, 3.5); None when it is none."""
    plain = name.lower().rstrip(".")
    if not plain.endswith(_REVERSE):
        return None
    octets = plain.removesuffix(_REVERSE).split(".")
    try:
        return str(IPv4Address(".".join(reversed(octets))))
    except ValueError:
        return None


def search_path(namespace: str, lifeform: str, domain: str = "soup.internal") -> tuple[str, ...]:
    """The search list of a context: its own lifeform, its namespace, the soup."""
    return (f"{lifeform}.{namespace}.{domain}", f"{namespace}.{domain}", domain)


def _found(address: str | None) -> Resolution:
    return _MISSING if address is None else Resolution(Outcome.FOUND, (address,))
