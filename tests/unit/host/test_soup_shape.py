"""The shape of a soup: what is chosen, what is refused and in which words, and that an existing soup keeps its own."""

from __future__ import annotations

import pytest

from primordia.host.shape import (
    ManifestSpec,
    NodeEntry,
    Shape,
    SoupManifest,
    check_same,
    plan_nodes,
    shape_of,
    with_shares,
    words_of,
)
from primordia.host.soup import SoupFile
from primordia.kit.errors import InvalidError

GIB = 2**30


def manifest(spec: ManifestSpec) -> SoupManifest:
    return SoupManifest(spec=spec)


def soup(shape: Shape) -> SoupFile:
    return SoupFile(name="t", uid="u", slot=0, pod_cidr="10.128.0.0/9", nodes=plan_nodes(shape), created_by_version="0")


def flags(nodes: int | None = None, racks: int | None = None, segments: int | None = None) -> dict[str, int | None]:
    return {"nodes": nodes, "racks": racks, "segments": segments}


def test_what_is_not_said_is_chosen() -> None:
    assert words_of(plan_nodes(Shape())) == "1 node on 1 rack in 1 segment"
    assert words_of(plan_nodes(Shape(nodes=2))) == "2 nodes on 2 racks in 1 segment"
    assert words_of(plan_nodes(Shape(nodes=6))) == "6 nodes on 3 racks in 1 segment"
    assert words_of(plan_nodes(Shape(nodes=6, segments=2))) == "6 nodes on 3 racks in 2 segments"
    assert words_of(plan_nodes(shape_of(manifest(ManifestSpec()), **flags()))) == "1 node on 1 rack in 1 segment"


def test_flags_win_over_the_file() -> None:
    file = manifest(ManifestSpec(nodes=6, racks=3, segments=2))
    assert words_of(plan_nodes(shape_of(file, **flags()))) == "6 nodes on 3 racks in 2 segments"
    assert words_of(plan_nodes(shape_of(file, **flags(nodes=3)))) == "3 nodes on 3 racks in 2 segments"


def test_errors_name_the_flag_or_the_field() -> None:
    with pytest.raises(InvalidError, match=r"^--racks: 3 racks cannot be made of 2 nodes.*Ask for 1 to 2 racks"):
        plan_nodes(Shape(nodes=2, racks=3))
    with pytest.raises(InvalidError, match=r"^spec\.racks: 9 racks"):
        plan_nodes(shape_of(manifest(ManifestSpec(nodes=2, racks=9)), **flags()))
    with pytest.raises(InvalidError, match=r"^spec\.segments: 2 segments cannot be made of 1 rack"):
        plan_nodes(shape_of(manifest(ManifestSpec(nodes=2, racks=1, segments=2)), **flags()))
    with pytest.raises(InvalidError, match="--nodes"):
        plan_nodes(Shape(nodes=0))


def test_listed_nodes_have_their_racks_segments_and_capacity() -> None:
    entries = (
        NodeEntry(rack="west-1", segment="west", memory="2Gi", cpu="1500m"),
        NodeEntry(rack="west-2", segment="west"),
        NodeEntry(rack="west-1", segment="west"),
        NodeEntry(rack="east-1", segment="east", disk="10Gi"),
    )
    nodes = plan_nodes(shape_of(manifest(ManifestSpec(nodes=entries)), **flags()))
    assert [(node.name, node.rack, node.segment, node.engine) for node in nodes] == [
        ("n1", "west-1", "west", True),
        ("n2", "west-2", "west", True),
        ("n3", "west-1", "west", False),
        ("n4", "east-1", "east", True),
    ]
    assert (nodes[0].cpu_milli, nodes[0].memory_bytes, nodes[3].disk_bytes) == (1500, 2 * GIB, 10 * GIB)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            (NodeEntry(rack="r1", segment="a"), NodeEntry(rack="r1", segment="b")),
            r"nodes\[1\]\.segment: rack r1 is in segment a",
        ),
        ((NodeEntry(rack="R 1"),), r"nodes\[0\]\.rack: 'R 1'"),
        ((NodeEntry(rack="r1", memory="lots"),), r"nodes\[0\]\.memory"),
        ((NodeEntry(rack="r1", memory="1Mi"),), r"nodes\[0\]\.memory: 1Mi is too little"),
        ((NodeEntry(rack="r1", cpu="0"),), r"nodes\[0\]\.cpu"),
    ],
)
def test_bad_lists(entries: tuple[NodeEntry, ...], words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        plan_nodes(shape_of(manifest(ManifestSpec(nodes=entries)), **flags()))


def test_a_list_and_numbers_exclude_each_other() -> None:
    entries = (NodeEntry(rack="r1"),)
    with pytest.raises(InvalidError, match=r"--racks: soup\.yaml lists"):
        shape_of(manifest(ManifestSpec(nodes=entries)), **flags(racks=1))
    with pytest.raises(InvalidError, match=r"spec\.segments: the listed nodes say"):
        shape_of(manifest(ManifestSpec(nodes=entries, segments=1)), **flags())


def test_the_machine_is_shared_out() -> None:
    nodes = with_shares(plan_nodes(Shape(nodes=3)), 10 * GIB, 30 * GIB)
    assert [node.memory_bytes for node in nodes] == [3 * GIB] * 3
    assert [node.disk_bytes for node in nodes] == [9 * GIB] * 3
    entries = (NodeEntry(rack="a", memory="5Gi"), NodeEntry(rack="b"), NodeEntry(rack="c"))
    nodes = with_shares(plan_nodes(Shape(listed=entries)), 10 * GIB, 30 * GIB)
    assert [node.memory_bytes for node in nodes] == [5 * GIB, 2 * GIB, 2 * GIB]
    (one,) = with_shares(plan_nodes(Shape()), GIB, GIB)
    assert (one.memory_bytes, one.disk_bytes) == (0, 0)


def test_an_existing_soup_keeps_its_shape() -> None:
    there = soup(Shape(6, 3, 2))
    for same in (Shape(), Shape(6), Shape(6, 3, 2), Shape(segments=2)):
        check_same(same, there)
    with pytest.raises(InvalidError, match=r"--nodes: soup t exists and has 6 nodes and not 3.*Leave it out.*--destroy"):
        check_same(Shape(nodes=3), there)
    with pytest.raises(InvalidError, match="--segments: soup t exists and has 2 segments and not 1"):
        check_same(Shape(6, 3, 1), there)
    listed = Shape(listed=(NodeEntry(rack="r1"), NodeEntry(rack="r2")), origin="spec.")
    check_same(listed, soup(listed))
    with pytest.raises(InvalidError, match=r"spec\.nodes"):
        check_same(listed, there)
