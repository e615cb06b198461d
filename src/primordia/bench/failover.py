"""How long a lifeform is away when its machine dies: from the power cut until a client is answered by it elsewhere, with the
last record that a sync had acknowledged.

Three nodes on three racks, two copies. The power of the node that has the lifeform is cut as `host/power.py` does it, and
given back before the next round. A client on this machine asks the other nodes' published port all the time. Rounds in which
that node held the engine's leader are a row of their own: there the engine has to agree on another one first. A proven death
is had by stopping a daemon: the fence kills what the node runs, proves it and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

from primordia.bench import failover_moves, lifeforms
from primordia.bench.engine import engine
from primordia.bench.failover_scene import Asker, Moments, Scene
from primordia.bench.figures import Figure, figure, paired
from primordia.bench.ground import Ground, Progress, ground
from primordia.domain.lease import lease_key
from primordia.host.power import cut_power, restore_power
from primordia.host.shape import Shape
from primordia.registry.keys import ROOT
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec, Port, Resources
from primordia.wire.volumes import Data, Layout, Replication

ROUNDS = 5
SHAPE = Shape(nodes=3, racks=3)
TIMINGS = {"daemon_silence_s": 5.0}
"""A proven death needs a daemon that is silent for so long; none of it is measured."""
PORT = 18970
_COPIES = 2
_SEEDS = 2
_DIES_WITHIN_S = 60.0


async def measure(rounds: int, progress: Progress) -> list[Figure]:
    """On a soup of its own: nobody else's nodes lose their power."""
    rounds = rounds or ROUNDS
    async with ground("", progress, SHAPE, timings=TIMINGS) as here:
        progress("failover: start a lifeform with two copies")
        async with lifeforms.with_data(here.client, _lifeform()) as (name, volume):
            scene = Scene(here, name, volume, PORT)
            taken: dict[str, list[float]] = {}
            for leads in (False, True):
                for turn in range(rounds):
                    which = "that held the engine's leader" if leads else "without the engine's leader"
                    progress(f"failover: cut the power of a node {which}, {turn + 1} of {rounds}")
                    for what, seconds in (await _power_cut(scene, turn, leads=leads)).items():
                        taken.setdefault(what, []).append(seconds)
            for turn in range(rounds):
                progress(f"failover: a death that the node proves, {turn + 1} of {rounds}")
                taken.setdefault("proven_death_to_answer", []).append(await _proven_death(scene, turn))
            for turn in range(rounds):
                progress(f"failover: move it elsewhere, {turn + 1} of {rounds}")
                taken.setdefault("drain_blackout", []).append(await failover_moves.drained(scene, turn))
        figures = [figure(what, "s", samples) for what, samples in taken.items()]
        pairs = []
        for turn in range(min(rounds, _SEEDS)):
            progress(f"failover: bring the data of a dead node's lifeform where no copy is, {turn + 1}")
            wanted = _lifeform(copies=1, size="256Mi")
            async with lifeforms.with_data(here.client, wanted) as (name, volume):
                pairs.append(await failover_moves.seeded(Scene(here, name, volume, PORT)))
        return [*figures, paired("network_seed", "s", [each for each, _ in pairs], [plain for _, plain in pairs])]


async def _power_cut(scene: Scene, turn: int, *, leads: bool) -> dict[str, float]:
    """One round: seconds by the names of their figures."""
    record = await scene.settled(f"power-{leads}-{turn}")
    node = await scene.node()
    if leads:
        await scene.bring_leader_to(node)
    else:
        await scene.bring_leader_from(node)
    async with _watched(scene.ground, scene.other_than(node)) as moments:
        begun = time.monotonic()
        await cut_power(scene.ground.soup, node)
        answered = await Asker(scene, without=node).answered(record)
        gone = moments.gone(lease_key(node))
    await restore_power(scene.ground.soup, node)
    if leads:
        return {"fault_to_answer_with_engine_leader": answered - begun}
    return {"fault_to_answer": answered - begun, "fault_to_lease_gone": gone - begun, "lease_gone_to_answer": answered - gone}


async def _proven_death(scene: Scene, turn: int) -> float:
    """From the end of the lifeform's microVM, which the fence kills, to the answer."""
    record = await scene.settled(f"proven-{turn}")
    node = await scene.node()
    await scene.bring_leader_from(node)
    vm = await scene.microvm()
    daemon = scene.pid(node, "daemon")
    os.kill(daemon, signal.SIGSTOP)  # the fence ends it
    killed = await asyncio.wait_for(_ended(vm), _DIES_WITHIN_S)
    return await Asker(scene, without=node).answered(record) - killed


async def _ended(pid: int) -> float:
    """Wait for the end of a process, and give its moment."""
    descriptor = os.pidfd_open(pid)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
        return time.monotonic()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _watched(here: Ground, node: str) -> AsyncIterator[Moments]:
    """Hear of every key that changes, by way of that node."""
    moments = Moments()
    async with engine(here, node) as store, store.heard(ROOT, moments.hear):
        yield moments


def _lifeform(*, copies: int = _COPIES, size: str = "64Mi") -> Lifeform:
    """A web server of what is on its volume."""
    context = ContextTemplate(
        name="main",
        image=lifeforms.IMAGE,
        command=("/bin/sh", "-c", "exec httpd -f -p 8000 -h /data"),
        resources=Resources(cpu="1", memory=lifeforms.MEMORY),
        ports=(Port(container_port=8000, publish=PORT),),
        data=Data(size=size),
    )
    spec = LifeformSpec(
        contexts=(context,),
        termination_grace_period_seconds=1,
        replication=Replication(layout=Layout(mirror=copies), acks=1),
    )
    return Lifeform(metadata=ObjectMeta(name="x"), spec=spec)
