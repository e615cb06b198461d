"""Claims: a fork of a template, warm if one waits, becomes a box.

A guest that does not confirm who it is may be unlucky once; the next fork is tried, and then it is an error. An empty pool
costs a cold fork, a template that is not here yet the time to build it: neither is an error.
"""

from __future__ import annotations

import logging

from primordia.domain.forklimits import Ask
from primordia.kit.ids import new_uid, suffix
from primordia.node.forks.births import Birth, Births
from primordia.node.forks.expiry import expires_at
from primordia.node.forks.forking import Fork, Forker, Image
from primordia.node.forks.identity import Person, UnconfirmedError
from primordia.node.forks.keeper import TemplateKeeper
from primordia.node.forks.meters import ForkMeters
from primordia.node.forks.pool import ForkPool
from primordia.node.forks.room import ForkRoom
from primordia.node.forks.shape import Recipe, context_template
from primordia.node.forks.store import Stored
from primordia.node.forks.templates import Templates
from primordia.node.program import hooks_of
from primordia.node.services import Services
from primordia.ports.forks import Claimed, ClaimRequest
from primordia.ports.guest import Program
from primordia.wire.meta import LABEL_TEMPLATE, ObjectMeta
from primordia.wire.resources import ContextSpec, LifeformNetwork

log = logging.getLogger(__name__)

_TRIES = 2


class Claims:
    """Makes boxes on one node."""

    def __init__(
        self,
        services: Services,
        keeper: TemplateKeeper,
        templates: Templates,
        pool: ForkPool,
        forker: Forker,
        room: ForkRoom,
        births: Births,
        meters: ForkMeters,
    ) -> None:
        self._services = services
        self._keeper = keeper
        self._templates = templates
        self._pool = pool
        self._forker = forker
        self._room = room
        self._births = births
        self._meters = meters

    async def claim(self, request: ClaimRequest) -> Claimed:
        """A box, its identity confirmed. Raises CapacityError, NotFoundError, AlreadyExistsError, TemporaryError."""
        begin_s = self._services.clock.boottime()
        ready = self._keeper.ready(request.template)
        recipe = ready[0] if ready is not None else await self._keeper.recipe(request.template)
        root = new_uid()
        with self._room.granted(root, Ask(1, 0, recipe.shape.memory_bytes)):
            stored = ready[1] if ready is not None else await self._templates.ensure(recipe)
            for left in reversed(range(_TRIES)):
                fork = self._pool.take(stored.digest) or await self._cold(recipe, stored)
                birth = self._birth(request, recipe, fork, root)
                try:
                    live = await self._births.bear(fork, birth, begin_s)
                except UnconfirmedError as error:
                    self._meters.unconfirmed()
                    log.warning("box %s: %s", birth.metadata.name, error)
                    if not left:
                        raise
                    continue
                break
        took_s = self._services.clock.boottime() - begin_s
        self._meters.claimed(warm=fork.warm, took_s=took_s)
        assert live.context is not None
        how = "waited" if fork.warm else "was made for it"
        self._services.events.record(
            live.context, "Claimed", f"A fork of {recipe.title} that {how}, confirmed after {took_s * 1000:.1f} ms."
        )
        node = self._services.config.name
        return Claimed(birth.metadata.name, birth.uid, node, fork.warm, round(took_s * 1000, 2), live.context)

    # ------------------------------------------------------------ inside

    async def _cold(self, recipe: Recipe, stored: Stored) -> Fork:
        return await self._forker.make(new_uid(), Image(stored.digest, stored.folder, stored.scratch), recipe.shape)

    def _birth(self, request: ClaimRequest, recipe: Recipe, fork: Fork, root: str) -> Birth:
        services, uid = self._services, new_uid()
        name = request.name or f"{request.template}-{suffix()}"
        domain = services.config.domain
        spec = ContextSpec(
            node=services.config.name,
            epoch=0,
            template=context_template(recipe, "box"),
            restart_policy="Never",
            network=LifeformNetwork(egress=request.egress),
            from_template=request.template,
            expires_at=expires_at(services.clock, request.ttl_s),
        )
        labels = {**request.labels, LABEL_TEMPLATE: request.template}
        if request.egress:
            services.network_keeper.changed()
        program = Program((), env=recipe.program.env, working_dir=recipe.program.working_dir, user=recipe.program.user)
        hooks = hooks_of(recipe.lifecycle, program) if recipe.is_warm else ()
        return Birth(
            uid=uid,
            metadata=ObjectMeta(name=name, namespace=request.namespace, labels=labels),
            spec=spec,
            because="Claimed",
            person=Person(uid, name, fork.address, search=(f"{request.namespace}.{domain}", domain), hooks=hooks),
            program=program,
            image_digest=recipe.shape.digest,
            root=root,
            main_runs=recipe.is_warm,
            ttl_s=request.ttl_s,
            settle=request.egress,
        )
