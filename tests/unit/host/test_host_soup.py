"""The plan of a local soup: places, addresses, and the words for a shape that cannot be."""

import ipaddress
import itertools
from pathlib import Path

import msgspec
import pytest

from primordia.host import soup as host_soup
from primordia.host import up
from primordia.host.shape import Shape, plan_nodes
from primordia.host.soup import SoupFile, free_slot, node_config, node_pod_cidr, read_soup, write_soup
from primordia.kit.errors import InvalidError, PermanentError
from primordia.kit.paths import SoupPaths
from primordia.wire.nodeconfig import Tools


def soup(shape: Shape, slot: int = 0) -> SoupFile:
    return SoupFile(name="t", uid="u", slot=slot, pod_cidr="10.128.0.0/9", nodes=plan_nodes(shape), created_by_version="0")


def test_six_nodes_on_three_racks_in_two_segments():
    nodes = plan_nodes(Shape(6, 3, 2))
    assert [node.rack for node in nodes] == ["r1", "r2", "r3", "r1", "r2", "r3"]
    assert {(node.rack, node.segment) for node in nodes} == {("r1", "s1"), ("r2", "s1"), ("r3", "s2")}
    assert len({node.rack for node in nodes if node.engine}) == 3


@pytest.mark.parametrize(
    ("shape", "flag"),
    [(Shape(0), "--nodes"), (Shape(65), "--nodes"), (Shape(2, 3), "--racks"), (Shape(4, 2, 3), "--segments")],
)
def test_an_impossible_shape_names_the_flag(shape, flag):
    with pytest.raises(InvalidError, match=flag):
        plan_nodes(shape)


def test_one_node_is_its_own_engine():
    (node,) = plan_nodes(Shape())
    assert node.engine


def test_addresses_of_nodes_never_overlap():
    ranges = [ipaddress.ip_network(node_pod_cidr("10.128.0.0/9", index)) for index in range(1, 65)]
    assert all(a.broadcast_address < b.network_address for a, b in itertools.pairwise(ranges))
    assert all(r.subnet_of(ipaddress.ip_network("10.128.0.0/9")) for r in ranges)


def test_the_settings_of_a_node_name_all_engine_members(tmp_path):
    whole = soup(Shape(4, 3, 1))
    config = node_config(whole, whole.nodes[3], SoupPaths(tmp_path / "s", tmp_path / "r"), Path("/c"), Tools())
    assert not config.engine.member
    assert len(config.engine.endpoints) == 3
    assert config.engine.initial_cluster.startswith("n1=https://10.77.0.1:2380,")


def test_the_identity_file_round_trips_and_a_damaged_one_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(host_soup, "_is_free", lambda address: True)  # other soups of this machine are none of the test's
    paths = SoupPaths(tmp_path / "default", tmp_path / "run")
    assert read_soup(paths) is None
    write_soup(paths, soup(Shape(2, 2, 1), slot=3))
    assert read_soup(paths) == soup(Shape(2, 2, 1), slot=3)
    assert free_slot(tmp_path) != 3
    (paths.state / "soup.json").write_text("{")
    with pytest.raises(PermanentError, match=r"soup\.json cannot be read"):
        read_soup(paths)


def test_timings_are_the_same_on_all_nodes_and_change_only_while_the_soup_is_down(tmp_path: Path) -> None:
    paths = SoupPaths(tmp_path / "state", tmp_path / "run")
    known = msgspec.structs.replace(soup(Shape(2)), timings={"daemon_silence_s": 60.0})
    for node in known.nodes:
        assert node_config(known, node, paths, tmp_path, Tools()).timings == {"daemon_silence_s": 60.0}
    with pytest.raises(InvalidError, match="takeover"):
        up.check_timings({"drift_s": 5.0}, paths)
    up.check_timings({"ttl_s": 8}, paths)
    write_soup(paths, known)
    up.check_timings({}, paths)
    up.check_timings({"daemon_silence_s": 60.0}, paths)
    with pytest.raises(InvalidError, match=r"spec\.timings.* up with other timings"):
        up.check_timings({"ttl_s": 8}, paths)
    write_soup(paths, msgspec.structs.replace(known, phase="down"))
    up.check_timings({"ttl_s": 8}, paths)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", "a-", "A", "a b", "a" * 41])
def test_a_name_that_would_lead_elsewhere_is_none(name: str) -> None:
    with pytest.raises(InvalidError, match="is no name for a soup"):
        SoupPaths.of(name)
