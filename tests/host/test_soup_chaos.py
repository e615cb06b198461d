"""A whole soup with twenty microVMs: daemons, supervisors and QEMUs are killed at random; nothing leaks, nothing stays away.

The seed is printed: put it into PRIMORDIA_CHAOS_SEED to see the same kills again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from primordia.bench.ground import Ground, ground
from primordia.client import answers
from primordia.host import leftovers
from primordia.host import up as host
from primordia.kit.errors import PrimordiaError
from primordia.kit.identity import running_pid
from primordia.testing.soup import runs_of
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, ContextTemplate, Lifeform, LifeformSpec, Resources

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

MICROVMS = 20
KILLS = 25
PATIENCE_S = 240.0


@pytest.fixture
async def soup() -> AsyncIterator[Ground]:
    async with ground("", lambda step: None) as built:
        yield built
    assert not await leaks_of(built)


async def leaks_of(built: Ground) -> list[str]:
    """What the doctor finds of this soup; other soups of the machine are not this test's."""
    return [f"{leak.kind} {leak.name}: {leak.detail}" for leak in await leftovers.look() if built.soup.name in str(leak)]


def lifeform(name: str) -> Lifeform:
    context = ContextTemplate(
        name="main",
        image="busybox",
        command=("/bin/sh", "-c", "echo born; trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"),
        resources=Resources(cpu="390m", memory="80Mi"),
    )
    return Lifeform(metadata=ObjectMeta(name=name), spec=LifeformSpec(contexts=(context,), termination_grace_period_seconds=2))


async def eventually(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if await holds():
                return
        except PrimordiaError as error:
            what = f"{what} ({error})"
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.3)


class Chaos:
    """Kills by pid what this soup started, and knows what must be true afterwards."""

    def __init__(self, soup: Ground, rng: random.Random) -> None:
        self.soup = soup
        self.rng = rng
        self.killed: list[str] = []
        self.untouched: dict[str, int] = {}

    def machine_pids(self) -> dict[str, int]:
        return runs_of(self.soup.paths)

    def kill_machine(self) -> None:
        """A context's, or one that waits in the pool of forks."""
        pids = [pid for path in sorted((self.soup.paths.run / "c").glob("*/qemu.pid")) if (pid := running_pid(path))]
        if pids:
            victim = self.rng.choice(pids)
            os.kill(victim, signal.SIGKILL)
            self.killed.append(f"microVM {victim}")
            self.untouched = {uid: pid for uid, pid in self.untouched.items() if pid != victim}

    def kill_child(self, name: str) -> None:
        if pid := running_pid(self.soup.paths.run / f"{name}.pid"):
            os.kill(pid, signal.SIGKILL)
            self.killed.append(name)

    async def kill_supervisor(self) -> None:
        """Its children die with it, its microVMs do not; `up` starts the next."""
        self.kill_child("supervisor")
        await asyncio.sleep(0.2)
        await host.up(
            host.UpOptions(soup=self.soup.soup.name, client_config=self.soup.paths.state / "client-config"), lambda step: None
        )

    async def strike(self) -> None:
        kind = self.rng.choices(["machine", "daemon", "engine", "uplink", "supervisor"], [10, 8, 3, 2, 2])[0]
        if kind == "machine":
            self.kill_machine()
        elif kind == "supervisor":
            await self.kill_supervisor()
        else:
            self.kill_child(kind)
        await asyncio.sleep(self.rng.uniform(0.0, 1.5))

    async def all_run(self) -> bool:
        lifeforms = (await self.soup.client.list(Lifeform)).items
        contexts = (await self.soup.client.list(Context)).items
        return (
            len(lifeforms) == len(contexts) == MICROVMS
            and all(one.status.phase == "Running" for one in lifeforms)
            and {one.metadata.uid: one.status.pid for one in contexts} == self.machine_pids()
        )


async def test_twenty_microvms_survive_kills_of_everything_and_nothing_leaks(soup: Ground) -> None:
    seed = int(os.environ.get("PRIMORDIA_CHAOS_SEED") or secrets.randbits(32))
    print(f"PRIMORDIA_CHAOS_SEED={seed}")
    chaos = Chaos(soup, random.Random(seed))
    for number in range(MICROVMS):
        await soup.client.create(lifeform(f"life-{number:02}"))
    await eventually("all run", chaos.all_run)
    chaos.untouched = chaos.machine_pids()
    epochs = {one.metadata.name: one.status.epoch for one in (await soup.client.list(Lifeform)).items}
    for _ in range(KILLS):
        await chaos.strike()
    print(json.dumps(chaos.killed))
    await eventually("all run again", chaos.all_run)
    after = {one.metadata.name: one.status.epoch for one in (await soup.client.list(Lifeform)).items}
    assert after == epochs  # they never left their node
    assert chaos.untouched.items() <= chaos.machine_pids().items()  # and no other microVM noticed
    result = await soup.client.exec("life-07", ["/bin/echo", "alive"])
    assert (result.code, result.stdout) == (0, b"alive\n")
    assert not await leaks_of(soup)
    for number in range(0, MICROVMS, 2):
        await soup.client.delete(Lifeform, f"life-{number:02}")
    for number in range(0, MICROVMS, 2):
        await soup.client.wait(Lifeform, f"life-{number:02}", answers.deleted, timeout_s=PATIENCE_S)
    assert len(chaos.machine_pids()) == MICROVMS // 2
    assert len(list(Path(soup.paths.state / "contexts").iterdir())) == MICROVMS // 2


async def test_a_frozen_engine_costs_answers_and_no_microvm(soup: Ground) -> None:
    await soup.client.create(lifeform("one"))
    await soup.client.wait(Lifeform, "one", answers.phase("Running"), timeout_s=PATIENCE_S)
    chaos = Chaos(soup, random.Random(0))
    before = chaos.machine_pids()
    engine = running_pid(soup.paths.run / "engine.pid")
    os.kill(engine, signal.SIGSTOP)
    try:
        with pytest.raises(PrimordiaError) as refused:
            await soup.client.get(Lifeform, "one")
        assert "engine" in str(refused.value)
    finally:
        os.kill(engine, signal.SIGCONT)

    async def answers_again() -> bool:
        return (await soup.client.get(Lifeform, "one")).status.phase == "Running"

    await eventually("the engine answers again", answers_again)
    assert chaos.machine_pids() == before
