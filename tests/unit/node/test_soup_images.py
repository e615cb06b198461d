"""What several nodes say of one image: Ready where it is, and never a word about a version that is over."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.drivers.images_memory import MemoryImages
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.node.images import ImageKeeper
from primordia.node.status import StatusWriter
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.resources import ImageStatus


@pytest.fixture
def keeper(tmp_path: Path) -> ImageKeeper:
    clock = SystemClock()
    registry = Registry(MemoryStore(clock), clock)
    return ImageKeeper(
        MemoryImages(tmp_path),
        Informers(registry),
        StatusWriter(registry, clock),
        EventRecorder(registry, "node", "n2"),
        clock,
        "n2",
    )


READY = ImageStatus(phase="Ready", digest="sha256:1", observed_generation=1, nodes=("n1",))


def said(phase: str, generation: int = 1, message: str = "") -> ImageStatus:
    return ImageStatus(
        phase=phase, message=message, observed_generation=generation, digest="sha256:1" if phase == "Ready" else ""
    )


def test_nodes_add_themselves(keeper: ImageKeeper) -> None:
    assert keeper._with_node(READY, said("Ready")).nodes == ("n1", "n2")
    assert keeper._with_node(said("Building"), said("Ready")).nodes == ("n2",)


def test_another_nodes_image_stays_ready(keeper: ImageKeeper) -> None:
    assert keeper._without_node(READY, said("Building")) == READY
    failed = keeper._without_node(READY, said("Failed", message="The disk is full."))
    assert (failed.phase, failed.nodes, failed.message) == ("Ready", ("n1",), "On node n2: The disk is full.")


def test_where_nobody_has_it_a_failure_is_one(keeper: ImageKeeper) -> None:
    assert keeper._without_node(said("Building"), said("Failed", message="x")).phase == "Failed"
    own = ImageStatus(phase="Ready", digest="sha256:1", observed_generation=1, nodes=("n2",))
    assert keeper._without_node(own, said("Failed", message="x")).nodes == ()


def test_a_new_version_begins_with_no_node(keeper: ImageKeeper) -> None:
    assert keeper._with_node(READY, said("Ready", 2)).nodes == ("n2",)
    assert keeper._without_node(READY, said("Building", 2)).nodes == ()
