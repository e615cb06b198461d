"""Lifeforms start as forks of a plain template: one of their image and size, in which nothing of the image has run.

A start never waits for a template. Where there is none the context boots, and the template is made afterwards, for the next.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from primordia.domain.addresses import mac_of
from primordia.kit.deadline import within
from primordia.kit.errors import PrimordiaError, TemporaryError
from primordia.kit.ids import new_uid
from primordia.node.execute import Executor
from primordia.node.forks.forking import Fork, Forker, Image
from primordia.node.forks.identity import Person, check_confirmed, identity_of
from primordia.node.forks.pool import ForkPool
from primordia.node.forks.shape import Recipe, Shape, plain_recipe, shape_of
from primordia.node.forks.standby import Standby
from primordia.node.forks.suspending import Kept, KeptMemories
from primordia.node.forks.templates import Templates
from primordia.node.live import Live
from primordia.node.machines import scratch_of
from primordia.node.program import filesystem_of, mounts_of
from primordia.node.services import Services, Way
from primordia.ports.guest import SecretFile
from primordia.ports.images import RootImage
from primordia.ports.vmm import Drive
from primordia.wire.resources import Context

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Hand:
    """What a way was taken for: a fork that waited, or the image that one is to be made of."""

    recipe: Recipe
    image: Image
    fork: Fork | None


class LifeformStarts:
    """services.ForkStarts."""

    def __init__(
        self,
        services: Services,
        executor: Executor,
        forker: Forker,
        templates: Templates,
        pool: ForkPool,
        memories: KeptMemories,
        standby: Standby,
    ) -> None:
        self._services = services
        self._executor = executor
        self._forker = forker
        self._templates = templates
        self._pool = pool
        self._memories = memories
        self._standby = standby

    async def way(self, live: Live, context: Context, root: RootImage) -> Way | None:
        """See services.ForkStarts."""
        if not self._services.settings.plain_templates:
            return None
        recipe = self._recipe(context, root)
        try:
            stored = await self._templates.find(recipe)
        except PrimordiaError as error:
            log.warning("%s: no template can be used: %s", live.title, error)
            return None
        if stored is None:
            return None
        count = self._warm(recipe)
        self._templates.used(recipe, stored, count, count)
        image = Image(stored.digest, stored.folder, stored.scratch)
        fork = self._pool.take(stored.digest, to_start=True)
        if fork is None:
            uid = new_uid()
            try:
                slot = self._services.addresses.give(uid)
            except PrimordiaError as error:
                log.warning("%s: no fork has an address: %s", live.title, error)
                return None
            return Way(uid, slot, image.name, False, _Hand(recipe, image, None))
        # Without a wait in between: a start that is broken off from here on is seen to hold a microVM.
        self._hold(live, fork)
        return Way(fork.uid, fork.address, image.name, True, _Hand(recipe, image, fork))

    async def way_on(self, live: Live, root: RootImage) -> Way | str:
        """See services.ForkStarts."""
        kept = await self._memories.find(live, root)
        if isinstance(kept, str):
            return kept
        uid = new_uid()
        try:
            slot = self._services.addresses.give(uid)
        except PrimordiaError as error:
            return f"no fork has an address: {error.message}"
        return Way(uid, slot, kept.stored.digest, False, kept, goes_on=True)

    async def bring_up(self, live: Live, way: Way, files: tuple[SecretFile, ...]) -> None:
        """See services.ForkStarts."""
        hand = way.hand
        if isinstance(hand, Kept):
            image = await self._memories.take(hand)
            try:
                fork = await self._made(live, way, image, hand.shape)
                await self._become(live, fork, replace(self._person(live, files), mounts=()), settle=True)
            finally:
                await self._memories.drop(image)
            return
        assert isinstance(hand, _Hand)
        fork = hand.fork or await self._made(live, way, hand.image, hand.recipe.shape)
        await self._become(live, fork, self._person(live, files), settle=False)

    async def _made(self, live: Live, way: Way, image: Image, shape: Shape) -> Fork:
        data = live.data.path if live.data is not None else None
        fork = await self._forker.make(way.machine, image, shape, data)
        self._hold(live, fork)
        return fork

    async def _become(self, live: Live, fork: Fork, person: Person, *, settle: bool) -> None:
        """The fork is the context's, and has confirmed it. With `settle` the network knows it before its programs go on."""
        services, address = self._services, live.record.address
        fork.scratch.rename(scratch_of(services, live))
        await services.network.attach_tap(fork.uid, address, mac_of(address))
        services.network_keeper.changed()
        services.network_keeper.hurry()  # it takes as long as the guest, beside which it happens
        deadline_s = services.settings.call_deadline_s
        if settle:
            await within(services.clock, deadline_s, services.network_keeper.settled())
        try:
            said = await within(services.clock, deadline_s, self._wake_up(fork, person, live.data))
        except TimeoutError as error:
            raise TemporaryError(f"The guest did not confirm its identity within {deadline_s:g} s.") from error
        check_confirmed(person, said)
        live.confirmed = tuple(said)

    async def prepare(self, context: Context, root: RootImage) -> None:
        """See services.ForkStarts."""
        if not self._services.settings.plain_templates:
            return
        recipe = self._recipe(context, root)
        try:
            stored = await self._templates.ensure(recipe)
        except PrimordiaError as error:
            log.warning("%s will have to boot: %s", context.metadata.name, error)
            return
        count = self._warm(recipe)
        self._templates.used(recipe, stored, count, count)

    def booted(self, context: Context, root: RootImage) -> None:
        """See services.ForkStarts."""
        if self._services.settings.plain_templates:
            recipe = self._recipe(context, root)
            count = self._warm(recipe)
            self._templates.build_later(recipe, (count, count))

    # ------------------------------------------------------------ inside

    def _recipe(self, context: Context, root: RootImage) -> Recipe:
        template = context.spec.template
        data = filesystem_of(context.spec)
        shape = shape_of(template.image, root, template.resources, self._services.settings.scratch_bytes, data=data)
        return plain_recipe(shape, root.config)

    def _warm(self, recipe: Recipe) -> int:
        """How many forks wait. One with data only where copies of such data are: elsewhere a start of one is rare."""
        return self._standby.warm(recipe.shape) if recipe.shape.data else self._services.settings.plain_warm

    def _hold(self, live: Live, fork: Fork) -> None:
        self._forker.given_away(fork)
        self._executor.machines.hold(live, fork.machine, fork.uid)
        self._executor.links.serve(live, fork.guest)
        live.guest = fork.guest
        live.wake()

    def _person(self, live: Live, files: tuple[SecretFile, ...]) -> Person:
        spec, domain = live.spec, self._services.config.domain
        namespace = live.record.namespace
        live.told = dict(live.peers)
        return Person(
            live.uid,
            f"{spec.lifeform}-{spec.template.name}",
            live.record.address,
            hosts=live.told,
            search=(f"{spec.lifeform}.{namespace}.{domain}", f"{namespace}.{domain}", domain),
            secrets=files,
            mounts=mounts_of(spec),
        )

    async def _wake_up(self, fork: Fork, person: Person, data: Drive | None) -> tuple[str, ...]:
        if fork.warm:
            if data is not None:
                await fork.machine.replace_drive(data)
            await fork.machine.resume()
        return tuple(await fork.guest.identify(identity_of(self._services, person)))
