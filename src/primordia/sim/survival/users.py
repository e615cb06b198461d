"""Seeded users of a soup whose machines die: they make and delete lifeforms, and their programs sync what must last."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from primordia.kit.clock import Clock
from primordia.kit.errors import AlreadyExistsError, NotFoundError, PrimordiaError
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.sim.survival.daemon import SimDaemon
from primordia.wire.resources import Lifeform, Recovery, Volume
from primordia.wire.volumes import Data, Layout, Replication, SnapshotPolicy

NAMESPACE = "default"
_SYNC_TIMEOUT_S = 15.0


class Users:
    """Act on at most `most` lifeforms. `daemon_of` is the daemon of a node, as its guests reach it."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        rng: random.Random,
        daemon_of: Callable[[str], SimDaemon | None],
        *,
        most: int,
        racks: int,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._daemon_of = daemon_of
        self._most = most
        self._racks = racks
        self.done: Counter[str] = Counter()
        self.loss_allowed: Callable[[str], None] = lambda uid: None
        """Told the uid of each lifeform that may start with less than was promised."""

    async def populate(self) -> None:
        """What runs before anything goes wrong."""
        for number in range(self._most * 3 // 4):
            await self._create(f"l{number}")

    async def run(self, seconds: float, pause_s: float) -> None:
        """Act for that long, on average once in `pause_s`."""
        deeds: dict[str, tuple[int, Callable[[str], Any]]] = {
            "sync": (40, self._sync),
            "scrub": (2, self._scrub),
            "create": (4, self._create),
            "delete": (1, self._delete),
            "suspend": (1, self._suspend),
            "resume": (2, self._resume),
            "new image": (2, self._new_image),
            "mirror": (1, self._mirror),
        }
        end_s = self._clock.boottime() + seconds
        while self._clock.boottime() < end_s:
            await self._clock.sleep(self._rng.expovariate(1 / pause_s))
            words = list(deeds)
            word = self._rng.choices(words, [weight for weight, _ in deeds.values()])[0]
            with contextlib.suppress(PrimordiaError):
                await deeds[word][1](f"l{self._rng.randrange(self._most)}")
                self.done[word] += 1

    # ------------------------------------------------------------ deeds

    async def _sync(self, name: str) -> None:
        """A guest asks for it, and goes on with something else meanwhile."""
        await self.sync_volume(await self._registry.get(Volume, f"{name}.a", NAMESPACE))

    async def sync_volume(self, volume: Volume) -> None:
        """The same of any volume. NotFoundError where nothing could run with it."""
        daemon = self._daemon_of(volume.status.node)
        if daemon is None:
            raise NotFoundError(f"{volume.status.node} has no daemon.")

        async def ask() -> None:
            await daemon.sync(NAMESPACE, volume.metadata.name, _SYNC_TIMEOUT_S)
            self.done["sync returned"] += 1

        daemon.process.tasks.start(_quietly(ask()), name="guest-sync")

    async def _scrub(self, name: str) -> None:
        """Somebody has every copy read back."""
        volume = await self._registry.get(Volume, f"{name}.a", NAMESPACE)
        daemon = self._daemon_of(volume.status.node)
        if daemon is not None:
            daemon.process.tasks.start(_quietly(daemon.scrub(NAMESPACE, volume.metadata.name)), name="scrub")

    async def scrub_all(self) -> None:
        """What is rotten is found in the end."""
        for volume in (await self._registry.list(Volume)).items:
            daemon = self._daemon_of(volume.status.node)
            if daemon is not None:
                await _quietly(daemon.scrub(NAMESPACE, volume.metadata.name))

    async def _create(self, name: str) -> None:
        rng = self._rng
        more: dict[str, Any] = {}
        data: Data | None = None
        if rng.random() < 0.8:
            mirror = rng.choice((None, None, 1, 2, 2))
            acks = 2 if mirror == 2 and rng.random() < 0.4 else 1
            more = {"replication": Replication(layout=Layout(mirror=mirror), acks=acks)}
            data = Data(
                size="1Mi", snapshots=SnapshotPolicy(interval=rng.choice(("2s", "5s", "5s")), last=4, hourly=0, daily=0)
            )
        allow_loss = rng.random() < 0.1
        seeds: tuple[Literal["auto", "local", "network"], ...] = ("auto", "auto", "local", "network")
        seed = rng.choice(seeds)
        more["recovery"] = Recovery(seed=seed, allow_loss=allow_loss, priority=rng.choice((0, 0, 5)))
        names = ("a", "b")[: rng.choice((1, 1, 2))]
        made = make_lifeform(name, *names, memory=rng.choice(("128Mi", "256Mi", "1Gi")), namespace=NAMESPACE, **more)
        contexts = tuple(msgspec.structs.replace(each, data=data) for each in made.spec.contexts)
        made = msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, contexts=contexts))
        with contextlib.suppress(AlreadyExistsError):
            stored = await self._registry.create(made)
            if allow_loss:
                self.loss_allowed(stored.metadata.uid)

    async def _delete(self, name: str) -> None:
        await self._registry.delete(Lifeform, name, NAMESPACE)

    async def _suspend(self, name: str) -> None:
        await self._change(name, lambda spec: {"operating_mode": "Suspended"})

    async def _resume(self, name: str) -> None:
        await self._change(name, lambda spec: {"operating_mode": "Running"})

    async def _new_image(self, name: str) -> None:
        image = f"image-{self._rng.randrange(100)}"
        await self._change(
            name, lambda spec: {"contexts": tuple(msgspec.structs.replace(each, image=image) for each in spec.contexts)}
        )

    async def _mirror(self, name: str) -> None:
        replication = Replication(layout=Layout(mirror=self._rng.choice((1, 2))))
        await self._change(name, lambda spec: {"replication": replication})

    async def _change(self, name: str, fields: Callable[[Any], dict[str, Any]]) -> None:
        def changed(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, spec=msgspec.structs.replace(stored.spec, **fields(stored.spec)))

        await self._registry.mutate(Lifeform, name, NAMESPACE, changed)


async def _quietly(work: Awaitable[None]) -> None:
    """What fails is not told to anybody: who asked tries again, or not."""
    with contextlib.suppress(PrimordiaError):
        await work
