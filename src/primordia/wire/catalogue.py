"""The catalogue's recipes as Image resources, for `run redis` and for a context that names one."""

from __future__ import annotations

from primordia.domain.catalogue import RECIPES, Recipe, recipe
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import DebianSource, EnvVar, Image, ImageConfig, ImageSpec


def image_spec(of: Recipe) -> ImageSpec:
    """What an Image resource of that recipe wants."""
    config = ImageConfig(
        entrypoint=of.entrypoint or None,
        cmd=of.cmd or None,
        env=tuple(EnvVar(name=name, value=value) for name, value in of.env),
        working_dir=of.working_dir,
        user=of.user,
    )
    return ImageSpec(debian=DebianSource(packages=of.packages), config=config)


def builtin_image(name: str) -> Image | None:
    """The catalogue's image of that name, not yet created; None when the catalogue has none."""
    known = recipe(name)
    return None if known is None else Image(metadata=ObjectMeta(name=known.name), spec=image_spec(known))


def builtin_names() -> tuple[str, ...]:
    """Every name of the catalogue, in order."""
    return tuple(sorted(known.name for known in RECIPES))
