"""Recipes that every soup knows without being told, so that `run redis` works on the first day.

A recipe says which packages make the image and what runs in it. Nothing is configured to keep data: where data
is wanted, the lifeform says so with a data volume and arguments of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """An image from distribution packages. `user` is a name or empty for root; `about` is one line for people."""

    name: str
    packages: tuple[str, ...]
    about: str
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    working_dir: str = ""


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="busybox",
        packages=("busybox-static",),
        about="A shell and two hundred small tools in two megabytes.",
        cmd=("/bin/sh",),
        working_dir="/",
    ),
    Recipe(
        name="python",
        packages=("python3",),
        about="Python 3 with its standard library.",
        cmd=("python3",),
        env=(("PYTHONUNBUFFERED", "1"),),
        working_dir="/",
    ),
    # An entrypoint, not a command: a lifeform's `args` then replace these defaults and keep the server. Whoever may
    # connect is decided by the soup's network, which denies by default, so the server's own guess is switched off.
    Recipe(
        name="redis",
        packages=("redis-server",),
        about="A Redis server that keeps its data in memory only.",
        entrypoint=("redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"),
        cmd=("--save", "", "--appendonly", "no"),
        user="redis",
        working_dir="/var/lib/redis",
    ),
)

_BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def recipe(name: str) -> Recipe | None:
    """The recipe of that name, if there is one."""
    return _BY_NAME.get(name)
