"""What a soup is to be when it is made again from what its nodes kept: pure.

Of one object that several nodes kept, the newest counts: all copies come from one engine, whose revisions order them, and with
them their epochs. Contexts of a lifeform count only where the lifeform is, in its epoch, so that exactly one node goes on with
it. No epoch is raised now, for what runs shall not notice; but every later one lies above all that the old engine can have
given, also of what no node that is left has seen: it begins at the incarnation's own base.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from primordia.node.keeping import kinds_in_order
from primordia.wire.resources import Context, Lifeform, Node, Resource, Soup, Volume
from primordia.wire.volumes import VolumeStatus

EPOCHS_OF_AN_INCARNATION = 1 << 32


@dataclass(frozen=True)
class Remade:
    """`objects` in the order in which they are to be written, the Soup last; `goes_on` are the nodes of which everything that
    runs is wanted as it runs; `notes` are sentences for people."""

    incarnation: int
    objects: tuple[Resource, ...]
    goes_on: frozenset[str]
    notes: tuple[str, ...]


def base_of(incarnation: int) -> int:
    """The epoch below all of an incarnation's; the first one begins at 0."""
    return (incarnation - 1) * EPOCHS_OF_AN_INCARNATION


def remade(kept: Mapping[str, Sequence[Resource]], incarnation: int) -> Remade:
    """The soup, from what each node kept."""
    notes: list[str] = []
    newest = _newest(kept)
    lifeforms = {each.metadata.uid: each for each in newest.values() if isinstance(each, Lifeform)}
    lost: set[str] = set()
    base = base_of(incarnation)
    chosen: list[Resource] = []
    for obj in newest.values():
        if isinstance(obj, Context):
            if not _is_at_home(obj, lifeforms):
                lost.add(obj.spec.node)
                where = f"on {obj.spec.node} in epoch {obj.spec.epoch}"
                notes.append(
                    f"Context {obj.metadata.namespace}/{obj.metadata.name} {where} is not where its lifeform is: it ends."
                )
                continue
            chosen.append(obj)
        elif isinstance(obj, Lifeform):
            status = msgspec.structs.replace(obj.status, epoch_base=base)
            chosen.append(msgspec.structs.replace(obj, status=status))
        elif isinstance(obj, Volume):
            chosen.append(msgspec.structs.replace(obj, status=_volume_status(obj.status, base)))
        elif isinstance(obj, Soup):
            chosen.append(msgspec.structs.replace(obj, status=msgspec.structs.replace(obj.status, incarnation=incarnation)))
        else:
            chosen.append(obj)
    soups = [each for each in chosen if isinstance(each, Soup)]
    others = [each for each in chosen if not isinstance(each, Soup)]
    notes += _absent([each for each in others if isinstance(each, Lifeform)], kept)
    return Remade(incarnation, (*kinds_in_order(others), *soups), frozenset(kept) - lost, tuple(sorted(notes)))


def counts(remade: Remade) -> dict[str, int]:
    """How many objects of each kind."""
    found: dict[str, int] = {}
    for each in remade.objects:
        found[each.KIND] = found.get(each.KIND, 0) + 1
    return found


def _newest(kept: Mapping[str, Sequence[Resource]]) -> dict[tuple[str, str, str], Resource]:
    """Of each object the newest copy; of several that had one name one after another, the last."""
    found: dict[tuple[str, str, str], Resource] = {}
    for objects in kept.values():
        for obj in objects:
            key = (obj.KIND, obj.metadata.namespace, obj.metadata.name)
            known = found.get(key)
            if known is None or _order(obj) > _order(known):
                found[key] = obj
    return found


def _order(obj: Resource) -> tuple[int, int]:
    epoch = obj.status.epoch if isinstance(obj, Lifeform | Volume) else obj.spec.epoch if isinstance(obj, Context) else 0
    version = obj.metadata.resource_version
    return epoch, int(version) if version.isdigit() else 0


def _is_at_home(context: Context, lifeforms: Mapping[str, Lifeform]) -> bool:
    if not context.spec.lifeform_uid or not context.spec.lifeform:
        return True  # a box or fork is nobody's but its node's
    lifeform = lifeforms.get(context.spec.lifeform_uid)
    return lifeform is not None and (lifeform.status.node, lifeform.status.epoch) == (context.spec.node, context.spec.epoch)


def _volume_status(status: VolumeStatus, base: int) -> VolumeStatus:
    """A hand-over that was under way is asked for again by the lifeform's own status, if at all."""
    return msgspec.structs.replace(status, epoch_base=base, handover=None, handed_over=None, copies=())


def _absent(lifeforms: Sequence[Lifeform], kept: Collection[str]) -> list[str]:
    """Lifeforms whose node kept nothing: they are recovered as from a dead node."""
    return [
        f"Lifeform {each.metadata.namespace}/{each.metadata.name} is on {each.status.node}, which is not here: "
        "it waits for that node, or is recovered from a copy."
        for each in lifeforms
        if each.status.node and each.status.node not in kept
    ]


def nodes_of(objects: Sequence[Resource]) -> tuple[str, ...]:
    """The nodes that the soup knew."""
    return tuple(each.metadata.name for each in objects if isinstance(each, Node))
