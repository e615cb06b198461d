"""Templates of what this node may have to take over: it holds copies of a lifeform's data, and is ready to start it as a fork.

When a node dies, whoever goes on with its lifeforms should not have to fetch an image and boot first. So image and plain
template of each context of such a lifeform are made beforehand: one after the other, and when nothing has changed for a
moment, for what runs comes first. A failure is no more than a slower start, and is tried again now and then.

What lies here already is looked at without a wait: a template is read and verified once in a daemon's life, and that, too, is
not to be done while somebody waits for a lifeform. Of those that most lifeforms would need, a fork waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import NoReturn

from primordia.kit.deadline import wait_event
from primordia.kit.errors import PrimordiaError
from primordia.node.forks.shape import Recipe, Shape, plain_recipe, shape_of
from primordia.node.forks.store import Stored
from primordia.node.forks.templates import Templates
from primordia.node.services import Services
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import ContextTemplate, Lifeform, Volume

log = logging.getLogger(__name__)

_CALM_S = 2.0
_LONGEST_S = 10.0
"""Somewhere in a large soup something changes all the time; so long it is waited for a calm moment."""
_AGAIN_S = 300.0
"""Also what keeps them from being collected as unused."""
_MOST_WARM = 4


class Standby:
    """One node's. It finds what to prepare in the caches alone."""

    def __init__(self, services: Services, informers: Informers, templates: Templates) -> None:
        self._services = services
        self._templates = templates
        self._volumes = informers.of(Volume)
        self._lifeforms = informers.of(Lifeform)
        self._node = services.config.name
        self._wake = asyncio.Event()
        self._told: dict[str, str] = {}
        self._warm: dict[Shape, tuple[Recipe, Stored]] = {}

    def warm(self, shape: Shape) -> int:
        """How many forks of that shape are to wait for a takeover."""
        return self._services.settings.plain_warm if shape in self._warm else 0

    async def run(self) -> NoReturn:
        """Prepare until cancelled."""
        self._volumes.subscribe(self._on_volume)
        self._lifeforms.subscribe(self._on_lifeform)
        try:
            while True:
                await wait_event(self._services.clock, self._wake, _AGAIN_S)
                for title, template in self.wanted().items():
                    await self._prepare(title, template, build=False)
                await self._calm()
                found = [await self._prepare(title, template, build=True) for title, template in self.wanted().items()]
                self._keep_warm([each for each in found if each is not None][:_MOST_WARM])
        finally:
            self._volumes.unsubscribe(self._on_volume)
            self._lifeforms.unsubscribe(self._on_lifeform)

    async def _calm(self) -> None:
        """Wait until nothing has changed for a moment."""
        clock = self._services.clock
        end_s = clock.boottime() + _LONGEST_S
        while self._wake.is_set() and clock.boottime() < end_s:
            self._wake.clear()
            await clock.sleep(_CALM_S)

    def wanted(self) -> dict[str, ContextTemplate]:
        """The contexts of the lifeforms of whose data a copy is to be here, the commonest first; of equal ones one."""
        found: dict[str, ContextTemplate] = {}
        counts: Counter[str] = Counter()
        for volume in self._volumes.items():
            if self._node not in volume.status.replicas:
                continue
            lifeform = self._lifeforms.get(volume.spec.lifeform, volume.metadata.namespace) if volume.spec.lifeform else None
            for template in lifeform.spec.contexts if lifeform is not None else ():
                size = template.resources
                title = f"{template.image} {size.cpu} {size.memory} {_data_of(template)}"
                found[title] = template
                counts[title] += 1
        return {title: found[title] for title, _ in counts.most_common()}

    # ------------------------------------------------------------ inside

    def _on_volume(self, change: Change[Volume]) -> None:
        old, new = change.old, change.new
        if new is not None and self._node in new.status.replicas and (old is None or self._node not in old.status.replicas):
            self._wake.set()

    def _on_lifeform(self, change: Change[Lifeform]) -> None:
        old, new = change.old, change.new
        if new is not None and (old is None or old.spec.contexts != new.spec.contexts):
            self._wake.set()

    def _keep_warm(self, wanted: list[tuple[Recipe, Stored]]) -> None:
        """Have a fork of each of these wait, and none of the others any more."""
        before, self._warm = self._warm, {recipe.shape: (recipe, stored) for recipe, stored in wanted}
        for shape, (recipe, stored) in (before | self._warm).items():
            count = self.warm(shape)
            self._templates.used(recipe, stored, count, count)

    async def _prepare(self, title: str, template: ContextTemplate, *, build: bool) -> tuple[Recipe, Stored] | None:
        """Its template, where it is there in the end."""
        services = self._services
        try:
            root = await services.image_keeper.root(template.image, lambda _: None)
            shape = shape_of(template.image, root, template.resources, services.settings.scratch_bytes, data=_data_of(template))
            recipe = plain_recipe(shape, root.config)
            stored = await (self._templates.ensure(recipe) if build else self._templates.find(recipe))
            self._told.pop(title, None)
            return None if stored is None else (recipe, stored)
        except (PrimordiaError, ValueError) as error:
            if self._told.get(title) != str(error):
                self._told[title] = str(error)
                log.warning("what is not prepared for a failover: %s: %s", title, error)
            return None


def _data_of(template: ContextTemplate) -> str:
    return template.data.filesystem if template.data is not None else ""
