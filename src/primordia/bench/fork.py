"""Forks against boots: what a client waits for who claims a box, and how long a parent stands still for its children.

Where it says claim, the clock runs from the client's call. Cold forks and boots take turns, and so do claims of a warm
fork and live forks; between them the pool fills again and what was killed goes. `resume` is QEMU's own answer to `cont`, for a
fork in the state in which the pool keeps one; all else is what everybody has: the API, its TLS, the registry.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import msgspec

from primordia.bench import boot, lifeforms, resumes, templates
from primordia.bench.figures import Figure, faster, figure
from primordia.bench.ground import Ground, Progress
from primordia.bench.templates import BUSYBOX, IMPORTS, PYTHON, RESULT, Subject
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.client.boxes import Box
from primordia.kit import ids
from primordia.kit.errors import PrimordiaError
from primordia.wire.boxes import ForkReport, ForkRequest
from primordia.wire.resources import Context, Lifeform, Template

ROUNDS = 20
_EVERY = 4
"""A boot takes seconds and differs little: one for so many rounds."""
_WAITING = 2
_SETTLE_S = 0.5
_BOOT_S = 300.0

Samples = dict[str, list[float]]


async def measure(ground: Ground, rounds: int, progress: Progress) -> list[Figure]:
    """The figures of forks of a busybox, then of a Python template that has its imports done."""
    figures = []
    for subject in (BUSYBOX, PYTHON):
        progress(f"fork: prepare {subject.image}")
        async with (
            lifeforms.running(ground.client, _lifeform(subject)) as parent,
            templates.made(ground.client, subject) as template,
        ):
            root = await boot.root_disk(ground, ground.config)
            samples: Samples = defaultdict(list)
            number = rounds or ROUNDS
            for turn in range(number):
                progress(f"fork: {subject.image}, cold, {turn + 1} of {number}")
                await _cold(ground.client, subject, template, samples)
                if turn % _EVERY == 0:
                    await _boot(ground.client, subject, samples)
            await templates.keep_waiting(ground.client, template, subject, _WAITING)
            for turn in range(number):
                progress(f"fork: {subject.image}, warm, {turn + 1} of {number}")
                await _warm(ground.client, subject, template, samples)
                await _live(ground.client, parent, samples)
            progress(f"fork: {subject.image}, resume")
            image = ground.paths.templates / (await ground.client.get(Template, template)).status.nodes[0].digest
            samples["resume"] = await resumes.measure(ground.config, root, image, number)
        figures += _figures(subject, samples)
    return figures


def _figures(subject: Subject, samples: Samples) -> list[Figure]:
    def made(name: str) -> Figure:
        return figure(name + subject.suffix, "ms", samples[name])

    def compared(name: str, measured: str, baseline: str) -> Figure:
        return faster(name, "ms", samples[measured], samples[baseline])

    return [
        *(made(name) for name in ("claim_first_command", "claim_confirmed", "resume")),
        compared(f"cold_fork_confirmed{subject.suffix}", "cold_fork_confirmed", "boot_confirmed"),
        made("boot_confirmed"),
        *([compared("python_ready", "python_ready", "boot_and_import")] if subject.python else []),
        *(made(name) for name in ("live_fork_pause", "live_fork_of_fork_pause")),
    ]


# ---------------------------------------------------------------- samples


async def _cold(client: AsyncClient, subject: Subject, template: str, samples: Samples) -> None:
    """A claim for which a fork is made."""
    begun = time.perf_counter()
    async with client.box(template) as box:
        samples["cold_fork_confirmed"].append(_ms_since(begun))
        if box.warm:
            raise PrimordiaError(f"A fork of {subject.image} waited that was to be made.")
    await asyncio.sleep(_SETTLE_S)


async def _boot(client: AsyncClient, subject: Subject, samples: Samples) -> None:
    """A boot until the context runs, and for Python the first result of a program that has everything to import yet."""
    name = f"bench-{ids.suffix()}"
    wanted = _lifeform(subject)
    begun = time.perf_counter()
    await client.create(msgspec.structs.replace(wanted, metadata=msgspec.structs.replace(wanted.metadata, name=name)))
    try:
        await client.wait(Lifeform, name, answers.phase("Running"), timeout_s=_BOOT_S)
        samples["boot_confirmed"].append(_ms_since(begun))
        if subject.python:
            result = await client.exec(name, ["python3", "-c", f"{IMPORTS}; print({RESULT})"])
            samples["boot_and_import"].append(_ms_since(begun))
            assert result.code == 0, result
    finally:
        await lifeforms.delete(client, name)
    await asyncio.sleep(_SETTLE_S)


async def _warm(client: AsyncClient, subject: Subject, template: str, samples: Samples) -> None:
    """A claim of a fork that waited, to its first command; and for Python another, to its first result."""
    box, begun = await _claim(client, template, samples)
    async with box:
        result = await box.run(["/bin/true"])
        samples["claim_first_command"].append(_ms_since(begun))
        assert result.ok, result
    if not subject.python:
        return
    box, begun = await _claim(client, template, samples)
    async with box:
        answer = await box.run_code(RESULT)
        samples["python_ready"].append(_ms_since(begun))
        assert answer.text, answer


async def _claim(client: AsyncClient, template: str, samples: Samples) -> tuple[Box, float]:
    """A box that waited, and when it was asked for."""
    await templates.full(client, template, _WAITING)
    await asyncio.sleep(_SETTLE_S)
    begun = time.perf_counter()
    box = await client.box(template)
    taken_ms = _ms_since(begun)
    if not box.warm:
        await box.kill()
        raise PrimordiaError("No fork waited that should have.", remedy="The node's log says why.")
    samples["claim_confirmed"].append(taken_ms)
    return box, begun


async def _live(client: AsyncClient, parent: str, samples: Samples) -> None:
    """A child of a context that booted, and a child of that child."""
    once = ForkRequest(count=1)
    first = await client.fork_report(parent, once)
    child = _only_child(first)
    try:
        second = await client.fork_report(child, once, kind=Context)
        _only_child(second)
    finally:
        await client.delete(Context, child)
    await client.wait(Context, child, answers.deleted, timeout_s=_BOOT_S)
    samples["live_fork_pause"].append(first.pause_ms)
    samples["live_fork_of_fork_pause"].append(second.pause_ms)


def _only_child(report: ForkReport) -> str:
    """The child's name. Raises PrimordiaError with what it is that there is none."""
    [child] = report.children
    if not child.name:
        raise PrimordiaError(child.message or child.reason)
    return child.name


def _lifeform(subject: Subject) -> Lifeform:
    """A lifeform of that image that only waits."""
    plain = lifeforms.manifest("x")
    context = msgspec.structs.replace(plain.spec.contexts[0], image=subject.image)
    return msgspec.structs.replace(plain, spec=msgspec.structs.replace(plain.spec, contexts=(context,)))


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000
