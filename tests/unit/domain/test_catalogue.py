"""The built-in recipes are plans that the driver accepts, and become Image resources."""

from __future__ import annotations

import pytest

from primordia.domain.catalogue import RECIPES, recipe
from primordia.drivers.images_local.debian import Distribution, plan
from primordia.wire.catalogue import builtin_image, builtin_names


@pytest.mark.parametrize("name", [each.name for each in RECIPES])
def test_a_recipe_becomes_an_image(name: str) -> None:
    image = builtin_image(name)
    assert image is not None
    assert image.metadata.name == name
    assert image.spec.debian is not None
    assert plan(image.spec.debian, Distribution("debian", "trixie")).packages
    assert image.spec.config.entrypoint or image.spec.config.cmd


def test_redis_keeps_its_server_when_a_lifeform_gives_arguments() -> None:
    image = builtin_image("redis")
    assert image is not None
    assert image.spec.config.entrypoint is not None
    assert image.spec.config.entrypoint[0] == "redis-server"
    assert image.spec.config.cmd == ("--save", "", "--appendonly", "no")
    assert image.spec.config.user == "redis"


def test_names() -> None:
    assert builtin_names() == ("busybox", "python", "redis")
    assert recipe("nosuch") is None
    assert builtin_image("nosuch") is None
