"""`template create ls describe rm`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from primordia.cli import printing
from primordia.cli.image import words_of
from primordia.cli.output import Progress
from primordia.cli.pairs import pair
from primordia.cli.session import client
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.client.templates import template_settled
from primordia.kit.errors import PermanentError
from primordia.wire.meta import LABEL_PLAIN, ObjectMeta
from primordia.wire.resources import EnvVar, Resources, Template, TemplateSpec, WarmRange, WarmUp


async def create(options: Namespace) -> int:
    """Make a template, or change one, and wait until boxes can be claimed from it."""
    wanted = Template(metadata=ObjectMeta(name=options.name), spec=spec_of(options))
    async with client(options) as soup:
        await soup.apply(wanted)
        if not options.wait:
            print(f"template/{options.name} is being made")
            return 0
        with Progress(quiet=options.quiet, all_steps=True) as progress:
            await _made(soup, options.name, options.timeout, progress)
    print(f"template/{options.name} ready")
    return 0


def spec_of(options: Namespace) -> TemplateSpec:
    """What the flags describe. Raises PermanentError."""
    return TemplateSpec(
        image=options.image,
        warm_up=_warm_up(options),
        resources=Resources(cpu=options.cpu, memory=options.memory),
        warm=warm_range(options.warm),
        env=tuple(EnvVar(name=name, value=value) for name, value in (pair(each, "--env") for each in options.env)),
        user=options.user,
        working_dir=options.workdir,
    )


def _warm_up(options: Namespace) -> WarmUp | None:
    if options.warm_up and options.python:
        raise PermanentError("--warm-up and --python exclude each other.", remedy="Leave one out.")
    if options.warm_up:
        return WarmUp(command=words_of(options.warm_up, "--warm-up"))
    if options.python.startswith("@"):
        return WarmUp(python=Path(options.python[1:]).read_text())
    return WarmUp(python=options.python) if options.python else None


def warm_range(text: str) -> WarmRange:
    """`MIN[:MAX]`. Raises PermanentError."""
    low, colon, high = text.partition(":")
    if not low.isdecimal() or not (high.isdecimal() if colon else True) or len(text) > 20:
        raise PermanentError(f"--warm {text!r} is no MIN:MAX.", remedy="Write two numbers, as 2:8.")
    return WarmRange(min=int(low), max=int(high) if colon else 0)


async def _made(soup: AsyncClient, name: str, timeout_s: float, progress: Progress) -> None:
    def over(obj: Template | None) -> bool:
        if obj is not None:
            progress(f"template {name}: {obj.status.message or obj.status.phase}")
        return template_settled(obj)

    progress(f"template {name}")
    await soup.wait(Template, name, over, timeout_s=timeout_s)


async def list_(options: Namespace) -> int:
    """Templates, and how many forks of each wait. Those that `run` made on its way to a box of an image only with `--all`."""
    where = printing.Where(labels="" if options.all else f"!{LABEL_PLAIN}")
    async with client(options) as soup:
        if options.output in ("json", "yaml", "name"):
            await printing.show_objects(soup, [(Template, "")], where, options.output)
        else:
            await printing.show_tables(soup, [(Template, "")], where, wide=options.output == "wide")
    return 0


async def remove(options: Namespace) -> int:
    """Remove templates. Boxes that were claimed from them live on."""
    async with client(options) as soup:
        for name in options.names:
            await soup.delete(Template, name)
            await soup.wait(Template, name, answers.deleted, timeout_s=60)
            print(f"template/{name} removed")
    return 0
