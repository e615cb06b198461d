"""A node with real microVMs, from the manifest to nothing left."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from primordia.kit import cgroup
from primordia.kit.errors import PrimordiaError
from primordia.testing.network import HOST_ADDRESS
from primordia.testing.realnode import RealNode, real_node
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    ContextTemplate,
    Lifeform,
    LifeformSpec,
    Port,
    Probe,
    Resources,
    TcpSocketAction,
)

SERVER = "echo begun; mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www"


def template(name: str, script: str, cpu: str = "1", **more: object) -> ContextTemplate:
    return ContextTemplate(
        name=name,
        image="busybox",
        command=("/bin/sh", "-c", script),
        resources=Resources(cpu=cpu, memory="96Mi"),
        **more,  # type: ignore[arg-type]
    )


def shop() -> Lifeform:
    server = template(
        "web",
        SERVER,
        ports=(Port(container_port=8080, publish=18080),),
        readiness_probe=Probe(tcp_socket=TcpSocketAction(port=8080), period_seconds=0.5),
    )
    client = template("client", "echo client begun; exec sleep 100000", cpu="500m")
    return Lifeform(
        metadata=ObjectMeta(name="shop", namespace="default"),
        spec=LifeformSpec(contexts=(server, client), termination_grace_period_seconds=2),
    )


async def test_a_lifeforms_whole_life_in_real_microvms() -> None:
    async with real_node() as node:
        await node.registry.create(shop())
        web = await node.ready("shop.web")
        await node.ready("shop.client")
        print(f"boot to running program: {web.status.boot_ms} ms")
        await talks(node)
        await survives_daemons(node)
        await survives_its_vmms_death(node)
        await node.registry.delete(Lifeform, "shop", "default")
        await node.gone("shop")
        assert node.leftovers() == []
        assert {"Scheduled", "Started", "MicroVMDied", "Stopping"} <= await node.events()


async def talks(node: RealNode) -> None:
    """Exec, names, peers, the in-guest API, published ports, logs."""
    assert await node.run("shop.web", "/bin/hostname") == (0, "shop-web\n")
    assert (await node.run("shop.web", "/bin/sh", "-c", "exit 7"))[0] == 7
    assert await node.run("shop.client", "wget", "-qO-", "http://web:8080/") == (0, "hello\n")
    code, answer = await node.run("shop.web", "wget", "-qO-", "http://169.254.169.254/v1/self")
    me = json.loads(answer)
    assert code == 0 and (me["name"], me["context"], me["node"], me["startedBecause"]) == ("shop", "web", "n1", "Created")
    code, answer = await node.run("shop.web", "kbl", "self", "-o", "json")
    assert code == 0 and json.loads(answer) == me
    code, answer = await node.run("shop.web", "nslookup", "client.shop.default.soup.internal")
    assert code == 0 and (await node.context("shop.client")).status.ip in answer
    assert await node.world.host.reach(HOST_ADDRESS, 18080, timeout_s=10) == "open"
    assert await node.log("shop.web") == ["begun"]
    with pytest.raises(PrimordiaError, match="nonesuch"):
        await node.run("shop.web", "/bin/nonesuch")


async def survives_daemons(node: RealNode) -> None:
    """Two daemons are dropped; the microVMs, their programs and their log go on."""
    before = (await node.context("shop.web")).status
    group = f"{node.cgroup}/{(await node.context('shop.client')).metadata.uid}"
    assert cgroup.cpu_milli(group) == 500
    for _ in range(2):
        await node.drop()
        os.kill(before.pid, 0)
        cgroup.limit(group, cgroup.Limits(cpu_milli=1000))
        await node.start()
        await node.until(lambda: _answers(node), "exec after the daemon's restart")
        assert cgroup.cpu_milli(group) == 500
    assert await node.run("shop.client", "wget", "-qO-", "http://web:8080/") == (0, "hello\n")
    after = (await node.ready("shop.web")).status
    assert (after.pid, after.started_at, after.restarts) == (before.pid, before.started_at, 0)
    assert await node.log("shop.web") == ["begun"]
    await node.until(lambda: _is_published(node), "the port is published again")


async def _answers(node: RealNode) -> bool:
    try:
        return (await node.run("shop.web", "/bin/true"))[0] == 0
    except PrimordiaError:
        return False


async def _is_published(node: RealNode) -> bool:
    return await node.world.host.reach(HOST_ADDRESS, 18080, timeout_s=10) == "open"


async def survives_its_vmms_death(node: RealNode) -> None:
    """kill -9 of a QEMU is noticed and its context restarted; its neighbour does not care."""
    before = (await node.context("shop.web")).status
    neighbour = (await node.context("shop.client")).status
    os.kill(before.pid, signal.SIGKILL)
    begin = time.monotonic()

    async def noticed() -> bool:
        return not (await node.context("shop.web")).status.ready

    await node.until(noticed, "the death is noticed")
    print(f"death of the VMM in the status after {time.monotonic() - begin:.2f} s")
    web = await node.ready("shop.web", restarts=1)
    assert web.status.pid != before.pid and web.status.started_because == "Restarted"
    assert web.status.ip == before.ip
    assert await node.run("shop.client", "wget", "-qO-", "http://web:8080/") == (0, "hello\n")
    after = (await node.context("shop.client")).status
    assert (after.pid, after.restarts) == (neighbour.pid, 0)


async def test_programs_that_end_and_programs_that_are_not_there() -> None:
    async with real_node() as node:
        job = Lifeform(
            metadata=ObjectMeta(name="job", namespace="default"),
            spec=LifeformSpec(
                contexts=(
                    template("good", "echo done; exit 0"),
                    template("bad", "echo failing >&2; exit 9"),
                    ContextTemplate(name="none", image="busybox", command=("/bin/nonesuch",)),
                ),
                restart_policy="Never",
            ),
        )
        await node.registry.create(job)

        async def over() -> bool:
            found = (await node.registry.get(Lifeform, "job", "default")).status.contexts
            return len(found) == 3 and {each.phase for each in found} == {"Succeeded", "Failed"}

        await node.until(over, "all three have ended")
        codes = {name: (await node.context(f"job.{name}")).status.exit_code for name in ("good", "bad", "none")}
        assert codes == {"good": 0, "bad": 9, "none": 127}
        assert await node.log("job.good") == ["done"] and await node.log("job.bad") == ["failing"]
        assert not [each for each in node.leftovers() if each.startswith("pid")]
        assert not list(Path(node.config.state_dir).glob("contexts/*/scratch.ext4"))
        await node.registry.delete(Lifeform, "job", "default")
        await node.gone("job")
        assert node.leftovers() == []
