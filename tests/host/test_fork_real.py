"""Forks of real microVMs on one node: a lifeform that starts as one, children of a running counter, a claim, nothing left."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from msgspec.structs import replace

from primordia.node.forks.service import ForkService
from primordia.ports.forks import ClaimRequest, ForkRequest
from primordia.testing.realnode import RealNode, real_node
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    Resources,
    Template,
    TemplateSpec,
    WarmRange,
    WarmUp,
)

# Counts in memory and shows it: what a child goes on with can come from nowhere else.
COUNTER = "n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.1; done"
WARM_UP = "mkdir -p /run/primordia; echo ready > /tmp/ready; touch /run/primordia/ready; exec sleep 100000"
SIZE = Resources(cpu="1", memory="96Mi")
WHO = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; hostname; ip addr || ifconfig; date +%s"


def lifeform(name: str, script: str) -> Lifeform:
    template = ContextTemplate(name="main", image="busybox", command=("/bin/sh", "-c", script), resources=SIZE)
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=LifeformSpec(contexts=(template,), termination_grace_period_seconds=1),
    )


def forks(node: RealNode) -> ForkService:
    assert node.node is not None
    return node.node.forks


async def said(node: RealNode, name: str, script: str) -> str:
    code, output = await node.run(name, "/bin/sh", "-c", script)
    assert code == 0, output
    return output


async def count(node: RealNode, name: str) -> int:
    return int((await said(node, name, "cat /tmp/n")).strip() or 0)


async def test_real_microvms_fork() -> None:
    async with real_node() as node:
        await starts_as_a_fork(node)
        await has_children(node)
        await goes_on_from_its_memory(node)
        await is_claimed(node)
        for name in ("first", "second"):
            await node.registry.delete(Lifeform, name, "default")
        for context in (await node.registry.list(Context)).items:
            if not context.spec.lifeform:
                await node.registry.delete(Context, context.metadata.name, "default")
        await node.registry.delete(Template, "shell")

        async def nothing() -> bool:
            return not (await node.registry.list(Context)).items

        await node.until(nothing, "all contexts are gone")
        await node.drop()
        state = Path(node.config.state_dir)
        assert node.leftovers() == []
        assert list((state / "pool").iterdir()) == [] and list((state / "forks").iterdir()) == []


async def starts_as_a_fork(node: RealNode) -> None:
    await node.registry.create(lifeform("first", COUNTER))
    first = await node.ready("first.main")
    assert first.status.started_from == "boot"

    async def frozen() -> bool:
        return bool([path for path in (Path(node.config.state_dir) / "templates").iterdir() if not path.name.startswith(".")])

    await node.until(frozen, "a template of the image and size")
    await node.registry.create(lifeform("second", COUNTER))
    second = await node.ready("second.main")
    print(f"boot {first.status.boot_ms} ms, {second.status.started_from} fork {second.status.boot_ms} ms")
    assert second.status.started_from in ("warm", "cold"), await node.events()
    assert await said(node, "second.main", "hostname") == "second-main\n"
    assert second.status.ip in await said(node, "second.main", "ip addr 2>/dev/null || ifconfig -a")


async def has_children(node: RealNode) -> None:
    parent = await node.context("second.main")
    await asyncio.sleep(0.5)
    before = await count(node, "second.main")
    report = await forks(node).fork(parent.metadata.uid, ForkRequest(count=3))
    after_ms = [each.confirmed_ms for each in report.children]
    print(f"pause {report.pause_ms} ms, {report.copied_bytes} bytes copied, children after {after_ms} ms")
    assert [each.message for each in report.children] == ["", "", ""]
    names = ["second.main", *(each.name for each in report.children)]
    seen = [await said(node, name, WHO) for name in names]
    for number in range(3):
        assert len({text.splitlines()[number] for text in seen}) == 4, seen
    addresses = [re.search(r"10\.128\.\d+\.\d+", text) for text in seen]
    assert len({match[0] for match in addresses if match}) == 4, seen
    for text in seen:
        assert abs(int(text.splitlines()[-1]) - time.time()) < 5
    for name in names:
        now = await count(node, name)
        assert now >= before, "its memory is the parent's"

        async def goes_on(name: str = name, now: int = now) -> bool:
            return await count(node, name) > now

        await node.until(goes_on, f"{name} counts on")
    assert (await node.context("second.main")).status.restarts == 0
    grand = await forks(node).fork(report.children[0].uid, ForkRequest())
    print(f"fork of a fork: pause {grand.pause_ms} ms, copied {grand.copied_bytes}, {grand.children}")
    assert grand.children[0].message == ""
    assert (await node.context(grand.children[0].name)).spec.depth == 2


async def goes_on_from_its_memory(node: RealNode) -> None:
    """One that booted and one that is a fork: they count on as themselves, though the daemon ended meanwhile."""
    people, resumed = {}, []
    for name in ("first", "second"):
        people[name] = (await count(node, f"{name}.main"), await said(node, f"{name}.main", WHO))
        await change(node, name, operating_mode="Suspended", keep_memory=True)
    for name in people:
        await node.until(lambda name=name: is_stopped(node, name), f"{name} stands")  # type: ignore[misc]
    await node.drop()
    await asyncio.sleep(2)
    await node.start()
    for name, (before, who) in people.items():
        await change(node, name, operating_mode="Running")
        status = (await node.ready(f"{name}.main")).status
        if status.started_from != "memory":
            # On a host that is busy it may come too late to go on; then it starts from its disk and says so.
            assert "StartsFromDisk" in await node.events(), status.conditions
            print(f"{name} started from its disk: {[each.message for each in status.conditions]}")
            continue
        resumed.append(name)
        now = await count(node, f"{name}.main")
        assert before <= now < before + 100, "it goes on from where it was"
        again = (await said(node, f"{name}.main", WHO)).splitlines()
        assert again[1:-1] == who.splitlines()[1:-1] and again[0] != who.splitlines()[0]
        assert abs(int(again[-1]) - time.time()) < 2
        print(f"{name} went on from its memory after {status.boot_ms} ms")

        async def goes_on(name: str = name, now: int = now) -> bool:
            return await count(node, f"{name}.main") > now

        await node.until(goes_on, f"{name} counts on")
    assert resumed, "one of them at least"
    kept = list((Path(node.config.state_dir) / "suspended").iterdir())
    assert kept == [], "an image is used once"


async def change(node: RealNode, name: str, **fields: object) -> None:
    await node.registry.mutate(Lifeform, name, "default", lambda one: replace(one, spec=replace(one.spec, **fields)))


async def is_stopped(node: RealNode, name: str) -> bool:
    status = (await node.context(f"{name}.main")).status
    assert status.reason in ("", "MemoryKept"), status
    return status.phase == "Stopped"


async def is_claimed(node: RealNode) -> None:
    spec = TemplateSpec(
        image="busybox", warm_up=WarmUp(command=("/bin/sh", "-c", WARM_UP)), resources=SIZE, warm=WarmRange(min=2, max=2)
    )
    await node.registry.create(Template(metadata=ObjectMeta(name="shell"), spec=spec))

    async def warm() -> bool:
        status = (await node.registry.get(Template, "shell")).status
        return bool(status.nodes) and status.nodes[0].warm == 2

    await node.until(warm, "two forks wait")
    boxes = [await forks(node).claim(ClaimRequest("default", "shell")) for _ in range(2)]
    print(f"claims confirmed after {[box.confirmed_ms for box in boxes]} ms")
    assert all(box.warm for box in boxes)
    begin = time.monotonic()
    assert await said(node, boxes[0].name, "cat /tmp/ready") == "ready\n"
    print(f"first command after {(time.monotonic() - begin) * 1000:.0f} ms")
    assert len({await said(node, box.name, "cat /etc/machine-id") for box in boxes}) == 2
