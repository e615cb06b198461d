"""Keeps a template here for each Template object, and says in its status what is here of it.

Every node builds for itself. The status is everybody's: each node writes its own line, and the phase that follows from all.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import msgspec

from primordia.kit.deadline import wait_event
from primordia.kit.errors import NotFoundError, PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.forks.pool import ForkPool
from primordia.node.forks.shape import Recipe, plain_recipe, recipe_of, shape_of
from primordia.node.forks.store import Stored
from primordia.node.forks.templates import Templates
from primordia.node.services import Services
from primordia.node.status import StatusWriter
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.resources import Node, Resources, Template, TemplateNode, TemplateSpec, TemplateStatus

log = logging.getLogger(__name__)

_GATHER_S = 0.5
_COLLECT_S = 600.0


@dataclass
class _Kept:
    """A Template object, and what is here of it."""

    template: Template
    task: asyncio.Task[None]
    recipe: Recipe | None = None
    stored: Stored | None = None
    phase: str = "Pending"
    message: str = ""


class TemplateKeeper:
    """Follows the Template objects of the soup for one node."""

    def __init__(
        self, services: Services, informers: Informers, writer: StatusWriter, templates: Templates, pool: ForkPool
    ) -> None:
        self._services = services
        self._informer = informers.of(Template)
        self._nodes = informers.of(Node)
        self._writer = writer
        self._templates = templates
        self._pool = pool
        self._kept: dict[str, _Kept] = {}
        self._tasks = TaskSet("template")
        templates.report = self._report

    async def run(self) -> None:
        """Keep them until cancelled."""
        try:
            self._informer.subscribe(self._on_template)
            while True:
                await wait_event(self._services.clock, self._pool.changed, _COLLECT_S)
                self._pool.changed.clear()
                # A burst of claims is one change of the status.
                await self._services.clock.sleep(_GATHER_S)
                for kept in self._kept.values():
                    self._tell(kept)
        finally:
            self._informer.unsubscribe(self._on_template)
            await self._tasks.close()

    def ready(self, name: str) -> tuple[Recipe, Stored] | None:
        """The template of that name as it is kept here, where it is ready: no claim has to look for it."""
        template = self._informer.get(name)
        kept = self._kept.get(template.metadata.uid) if template is not None else None
        if kept is None or kept.phase != "Ready" or kept.recipe is None or kept.stored is None:
            return None
        return kept.recipe, kept.stored

    async def recipe(self, name: str) -> Recipe:
        """What boxes of that name are made from: a Template, else an image, in which then nothing has run.

        Raises NotFoundError, and what making the image raises.
        """
        template = self._informer.get(name)
        if template is not None and template.metadata.deletion_timestamp is None:
            return await self._recipe(template)
        try:
            root = await self._services.image_keeper.root(name, _silent)
        except NotFoundError as error:
            raise NotFoundError(
                f"There is no template {name!r}, and no image of that name.", remedy="See `primordia template ls`."
            ) from error
        return plain_recipe(shape_of(name, root, Resources(), self._services.settings.scratch_bytes), root.config)

    def wanted(self) -> set[str]:
        """The templates that objects ask for, by digest."""
        return {kept.stored.digest for kept in self._kept.values() if kept.stored is not None}

    # ------------------------------------------------------------ inside

    async def _recipe(self, template: Template) -> Recipe:
        spec = template.spec
        root = await self._services.image_keeper.root(spec.image, _silent)
        return recipe_of(template.metadata.name, spec, root, self._services.settings.scratch_bytes)

    def _on_template(self, change: Change[Template]) -> None:
        about = change.new or change.old
        assert about is not None
        uid, new = about.metadata.uid, change.new
        kept = self._kept.get(uid)
        if new is None or new.metadata.deletion_timestamp is not None:
            if kept is not None:
                kept.task.cancel()
                del self._kept[uid]
                self._tasks.start(self._forget(kept), name=f"forget {about.metadata.name}")
            return
        if kept is not None and kept.template.spec == new.spec:
            kept.template = new
            return
        if kept is not None:
            kept.task.cancel()
        task = self._tasks.start(self._keep(uid, new.spec), name=new.metadata.name)
        self._kept[uid] = _Kept(new, task, stored=kept.stored if kept is not None else None)

    async def _keep(self, uid: str, spec: TemplateSpec) -> None:
        """Have it built, and its pool filled, for as long as it is wanted; again when it is found to be damaged."""
        await asyncio.sleep(0)
        kept = self._kept[uid]
        while True:
            kept.phase, kept.message = "Building", ""
            self._tell(kept)
            try:
                recipe = await self._recipe(kept.template)
                stored = await self._templates.ensure(recipe)
            except PrimordiaError as error:
                kept.phase, kept.message = "Failed", str(error)
                self._tell(kept)
                self._services.events.record(kept.template, error.reason, str(error), warning=True)
                await self._services.clock.sleep(self._services.settings.build_retry_s)
                continue
            old, kept.recipe, kept.stored, kept.phase = kept.stored, recipe, stored, "Ready"
            self._templates.used(recipe, stored, spec.warm.min, spec.warm.most)
            self._tell(kept)
            self._services.events.record(kept.template, "TemplateReady", f"It is on node {self._services.config.name}.")
            if old is not None and old.digest not in self.wanted():
                await self._templates.drop(old.digest)
            await self._templates.gone(stored)
            kept.phase = "Building"

    async def _forget(self, kept: _Kept) -> None:
        if kept.stored is not None and kept.stored.digest not in self.wanted():
            await self._templates.drop(kept.stored.digest)

    def _tell(self, kept: _Kept) -> None:
        generation = kept.template.metadata.generation
        node = TemplateNode(node=self._services.config.name)
        if kept.stored is not None:
            digest, size = kept.stored.digest, kept.stored.size_bytes
            node = TemplateNode(node=node.node, digest=digest, warm=self._pool.warm(digest), size_bytes=size)
        status = TemplateStatus(
            phase=kept.phase, message=kept.message, observed_generation=generation, nodes=(node,) if node.digest else ()
        )
        self._writer.put(kept.template, status, self._amended)

    def _amended(self, stored: TemplateStatus, wanted: TemplateStatus) -> TemplateStatus:
        """Our line among the others'; it is Ready where it is ready, whatever becomes of it elsewhere."""
        same = stored.observed_generation == wanted.observed_generation
        own = self._services.config.name
        others = tuple(each for each in stored.nodes if each.node != own) if same else ()
        nodes = tuple(sorted((*others, *wanted.nodes), key=lambda each: each.node))
        if others and wanted.phase != "Ready":
            message = f"On node {own}: {wanted.message}" if wanted.message else stored.message
            return msgspec.structs.replace(stored, nodes=nodes, message=message)
        return msgspec.structs.replace(wanted, nodes=nodes, conditions=stored.conditions)

    def _report(self, reason: str, message: str, warning: bool) -> None:
        """What concerns no object of its own is told of the node."""
        log.log(logging.WARNING if warning else logging.INFO, "%s: %s", reason, message)
        node = self._nodes.get(self._services.config.name)
        if node is not None:
            self._services.events.record(node, reason, message, warning=warning)


def _silent(words: str) -> None:
    """Progress that nobody waits for."""
