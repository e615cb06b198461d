"""Templates for measuring, and claims from them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from primordia.bench import lifeforms
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.client.templates import template_settled
from primordia.kit import ids
from primordia.kit.errors import PrimordiaError
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Resources, Template, TemplateSpec, WarmRange, WarmUp

IMPORTS = "import asyncio, concurrent.futures, decimal, email, http.client, inspect, json, sqlite3, unittest, xml.dom.minidom"
RESULT = "json.loads(json.dumps(str(decimal.Decimal(1) / 7)))"
"""What the imports are used for; a program's first result."""

_MADE_S = 600.0
_FULL_S = 120.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class Subject:
    """What is forked. `suffix` ends the names of its figures."""

    image: str
    suffix: str = ""
    python: str = ""

    def spec(self, waiting: int) -> TemplateSpec:
        """As a template of the benchmarks' size, with so many forks that wait."""
        return TemplateSpec(
            image=self.image,
            warm_up=WarmUp(python=self.python) if self.python else None,
            resources=Resources(cpu="1", memory=lifeforms.MEMORY),
            warm=WarmRange(min=waiting, max=waiting),
        )


BUSYBOX = Subject("busybox")
PYTHON = Subject("python", "_python", IMPORTS)


@contextlib.asynccontextmanager
async def made(client: AsyncClient, subject: Subject, waiting: int = 0) -> AsyncIterator[str]:
    """The name of a template, ready, with so many forks that wait; deleted at the end."""
    name = f"bench-{ids.suffix()}"
    try:
        await keep_waiting(client, name, subject, waiting)
        yield name
    finally:
        await client.delete(Template, name)
        await client.wait(Template, name, answers.deleted, timeout_s=_FULL_S)


async def keep_waiting(client: AsyncClient, name: str, subject: Subject, waiting: int) -> None:
    """Make the template or change how many of it wait, and wait until they do."""
    await client.apply(Template(metadata=ObjectMeta(name=name), spec=subject.spec(waiting)))
    await client.wait(Template, name, template_settled, timeout_s=_MADE_S)
    await full(client, name, waiting)


async def full(client: AsyncClient, name: str, waiting: int) -> Template:
    """Wait until so many forks of it wait. Raises PrimordiaError when they do not in two minutes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FULL_S):
            while True:
                found = await client.get(Template, name)
                if sum(node.warm for node in found.status.nodes) >= waiting:
                    return found
                await asyncio.sleep(_LOOK_S)
    raise PrimordiaError(
        f"{waiting} forks of template {name} do not wait.", remedy="The node has no room for them, or its log says why."
    )
