"""What is said of volumes: before one is destroyed, of copies, and of racks that are lost."""

from __future__ import annotations

import msgspec
import pytest

from primordia.cli.blast import blast_sentences, blasts_of, protection_counts
from primordia.cli.describe_volumes import copy_rows, lag_words, pool_words, replication_words, restored_words, sync_words
from primordia.cli.tree import parse
from primordia.cli.volume_names import meant
from primordia.cli.volumes import loss_of
from primordia.kit.errors import NotFoundError
from primordia.sim.objects import make_node, make_pool
from primordia.wire.conditions import NODE_DEAD
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import (
    Checkpoint,
    CopyState,
    LastSync,
    Layout,
    Replication,
    RestoredFrom,
    VolumeCopy,
    VolumeSpec,
    VolumeStatus,
)


def _volume(name: str, node: str, *copies: tuple[str, CopyState], lifeform: str = "") -> Volume:
    status = VolumeStatus(
        node=node,
        replicas=tuple(name for name, _ in copies),
        copies=tuple(VolumeCopy(node=name, state=state) for name, state in copies),
    )
    return Volume(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=VolumeSpec(size="1Gi", lifeform=lifeform, context="main" if lifeform else ""),
        status=status,
    )


def test_what_is_lost_is_said_before_it_is() -> None:
    volume = _volume("shop.main", "n1", ("n2", "InSync"), ("n3", "InSync"), lifeform="shop")
    assert loss_of(volume) == (
        "Volume default/shop.main, the data of lifeform shop (context main): 1Gi. "
        "There is a copy on n1 and 2 on n2, n3: all of them go, for good."
    )
    alone = Volume(
        metadata=ObjectMeta(name="x", namespace="default"),
        spec=VolumeSpec(size="1Gi"),
        status=VolumeStatus(node="n1", number=4, used_bytes=2**20, checkpoints=(Checkpoint(name="a", number=2),)),
    )
    assert loss_of(alone).endswith(
        "1Gi, 1.0 MiB used. There is a copy on n1, the only one: all of them go, for good. "
        "With them go all snapshots, the newest number 4. And the checkpoints a."
    )


def test_only_good_copies_count_when_a_rack_is_lost() -> None:
    nodes = [make_node(f"n{number}", rack=f"r{number}") for number in (1, 2, 3)]
    volumes = [
        _volume("a.main", "n1", ("n2", "InSync"), ("n3", "Behind"), lifeform="a"),
        _volume("b.one", "n1", ("n2", "InSync"), lifeform="b"),
        _volume("b.two", "n1", ("n2", "Seeding"), lifeform="b"),
    ]
    blasts = blasts_of(nodes, volumes)
    r1 = blasts["east", "r1"]
    assert (r1.lost, r1.last_copy) == (("default/b",), ()), "with one of its volumes a lifeform is lost"
    r2 = blasts["east", "r2"]
    assert (r2.lost, r2.last_copy) == ((), ("default/b",))
    places = [("east", f"r{number}") for number in (1, 2, 3, 4)]
    assert blast_sentences(places, blasts) == [
        "losing r1 loses 1 lifeform (default/b), 0 would be on their last copy",
        "losing r2 loses 0 lifeforms, 1 would be on their last copy",
        "losing r3 loses 0 lifeforms, 0 would be on their last copy",
    ]
    assert protection_counts(volumes) == {"Unknown": 3}
    dead = Condition(type="Ready", status="False", reason=NODE_DEAD)
    nodes[1] = msgspec.structs.replace(nodes[1], status=msgspec.structs.replace(nodes[1].status, conditions=(dead,)))
    assert "default/b" in blasts_of(nodes, volumes)["east", "r1"].lost and ("east", "r2") not in blasts_of(nodes, volumes)


def test_copies_that_nobody_has_told_of_are_wanted() -> None:
    volume = _volume("a.main", "n1", ("n2", "InSync"))
    wanted = Volume(
        metadata=volume.metadata,
        spec=volume.spec,
        status=VolumeStatus(node="n1", replicas=("n2", "n3"), copies=volume.status.copies),
    )
    assert [row[:4] for row in copy_rows(wanted)] == [["n2", "-", "-", "InSync"], ["n3", "-", "-", "Wanted"]]
    assert lag_words(VolumeCopy(node="n2", state="InSync")) == "none"


def test_words_for_replication_and_pools() -> None:
    assert replication_words(None) == "one copy on another rack, where there is one"
    assert replication_words(Replication(layout=Layout(mirror=0))) == "none"
    full = Replication(layout=Layout(mirror=2), acks=2, interval="5s", bandwidth="1Mi")
    assert replication_words(full) == (
        "2 copies each on a rack of its own, a sync waits for 2, sent every 5s, at most 1Mi a second"
    )
    assert pool_words(make_pool(10 * 2**30, 2**30)) == "1.0 GiB of 10 GiB used, room for 8.5 GiB"


def test_the_tree_knows_volumes() -> None:
    options = parse(["volume", "destroy", "shop.main", "--yes", "--no-wait"])
    assert (options.command, options.name, options.yes, options.wait) == ("volumes:destroy", "shop.main", True, False)
    assert parse(["volume", "ls", "-A"]).all_namespaces is True


def test_a_volume_is_meant_by_its_own_name_or_its_lifeforms() -> None:
    there = [_volume("shop.main", "n1", lifeform="shop"), _volume("shop.log", "n1", lifeform="shop"), _volume("old", "n2")]
    assert meant(there, "old") == ["old"]
    assert meant(there, "shop.log") == ["shop.log"]
    assert meant(there, "shop") == ["shop.main", "shop.log"]
    assert meant(there, "") == ["shop.main", "shop.log", "old"]
    assert meant([*there, _volume("shop", "n3")], "shop") == ["shop"]
    with pytest.raises(NotFoundError, match="no lifeform of that name with data"):
        meant(there, "other")


def test_a_restore_sets_the_last_sync_and_nobody_acknowledged_it() -> None:
    volume = _volume("shop.main", "n1", ("n2", "InSync"))
    assert sync_words(volume) == "never"
    for copies, words in ((("n2", "n3"), "acknowledged by n2, n3"), ((), "set by a restore")):
        last = LastSync(epoch=1, number=7, at="2026-01-01T00:00:00Z", copies=copies)
        told = msgspec.structs.replace(volume, status=msgspec.structs.replace(volume.status, last_sync=last))
        assert sync_words(told) == f"snapshot 7 at 2026-01-01T00:00:00Z, {words}"


def test_how_a_volume_went_on_after_its_owner_had_died() -> None:
    began = RestoredFrom(epoch=3, node="n1", number=7, lost_seconds=1.25, at="2026-01-01T00:00:00Z")
    words = "snapshot 7, when node n1 had died and epoch 3 began, 2026-01-01T00:00:00Z: at most 1.2 s of writes were lost"
    assert restored_words(began) == words
    empty = msgspec.structs.replace(began, number=0, allow_loss=True, at="")
    assert restored_words(empty).startswith("nothing: it began empty, when node n1 had died and epoch 3 began, nobody knows")
    assert restored_words(empty).endswith(", which was accepted")
