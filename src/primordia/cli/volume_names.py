"""Which volumes a name means: a volume's own, or its lifeform's, which is the one that people remember."""

from __future__ import annotations

from collections.abc import Iterable

from primordia.client.aio import AsyncClient
from primordia.kit.errors import NotFoundError, PermanentError
from primordia.wire.resources import Volume


async def volumes_named(soup: AsyncClient, name: str, namespace: str) -> list[str]:
    """The volumes meant; all of the namespace without a name. Raises NotFoundError."""
    return meant((await soup.list(Volume, namespace=namespace)).items, name)


async def volume_named(soup: AsyncClient, name: str, namespace: str) -> str:
    """The one volume meant. Raises NotFoundError, and PermanentError when a lifeform has several."""
    found = await volumes_named(soup, name, namespace)
    if len(found) > 1:
        raise PermanentError(f"Lifeform {name} has {len(found)} volumes.", remedy=f"Name one: {', '.join(found)}.")
    return found[0]


def meant(there: Iterable[Volume], name: str) -> list[str]:
    """A volume of that name, else those of the lifeform of that name; all without a name. Raises NotFoundError. Pure."""
    volumes = list(there)
    chosen = [each for each in volumes if name in ("", each.metadata.name)]
    chosen = chosen or [each for each in volumes if each.spec.lifeform == name]
    if not chosen and name:
        raise NotFoundError(
            f"There is no volume {name}, and no lifeform of that name with data.",
            remedy="`primordia volume ls -A` shows all volumes.",
        )
    return [each.metadata.name for each in chosen]
