"""What every command that talks to a soup shares: the connection, and how kinds and targets are written on a command line."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from primordia.client.aio import AsyncClient, connect
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.wire.kinds import find_kind
from primordia.wire.resources import Context, Lifeform, Resource

_CONTEXTS = ("context", "contexts", "ctx")
_LIFEFORMS = ("lifeforms", "lf")


def client(options: Namespace) -> AsyncClient:
    """A client by `--client-config` and `--namespace`, else by the environment and the user's own configuration."""
    return connect(options.client_config, namespace=getattr(options, "namespace", ""))


def references(kind: str, names: list[str]) -> list[tuple[type[Resource], str]]:
    """`KIND NAME...`, or `KIND/NAME...`, as kinds and names; a kind alone gives an empty name.

    Raises PermanentError for a mixture that means nothing.
    """
    words = [kind, *names]
    if any("/" in word for word in words):
        found = []
        for word in words:
            before, slash, name = word.partition("/")
            if not slash or not name or "/" in name:
                raise PermanentError(f"{word!r} is no KIND/NAME.", remedy="Write `KIND NAME...` or `KIND/NAME...`, not both.")
            found.append((find_kind(before), name))
        return found
    kinds = [find_kind(word) for word in kind.split(",") if word]
    if names and len(kinds) > 1:
        raise PermanentError("Names belong to one kind only.", remedy="Write `KIND/NAME KIND/NAME`.")
    return [(kinds[0], name) for name in names] if names else [(each, "") for each in kinds]


@dataclass(frozen=True)
class Inside:
    """A context by its lifeform; `context` empty is the first. `alone`: a box or fork, by the name of its own."""

    name: str
    context: str = ""
    alone: bool = False

    def arguments(self, namespace: str) -> dict[str, Any]:
        """As the client's methods take them, behind the name."""
        return {"kind": Context if self.alone else Lifeform, "namespace": namespace, "container": self.context}


def inside(target: str, context: str = "") -> Inside:
    """`NAME[/CONTEXT]`, or `context/NAME` for a box or fork. Raises PermanentError."""
    kind, slash, rest = target.partition("/")
    alone = bool(slash) and kind in _CONTEXTS
    name, slash, part = (rest if slash and kind in (*_CONTEXTS, *_LIFEFORMS) else target).partition("/")
    if not name or "/" in part or (slash and (not part or alone)):
        raise PermanentError(f"{target!r} names no context.", remedy="Write NAME or NAME/CONTEXT, or context/NAME for a box.")
    if part and context and part != context:
        raise PermanentError(f"{target!r} and --context {context} name two contexts.", remedy="Leave one out.")
    return Inside(name, part or context, alone)


async def found(soup: AsyncClient, target: Inside, namespace: str = "") -> Inside:
    """The target, as what there is of that name: a plain name may be a lifeform's, or a box's or fork's own.

    Raises NotFoundError when it is nobody's.
    """
    if target.alone or target.context:
        return target
    try:
        await soup.get(Lifeform, target.name, namespace=namespace)
    except NotFoundError:
        with contextlib.suppress(NotFoundError):
            await soup.get(Context, target.name, namespace=namespace)
            return Inside(target.name, alone=True)
        raise
    return target
