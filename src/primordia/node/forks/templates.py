"""Which templates this node keeps: those that Template objects ask for, and a plain one for each image and size in use.

A template is asked for by what it is made of (a recipe); its key says whether one that lies here may be used. What is not
here is built, one at a time, in the background; whoever cannot wait boots. A build that failed is tried again after a
while, and told as it is.

`ensure` is the seam where a template will be fetched from a node that has it: what arrives is verified as what lies here is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from primordia.kit.clock import Clock
from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.forks.building import Builder
from primordia.node.forks.pool import ForkPool
from primordia.node.forks.shape import Recipe
from primordia.node.forks.store import Stored, TemplateStore, digest_of
from primordia.node.settings import NodeSettings

log = logging.getLogger(__name__)

Report = Callable[[str, str, bool], None]
"""Tells people of a template: a reason, a sentence, and whether it is a warning."""


@dataclass
class _Use:
    """When a template was last asked for, in boot-time seconds; `recipe` is None for one that only lies here."""

    recipe: Recipe | None
    stored: Stored
    last_s: float
    warm: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Failure:
    error: PrimordiaError
    again_s: float


class Templates:
    """The templates of one node, by recipe."""

    def __init__(
        self, store: TemplateStore, builder: Builder, pool: Callable[[], ForkPool], clock: Clock, settings: NodeSettings
    ) -> None:
        self._store = store
        self._builder = builder
        self._pool = pool
        self._clock = clock
        self._settings = settings
        self._tasks = TaskSet("templates")
        self._building: dict[str, asyncio.Task[Stored | PrimordiaError]] = {}
        self._failures: dict[str, _Failure] = {}
        self._used: dict[str, _Use] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self.report: Report = _to_log

    async def find(self, recipe: Recipe) -> Stored | None:
        """The template of the recipe, verified; None when this node has none. Raises what `Vmm.image_key` raises."""
        stored = await self._store.find(await self._builder.key_of(recipe))
        if stored is not None:
            self._note_use(recipe, stored)
        return stored

    async def ensure(self, recipe: Recipe) -> Stored:
        """The template of the recipe, built if need be; who asks for the same at once waits for the same build.

        Raises PrimordiaError naming why it cannot be built; a failure is remembered for a while.
        """
        key = await self._builder.key_of(recipe)
        stored = await self._store.find(key)
        if stored is None:
            built = await asyncio.shield(self._build(digest_of(key), recipe))
            if isinstance(built, PrimordiaError):
                raise built
            stored = built
        self._note_use(recipe, stored)
        return stored

    def build_later(self, recipe: Recipe, warm: tuple[int, int]) -> None:
        """Have it built in the background, if it is not there, and so many forks wait for who comes next.

        Never raises: a build that fails is reported.
        """
        self._tasks.start(self._try(recipe, warm), name=recipe.title)

    def used(self, recipe: Recipe, stored: Stored, minimum: int, maximum: int) -> None:
        """Keep so many forks of it waiting."""
        self._note_use(recipe, stored, warm=(minimum, maximum))
        self._pool().want(stored, recipe.shape, minimum, maximum)

    async def distrust(self, digest: str, error: PrimordiaError) -> None:
        """Forks of it cannot be made: read it again, which puts it aside and makes it anew if it is not what it was."""
        use = self._used.get(digest)
        if use is None:
            await self._pool().forget(digest)
            return
        await self._store.distrust(use.stored, error.message)
        if await self._store.find(use.stored.key) is None:
            await self.drop(digest)
            if use.recipe is not None:
                self.build_later(use.recipe, use.warm)

    async def drop(self, digest: str) -> None:
        """It is no more: nothing waits for it."""
        self._used.pop(digest, None)
        self._gone.pop(digest, asyncio.Event()).set()
        await self._pool().forget(digest)

    async def gone(self, stored: Stored) -> None:
        """Wait until that template is no more."""
        await self._gone.setdefault(stored.digest, asyncio.Event()).wait()

    async def collect(self, wanted: set[str], referenced: set[str]) -> None:
        """Delete what nothing has used for long. `wanted` are those of Template objects, `referenced` those of microVMs."""
        now = self._clock.boottime()
        for stored in self._store.all():
            use = self._used.setdefault(stored.digest, _Use(None, stored, now))
            idle_s = now - use.last_s
            if stored.digest in wanted:
                continue
            if idle_s > self._settings.plain_unused_s:
                await self._pool().forget(stored.digest)
            if idle_s > self._settings.template_unused_s and stored.digest not in referenced:
                log.info("template %s has not been used for %d s and is deleted", stored.digest, idle_s)
                await self.drop(stored.digest)
                await self._store.remove(stored)

    async def close(self) -> None:
        """End the builds under way; nothing of them is left."""
        await self._tasks.close()

    # ------------------------------------------------------------ inside

    def _note_use(self, recipe: Recipe, stored: Stored, *, warm: tuple[int, int] | None = None) -> None:
        before = self._used.get(stored.digest)
        kept = before.warm if before is not None else (0, 0)
        self._used[stored.digest] = _Use(recipe, stored, self._clock.boottime(), kept if warm is None else warm)

    def _build(self, name: str, recipe: Recipe) -> asyncio.Task[Stored | PrimordiaError]:
        """The build under way for that key, or a new one. Raises the error of one that failed a moment ago."""
        task = self._building.get(name)
        if task is not None:
            return task
        failure = self._failures.get(name)
        if failure is not None and self._clock.boottime() < failure.again_s:
            raise failure.error
        task = self._building[name] = self._tasks.start(self._build_once(name, recipe), name=f"build {recipe.title}")
        return task

    async def _build_once(self, name: str, recipe: Recipe) -> Stored | PrimordiaError:
        """The template, or why there is none: an error that nobody waits for is no bug to be logged with its trace."""
        begin_s = self._clock.boottime()
        try:
            stored = await self._builder.build(recipe)
        except PrimordiaError as error:
            self._failures[name] = _Failure(error, self._clock.boottime() + self._settings.build_retry_s)
            self.report("TemplateBuildFailed", str(error), True)
            return error
        finally:
            self._building.pop(name, None)
        self._failures.pop(name, None)
        took_s = self._clock.boottime() - begin_s
        self.report("TemplateBuilt", f"The template of {recipe.title} was frozen after {took_s:.1f} s: {stored.digest}.", False)
        return stored

    async def _try(self, recipe: Recipe, warm: tuple[int, int]) -> None:
        try:
            stored = await self.ensure(recipe)
        except PrimordiaError as error:
            log.warning("no template of %s: %s", recipe.title, error)
        else:
            self.used(recipe, stored, *warm)


def _to_log(reason: str, message: str, warning: bool) -> None:
    log.log(logging.WARNING if warning else logging.INFO, "%s: %s", reason, message)
