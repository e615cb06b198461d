"""What a soup is made again as, from what its nodes kept."""

from __future__ import annotations

import msgspec

from primordia.control.data import next_epoch
from primordia.host.remaking import EPOCHS_OF_AN_INCARNATION, base_of, counts, remade
from primordia.sim.objects import make_lifeform, make_node
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextSpec, ContextTemplate, Lifeform, Resource, Secret, Soup, Volume
from primordia.wire.volumes import Handover, VolumeSpec, VolumeStatus


def stored(obj: Resource, uid: str, version: int) -> Resource:
    meta = msgspec.structs.replace(obj.metadata, uid=uid, resource_version=str(version))
    return msgspec.structs.replace(obj, metadata=meta)


def shop(node: str, epoch: int, version: int, uid: str = "shop-1") -> Resource:
    made = make_lifeform("shop", data="1Gi")
    status = msgspec.structs.replace(made.status, node=node, epoch=epoch)
    return stored(msgspec.structs.replace(made, status=status), uid, version)


def context(node: str, epoch: int, version: int, lifeform_uid: str = "shop-1") -> Resource:
    spec = ContextSpec(
        lifeform="shop" if lifeform_uid else "",
        lifeform_uid=lifeform_uid,
        node=node,
        epoch=epoch,
        template=ContextTemplate(name="main", image="busybox"),
    )
    return stored(Context(metadata=ObjectMeta(name=f"shop.main{epoch}", namespace="default"), spec=spec), f"c{epoch}", version)


def volume(node: str, epoch: int, version: int) -> Resource:
    status = VolumeStatus(node=node, epoch=epoch, handover=Handover(to="n3", epoch=epoch, at="then"))
    made = Volume(metadata=ObjectMeta(name="shop.main", namespace="default"), spec=VolumeSpec(size="1Gi"), status=status)
    return stored(made, "v", version)


SOUP = stored(Soup(metadata=ObjectMeta(name="soup")), "s", 1)


def of(kind: type[Resource], objects: tuple[Resource, ...]) -> list[Resource]:
    return [each for each in objects if isinstance(each, kind)]


def test_the_newest_of_each_counts_and_who_was_left_behind_ends() -> None:
    kept = {
        "n1": [SOUP, shop("n1", 3, 40), context("n1", 3, 41), volume("n1", 3, 42)],
        "n2": [SOUP, shop("n2", 4, 90), context("n2", 4, 91), volume("n2", 4, 92), make_node("n2")],
    }
    plan = remade(kept, 2)
    (lifeform,), (found,), contexts = of(Lifeform, plan.objects), of(Volume, plan.objects), of(Context, plan.objects)
    assert isinstance(lifeform, Lifeform) and isinstance(found, Volume)
    assert (lifeform.status.node, lifeform.status.epoch, lifeform.metadata.uid) == ("n2", 4, "shop-1")
    assert (found.status.node, found.status.epoch, found.status.handover) == ("n2", 4, None)
    assert [each.metadata.uid for each in contexts] == ["c4"]
    assert plan.goes_on == {"n2"}, "what n1 ran is not pardoned"
    assert any("on n1 in epoch 3" in note for note in plan.notes)
    assert isinstance(plan.objects[-1], Soup) and plan.objects[-1].status.incarnation == 2, "for it all others wait"
    assert counts(plan) == {"Soup": 1, "Lifeform": 1, "Context": 1, "Volume": 1, "Node": 1}


def test_later_epochs_are_above_all_that_an_earlier_engine_can_have_given() -> None:
    plan = remade({"n1": [SOUP, shop("n1", 3, 40), volume("n1", 3, 42)]}, 2)
    (lifeform,), (found,) = of(Lifeform, plan.objects), of(Volume, plan.objects)
    assert isinstance(lifeform, Lifeform) and isinstance(found, Volume)
    assert next_epoch(lifeform, {"main": found}) == EPOCHS_OF_AN_INCARNATION + 1
    assert next_epoch(make_lifeform("shop"), {"main": found}) == EPOCHS_OF_AN_INCARNATION + 1, "also for whoever takes it up"
    assert base_of(1) == 0 and base_of(3) == 2 * EPOCHS_OF_AN_INCARNATION


def test_boxes_stay_and_what_is_on_nodes_that_are_not_here_is_said() -> None:
    kept = {
        "n1": [
            SOUP,
            context("n1", 1, 5, lifeform_uid=""),
            shop("n9", 2, 9),
            stored(Secret(metadata=ObjectMeta(name="x")), "x", 3),
        ]
    }
    plan = remade(kept, 2)
    assert len(of(Context, plan.objects)) == 1 and plan.goes_on == {"n1"}
    assert any("default/shop is on n9, which is not here" in note for note in plan.notes)
    made_anew = remade({"n1": [SOUP, shop("n1", 7, 20, "old"), shop("n2", 1, 50, "new")]}, 2)
    (lifeform,) = of(Lifeform, made_anew.objects)
    assert lifeform.metadata.uid == "old", "of two lives of one name the further one counts: its epoch is the volume's"
