"""`demo`: the whole of it on this machine, from nothing to nothing, with the figures at the end.

It says what it will do and asks. What it brings up it takes down again, also when a step fails, unless told to keep it.
"""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from primordia.cli.demo_stage import SOUP, Stage
from primordia.cli.demo_story import Story
from primordia.cli.ending import ended_in_order
from primordia.cli.image import confirm
from primordia.cli.soup import owner
from primordia.client.config import load
from primordia.host import packages
from primordia.host import up as host
from primordia.host.credentials import default_client_config
from primordia.host.soup import read_soup
from primordia.kit.errors import PermanentError, PrimordiaError
from primordia.kit.paths import SoupPaths, cache_dir


async def demo(options: Namespace) -> int:
    """Announce, ask, show, measure, clean up."""
    host.require_root()
    redis = _redis()
    _check_alone()
    if not options.announced:
        print(_announcement(options.keep))
    if not options.yes and not confirm("Go on?"):
        raise PermanentError("Nothing was changed.", remedy="Say --yes (or YES=1 with make) to agree beforehand.")
    story = Story(Stage(_client_config()), redis)
    try:
        with ended_in_order():
            await story.tell()
    except BaseException:
        if not options.keep:
            await story.clean_up()
        raise
    leaks = 0 if options.keep else await story.end()
    story.stage.note("all of it", story.stage.since_begun())
    story.stage.figures()
    if options.keep:
        story.farewell()
    return 1 if leaks else 0


def _check_alone() -> None:
    """What would be taken down at the end must be ours. Raises PermanentError."""
    if read_soup(SoupPaths.of(SOUP)) is not None:
        program = os.environ.get("PRIMORDIA_PROGRAM", "primordia")
        raise PermanentError(
            "A demo was left on this machine.", remedy=f"Take it down with: sudo {program} down --soup {SOUP} --destroy"
        )


def _redis() -> Any:
    try:
        import redis.asyncio
    except ImportError:
        raise PermanentError("The Redis client for Python is not installed.", remedy="pip install redis") from None
    return redis.asyncio


def _announcement(keep: bool) -> str:
    missing = packages.missing("run", packages.installed_packages())
    unpacked, image = packages.already(cache_dir())
    return packages.announcement(missing, venv=False, toolchain=not unpacked, image=not image, keep=keep)


def _client_config() -> Path | None:
    """Where the demo's client configuration goes: the usual place, unless another soup's is there."""
    usual = default_client_config(owner())
    with contextlib.suppress(PrimordiaError):
        if load(usual).soup != SOUP:
            return usual.with_name("demo")
    return usual
