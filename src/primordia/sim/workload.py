"""A seeded user: creates, scales, changes, suspends and deletes lifeforms, some of them unreasonable."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import msgspec

from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.wire.meta import ANNOTATION_MOVE, LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import ContextTemplate, LabelSelector, Lifeform, Resources, Volume
from primordia.wire.volumes import Data, Layout, Replication

NAMESPACE = "default"
_APPS = ("shop", "billing", "mail", "search")
_MEMORY = ("64Mi", "128Mi", "256Mi", "512Mi", "1Gi", "2Gi")
_DATA = ("512Mi", "1Gi", "2Gi", "3Gi", "100Gi")
_CPU = ("100m", "250m", "500m", "1", "2")


class User:
    """Acts at random times, on at most `most` lifeforms. `done` counts what was done, by word."""

    def __init__(self, registry: Registry, rng: random.Random, *, most: int, racks: int, segments: int) -> None:
        self._registry = registry
        self._rng = rng
        self._most = most
        self._racks = racks
        self._segments = segments
        self.done: dict[str, int] = {}
        self.destroying: Callable[[str], None] = lambda uid: None
        """Told the uid of each volume just before its end is asked for."""
        self._deeds: dict[str, tuple[int, Callable[[str], Any]]] = {
            "create": (8, self._create),
            "scale": (3, self._scale),
            "resize": (3, self._resize),
            "new image": (2, self._new_image),
            "suspend": (2, self._suspend),
            "resume": (2, self._resume),
            "relabel": (1, self._relabel),
            "delete": (3, self._delete),
            "recreate": (1, self._recreate),
            "force delete": (1, self._force_delete),
            "more data": (2, self._more_data),
            "mirror": (1, self._mirror),
            "restore": (1, self._restore),
            "destroy": (1, self._destroy),
            "move": (3, self._move),
        }

    async def run(self, seconds: float, pause_s: float) -> None:
        """Act for that long, on average once in `pause_s`."""
        clock = self._registry.clock
        end_s = clock.boottime() + seconds
        while clock.boottime() < end_s:
            await clock.sleep(self._rng.expovariate(1 / pause_s))
            await self.act()

    async def act(self) -> None:
        """Do one thing, to one lifeform."""
        words = list(self._deeds)
        word = self._rng.choices(words, [weight for weight, _ in self._deeds.values()])[0]
        with contextlib.suppress(NotFoundError, AlreadyExistsError, ConflictError):
            await self._deeds[word][1](f"l{self._rng.randrange(self._most)}")
            self.done[word] = self.done.get(word, 0) + 1

    # ------------------------------------------------------------ deeds

    async def _create(self, name: str) -> None:
        await self._registry.create(self._invent(name))

    async def _scale(self, name: str) -> None:
        names = self._context_names()
        await self._change(name, lambda spec: {"contexts": self._templates(spec, names)})

    async def _resize(self, name: str) -> None:
        resources = Resources(cpu=self._rng.choice(_CPU), memory=self._rng.choice(_MEMORY))
        await self._change(
            name,
            lambda spec: {"contexts": tuple(msgspec.structs.replace(each, resources=resources) for each in spec.contexts)},
        )

    async def _new_image(self, name: str) -> None:
        image = f"image-{self._rng.randrange(100)}"

        def first_changed(spec: Any) -> dict[str, Any]:
            first, *others = spec.contexts
            return {"contexts": (msgspec.structs.replace(first, image=image), *others)}

        await self._change(name, first_changed)

    async def _suspend(self, name: str) -> None:
        await self._change(name, lambda _: {"operating_mode": "Suspended"})

    async def _resume(self, name: str) -> None:
        await self._change(name, lambda _: {"operating_mode": "Running"})

    async def _relabel(self, name: str) -> None:
        labels = {"app": self._rng.choice(_APPS)}

        def changed(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, labels=labels))

        await self._registry.mutate(Lifeform, name, NAMESPACE, changed)

    async def _delete(self, name: str) -> None:
        await self._registry.delete(Lifeform, name, NAMESPACE)

    async def _recreate(self, name: str) -> None:
        await self._registry.delete(Lifeform, name, NAMESPACE)
        await self._registry.clock.sleep(self._rng.uniform(0, 5))
        await self._registry.create(self._invent(name))

    async def _force_delete(self, name: str) -> None:
        """By taking the finalizers away, as people do who are told not to."""

        def freed(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, finalizers=()))

        await self._registry.mutate(Lifeform, name, NAMESPACE, freed)
        await self._registry.delete(Lifeform, name, NAMESPACE)

    async def _more_data(self, name: str) -> None:
        """Larger volumes, and ones for contexts that have none."""
        size = self._rng.choice(_DATA)

        def larger(spec: Any) -> dict[str, Any]:
            return {"contexts": tuple(msgspec.structs.replace(each, data=Data(size=size)) for each in spec.contexts)}

        await self._change(name, larger)

    async def _mirror(self, name: str) -> None:
        replication = Replication(layout=Layout(mirror=self._rng.choice((0, 1, 2, 3))))
        await self._change(name, lambda _: {"replication": replication})

    async def _restore(self, name: str) -> None:
        """What a node writes that gives a disk an old content: the next epoch."""

        def restored(stored: Volume) -> Volume:
            return msgspec.structs.replace(stored, status=msgspec.structs.replace(stored.status, epoch=stored.status.epoch + 1))

        await self._registry.mutate(Volume, f"{name}.a", NAMESPACE, restored, status=True)

    async def _destroy(self, name: str) -> None:
        """As the API has it: not while a lifeform of that name is there, and only the volume that was looked at."""
        volume = await self._registry.get(Volume, f"{name}.a", NAMESPACE)
        with contextlib.suppress(NotFoundError):
            await self._registry.get(Lifeform, name, NAMESPACE)
            return
        meta = volume.metadata
        self.destroying(meta.uid)
        await self._registry.delete(Volume, meta.name, NAMESPACE, uid=meta.uid, resource_version=meta.resource_version)

    async def _move(self, name: str) -> None:
        """A wish to be elsewhere, or none any more; some are wishes for places that do not exist."""
        rng = self._rng
        places = (
            "elsewhere",
            "elsewhere",
            f"rack/r{rng.randrange(self._racks + 1)}",
            f"segment/s{rng.randrange(self._segments)}",
            "",
        )
        place = rng.choice(places)

        def wished(stored: Lifeform) -> Lifeform:
            annotations = {key: value for key, value in stored.metadata.annotations.items() if key != ANNOTATION_MOVE}
            annotations |= {ANNOTATION_MOVE: place} if place else {}
            return msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, annotations=annotations))

        await self._registry.mutate(Lifeform, name, NAMESPACE, wished)

    # ------------------------------------------------------------ ideas

    async def _change(self, name: str, fields: Callable[[Any], dict[str, Any]]) -> None:
        def changed(stored: Lifeform) -> Lifeform:
            return msgspec.structs.replace(stored, spec=msgspec.structs.replace(stored.spec, **fields(stored.spec)))

        await self._registry.mutate(Lifeform, name, NAMESPACE, changed)

    def _invent(self, name: str) -> Lifeform:
        rng = self._rng
        more: dict[str, Any] = {}
        if rng.random() < 0.2:
            more["node_selector"] = {LABEL_RACK: f"r{rng.randrange(self._racks + 1)}"}
        elif rng.random() < 0.2:
            more["node_selector"] = {LABEL_SEGMENT: f"s{rng.randrange(self._segments)}"}
        if rng.random() < 0.15:
            more["colocate_with"] = LabelSelector(match_labels={"app": rng.choice(_APPS)})
        if rng.random() < 0.15:
            more["restart_policy"] = "Never"
        if rng.random() < 0.1:
            more["operating_mode"] = "Suspended"
        if rng.random() < 0.4:
            more["data"] = rng.choice(_DATA)
        memory = "lots" if rng.random() < 0.02 else "100Gi" if rng.random() < 0.03 else rng.choice(_MEMORY)
        made = make_lifeform(name, *self._context_names(), memory=memory, cpu=rng.choice(_CPU), namespace=NAMESPACE, **more)
        return msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, labels={"app": rng.choice(_APPS)}))

    def _context_names(self) -> tuple[str, ...]:
        return ("a", "b", "c", "d")[: self._rng.choice((1, 1, 2, 2, 3, 4))]

    def _templates(self, spec: Any, names: tuple[str, ...]) -> tuple[ContextTemplate, ...]:
        known = {template.name: template for template in spec.contexts}
        pattern = spec.contexts[0]
        return tuple(known.get(name) or msgspec.structs.replace(pattern, name=name) for name in names)
