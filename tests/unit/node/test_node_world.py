"""A soup of one node, as its users see it, under virtual time."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from primordia.kit.errors import NotFoundError, TemporaryError
from primordia.node.settings import NodeSettings
from primordia.ports.guest import GuestGoneError, Program
from primordia.ports.vmm import Exit
from primordia.testing.node import NodeWorld, StartRefusedError
from primordia.testing.virtual import run_virtual
from primordia.wire.conditions import find
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import (
    Context,
    ContextTemplate,
    DebianSource,
    EnvVar,
    ExecAction,
    HttpGetAction,
    Image,
    ImageConfig,
    ImageSpec,
    Lifeform,
    LifeformSpec,
    Node,
    Port,
    Probe,
    Resource,
    Resources,
    Secret,
    SecretMount,
    TcpSocketAction,
)

Story = Callable[[NodeWorld], Awaitable[None]]


def play(tmp_path: Path, story: Story, *, settings: NodeSettings | None = None, **config: Any) -> None:
    async def main() -> None:
        world = NodeWorld(tmp_path, settings=settings, **config)
        try:
            await world.start()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())


def template(name: str = "main", *command: str, image: str = "busybox", **more: Any) -> ContextTemplate:
    return ContextTemplate(name=name, image=image, command=command or ("serve",), **more)


def lifeform(name: str, *templates: ContextTemplate, **spec: Any) -> Lifeform:
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default"), spec=LifeformSpec(contexts=templates or (template(),), **spec)
    )


R = TypeVar("R", bound=Resource)


def unclaimed(stored: R) -> R:
    """The object without finalizers, as somebody may make it by force."""
    changed: R = msgspec.structs.replace(stored, metadata=msgspec.structs.replace(stored.metadata, finalizers=()))
    return changed


def test_a_lifeform_runs_tells_of_itself_and_leaves_nothing(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template("redis"), template("exporter")))
        redis = await world.ready("shop.redis")
        await world.ready("shop.exporter")
        await world.lifeform_phase("shop", "Running")
        status = redis.status
        assert (status.phase, status.started_because, status.restarts) == ("Running", "Created", 0)
        assert status.ip == "10.128.0.1" and status.pid in (101, 102) and status.boot_ms >= 2000
        assert status.image_digest.startswith("sha256:")
        vm = world.vms[redis.metadata.uid]
        assert vm.spec.owner_id == 1_700_000_001
        assert vm.spec.nic is not None and vm.spec.nic.mac == "02:50:0a:80:00:01"
        config = vm.agent.config
        assert config is not None and config.network is not None
        assert (config.hostname, config.network.address) == ("shop-redis", "10.128.0.1")
        assert config.hosts == {"redis": "10.128.0.1", "exporter": "10.128.0.2"}
        assert config.search[0] == "shop.default.soup.internal" and len(config.entropy) >= 32
        assert {one.address for one in world.network.state.endpoints} == {"10.128.0.1", "10.128.0.2"}
        assert await world.log("shop.redis") == ["serving"]
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")
        assert not world.network.is_held(redis.metadata.uid)
        reasons = {reason for reason, _ in await world.events()}
        assert {"Scheduled", "Started", "Stopping"} <= reasons

    play(tmp_path, story)


def test_exec_files_and_ports_reach_the_guest(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        env = (EnvVar(name="A", value="1"), EnvVar(name="B", value="2"))
        await world.sure.create(lifeform("shop", template(env=env, user="redis")))
        context = await world.ready("shop.main")
        assert world.node is not None
        access, uid = world.node.contexts, context.metadata.uid
        session = await access.exec(uid, Program(("echo", "hi"), env=(("B", "3"),)), stdin=False)
        output = b"".join([data async for _, data in session.output()])
        assert output == b"hi\n" and (await session.wait()).code == 0
        assert session.program.env == (("A", "1"), ("B", "3")) and session.program.user == "redis"  # type: ignore[attr-defined]
        await world.restart()
        await world.clock.sleep(5)
        assert world.node is not None
        access = world.node.contexts
        session = await access.exec(uid, Program(("echo", "hi")), stdin=False)
        assert session.program.env == (("A", "1"), ("B", "2")) and session.program.user == "redis"  # type: ignore[attr-defined]
        with pytest.raises(NotFoundError, match="runs no context"):
            await access.exec("11111111-1111-1111-1111-111111111111", Program(("echo",)), stdin=False)
        await world.change("shop", operating_mode="Suspended")
        await world.phase("shop.main", "Stopped")
        with pytest.raises(GuestGoneError, match="is not running: it is Stopped"):
            await access.exec(uid, Program(("echo",)), stdin=False)

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("policy", "command", "phase", "code"),
    [("Never", "true", "Succeeded", 0), ("OnFailure", "true", "Succeeded", 0), ("Never", "false", "Failed", 1)],
)
def test_programs_that_end_for_good(tmp_path: Path, policy: str, command: str, phase: str, code: int) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("job", template("main", command), restart_policy=policy))
        await world.lifeform_phase("job", phase)
        status = (await world.context("job.main")).status
        assert (status.phase, status.exit_code, status.restarts, status.pid) == (phase, code, 0, 0)
        assert status.finished_at and not world.vms
        await world.clock.sleep(4000)
        assert (await world.context("job.main")).status.phase == phase
        await world.sure.delete(Lifeform, "job", "default")
        await world.gone("job")

    play(tmp_path, story)


def test_a_failing_program_is_restarted_with_back_off(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("job", template("main", "fail")))
        uid = (await world.phase("job.main", "Preparing", "Booting")).metadata.uid
        starts: list[float] = []
        begin = world.clock.boottime()
        while len(starts) < 6:
            if world.starts.get(uid, 0) > len(starts):
                starts.append(world.clock.boottime())
            await world.clock.sleep(0.05)
            assert world.clock.boottime() - begin < 2000
        pauses = [round(later - earlier) for earlier, later in itertools.pairwise(starts)]
        run = 3.3
        assert all(abs(pause - (run + wait)) < 2 for pause, wait in zip(pauses, [0, 10, 20, 40, 80], strict=True)), pauses
        context = await world.phase("job.main", "BackOff")
        assert context.status.reason == "RestartBackOff" and "Exit code 3." in context.status.message
        assert context.status.restarts == 5
        assert await world.log("job.main") == ["failing"]
        assert await world.log("job.main", previous=True) == ["failing"]
        lifeform_ = await world.lifeform("job")
        ready = find(lifeform_.status.conditions, "Ready") if lifeform_ else None
        assert ready is not None and ready.reason == "RestartBackOff" and "Exit code 3" in ready.message

    play(tmp_path, story)


def test_a_dead_microvm_is_noticed_told_and_replaced(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        await world.vms[context.metadata.uid].end(Exit("killed", "SIGKILL"))

        async def replaced() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.restarts == 1

        await world.until(replaced)
        status = (await world.context("shop.main")).status
        assert (status.started_because, status.ip) == ("Restarted", context.status.ip)
        assert ("MicroVMDied", "The microVM was killed: SIGKILL") in await world.events()

    play(tmp_path, story)


def test_the_next_daemon_adopts_and_restarts_nothing(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template("a"), template("b")))
        before = {name: (await world.ready(name)).status for name in ("shop.a", "shop.b")}
        for _ in range(3):
            await world.kill()
            for vm in world.vms.values():
                vm.agent.write_log(b"while you were away\n")
            await world.clock.sleep(5)
            await world.start()
            for name in before:
                await world.ready(name)
        await world.clock.sleep(30)
        for name, status in before.items():
            after = (await world.context(name)).status
            assert (after.pid, after.restarts, after.started_at, after.ip) == (
                status.pid,
                0,
                status.started_at,
                status.ip,
            )
            assert await world.log(name) == ["serving", *["while you were away"] * 3]
        assert set(world.starts.values()) == {1}

    play(tmp_path, story)


def test_what_ended_while_nobody_looked(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("job", template("main", "sleep", "20"), restart_policy="Never"))
        await world.phase("job.main", "Running")
        await world.sure.create(lifeform("shop"))
        shop = await world.ready("shop.main")
        await world.kill()
        await world.clock.sleep(60)
        await world.vms[shop.metadata.uid].end(Exit("killed"))
        await world.start()
        assert (await world.phase("job.main", "Succeeded")).status.exit_code == 0

        async def restarted() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.restarts == 1

        await world.until(restarted)

    play(tmp_path, story)


def test_after_a_reboot_of_the_host_everything_starts_again(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        await world.sure.create(lifeform("off", operating_mode="Suspended"))
        await world.sure.create(lifeform("once", template("main", "serve"), restart_policy="Never"))
        await world.ready("shop.main")
        await world.ready("once.main")
        await world.phase("off.main", "Stopped")
        await world.reboot()

        async def again() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.started_because == "NodeRestarted"

        await world.until(again)
        assert (await world.phase("once.main", "Failed")).status.message == "The machine restarted under it."
        assert (await world.context("off.main")).status.phase == "Stopped"
        assert (await world.context("shop.main")).status.restarts == 1

    play(tmp_path, story)


def test_a_node_that_is_taken_down_starts_everything_again_when_it_is_back(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        await world.sure.create(lifeform("job", template("main", "true"), restart_policy="Never"))
        context = await world.ready("shop.main")
        await world.phase("job.main", "Succeeded")
        vm = world.vms[context.metadata.uid]
        assert world.node is not None
        world.node.shut_down_at_end()
        await world.kill()
        assert vm.agent.shutting_down and not world.vms
        told = (await world.context("shop.main")).status
        assert (told.phase, told.ready, told.reason) == ("Pending", False, "NodeDown")
        await world.start()

        async def again() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.started_because == "NodeRestarted"

        await world.until(again)
        assert (await world.context("job.main")).status.phase == "Succeeded"

    play(tmp_path, story)


def test_suspend_and_resume(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        await world.ready("shop.main")
        await world.change("shop", operating_mode="Suspended")
        await world.lifeform_phase("shop", "Suspended")
        assert not world.vms
        await world.change("shop", operating_mode="Running")
        context = await world.ready("shop.main")
        assert (context.status.started_because, context.status.restarts) == ("Resumed", 0)

    play(tmp_path, story)


def test_only_a_change_inside_the_guest_restarts_it(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        probe = Probe(tcp_socket=TcpSocketAction(port=80), period_seconds=1)
        world.unreachable.add((context.status.ip, 80))
        await world.change("shop", contexts=(template(readiness_probe=probe),))

        async def unready() -> bool:
            return not (await world.context("shop.main")).status.ready

        await world.until(unready)
        status = (await world.context("shop.main")).status
        assert status.phase == "Running" and "Connection refused" in status.message
        world.unreachable.clear()
        await world.ready("shop.main")
        assert world.starts[context.metadata.uid] == 1
        await world.change("shop", contexts=(template(env=(EnvVar(name="X", value="1"),)),))

        async def changed() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and status.started_because == "SpecChanged"

        await world.until(changed)
        after = await world.context("shop.main")
        assert (after.status.ip, after.status.restarts) == (context.status.ip, 0)

    play(tmp_path, story)


@pytest.mark.parametrize(
    "probe",
    [
        Probe(http_get=HttpGetAction(port=80), period_seconds=1),
        Probe(exec=ExecAction(command=("true",)), period_seconds=1),
    ],
)
def test_probes_of_all_kinds(tmp_path: Path, probe: Probe) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template(readiness_probe=probe)))
        context = await world.ready("shop.main")
        if probe.exec is not None:
            world.vms[context.metadata.uid].agent.programs["true"] = world.programs["false"]

            async def unready() -> bool:
                return not (await world.context("shop.main")).status.ready

            await world.until(unready)

    play(tmp_path, story)


def test_images_that_cannot_be_had_say_why_and_come_later(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        world.images.fail = TemporaryError("The registry does not answer.")
        await world.sure.create(lifeform("shop"))
        context = await world.phase("shop.main", "BackOff")
        assert context.status.reason == "ImagePullBackOff"
        assert "Image busybox: The registry does not answer." in context.status.message
        world.images.fail = None
        await world.ready("shop.main")
        await world.sure.create(lifeform("bad", template(image="nonesuch")))
        bad = await world.phase("bad.main", "BackOff")
        assert "There is no image 'nonesuch'." in bad.status.message
        await world.sure.create(
            Image(metadata=ObjectMeta(name="nonesuch"), spec=ImageSpec(debian=DebianSource(packages=("hello",))))
        )
        await world.ready("bad.main")
        image = await world.sure.get(Image, "nonesuch")
        assert (image.status.phase, image.status.nodes) == ("Ready", ("n1",))

    play(tmp_path, story)


def test_image_resources_are_built_told_and_tried_again(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        world.images.fail = TemporaryError("The registry does not answer.")
        spec = ImageSpec(debian=DebianSource(packages=("redis-server",)), config=ImageConfig(cmd=("serve",)))
        await world.sure.create(Image(metadata=ObjectMeta(name="mine"), spec=spec))

        def in_phase(phase: str) -> Callable[[], Awaitable[bool]]:
            async def check() -> bool:
                return (await world.sure.get(Image, "mine")).status.phase == phase

            return check

        await world.until(in_phase("Failed"))
        world.images.fail = None
        await world.until(in_phase("Ready"))
        await world.sure.create(lifeform("shop", ContextTemplate(name="main", image="mine")))
        await world.ready("shop.main")
        assert await world.log("shop.main") == ["serving"]

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("hurt", "reason", "words"),
    [
        ("disk", "DiskPressure", "is nearly full"),
        ("memory", "InsufficientMemory", "has not enough memory now"),
        ("secret", "SecretNotFound", "Secret default/pw does not exist"),
        ("vmm", "VmmFailed", "no such flag"),
        ("boot", "BootFailed", "did not answer within 30 s"),
    ],
)
def test_starts_that_fail_say_why_leave_nothing_and_are_tried_again(tmp_path: Path, hurt: str, reason: str, words: str) -> None:
    async def story(world: NodeWorld) -> None:
        world.host.free_disk = 2**20 if hurt == "disk" else 2**40
        world.host.free_memory = 2**20 if hurt == "memory" else 2**40
        world.fail_start = StartRefusedError("QEMU ended: no such flag.") if hurt == "vmm" else None
        world.boot_s = 10_000 if hurt == "boot" else 2
        secrets = (SecretMount(name="pw", mount_path="/run/secrets"),)
        await world.sure.create(lifeform("shop", template(secrets=secrets if hurt == "secret" else ())))
        context = await world.phase("shop.main", "BackOff")
        assert context.status.reason == reason and words in context.status.message
        assert not world.vms and not world.network.is_held(context.metadata.uid)
        if hurt == "boot":
            assert "waiting for nothing" in context.status.message
        world.host.free_disk = world.host.free_memory = 2**40
        world.fail_start, world.boot_s = None, 2
        data = {"password": base64.b64encode(b"s3cret").decode()}
        await world.sure.create(Secret(metadata=ObjectMeta(name="pw", namespace="default"), data=data))
        context = await world.ready("shop.main")
        if hurt == "secret":
            assert world.vms[context.metadata.uid].agent.files["/run/secrets/password"] == b"s3cret"
        assert any(event == reason for event, _ in await world.events())

    play(tmp_path, story, settings=NodeSettings(boot_deadline_s=30, plain_templates=False))


def test_a_command_the_guest_has_not_is_a_run_that_failed(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("job", template("main", "nonesuch"), restart_policy="Never"))
        context = await world.phase("job.main", "Failed")
        assert context.status.exit_code == 127 and "nonesuch cannot be started" in context.status.message
        await world.sure.create(lifeform("empty", ContextTemplate(name="main", image="bare")))
        await world.sure.create(Image(metadata=ObjectMeta(name="bare"), spec=ImageSpec(debian=DebianSource(packages=("x",)))))
        context = await world.phase("empty.main", "BackOff")
        assert "does not say what to run" in context.status.message

    play(tmp_path, story)


def test_a_start_is_broken_off_when_it_is_no_longer_wanted(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        world.boot_s = 10_000
        await world.sure.create(lifeform("shop"))
        await world.phase("shop.main", "Booting")
        begin = world.clock.boottime()
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")
        assert world.clock.boottime() - begin < 20

    play(tmp_path, story)


def test_a_guest_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", termination_grace_period_seconds=7))
        await world.ready("shop.main")
        world.deaf = True
        begin = world.clock.boottime()
        await world.sure.delete(Lifeform, "shop", "default")
        await world.gone("shop")
        assert 7 <= world.clock.boottime() - begin < 30

    play(tmp_path, story)


def test_a_broken_link_is_made_again_without_a_restart(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        vm = world.vms[context.metadata.uid]
        for _ in range(3):
            assert vm.agent.connection is not None
            await vm.agent.connection.close()
            vm.agent.write_log(b"more\n")
            await world.clock.sleep(5)
            await world.ready("shop.main")
        assert world.starts[context.metadata.uid] == 1
        assert await world.log("shop.main") == ["serving", "more", "more", "more"]

    play(tmp_path, story)


def test_peers_learn_each_others_names(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template("a")))
        first = await world.ready("shop.a")
        await world.change("shop", contexts=(template("a"), template("b")))
        await world.ready("shop.b")
        hosts = world.vms[first.metadata.uid].agent.files["/etc/hosts"].decode()
        assert "10.128.0.1\ta" in hosts and "10.128.0.2\tb" in hosts
        assert world.starts[first.metadata.uid] == 1
        await world.change("shop", contexts=(template("a"),))

        async def forgotten() -> bool:
            return "\tb" not in world.vms[first.metadata.uid].agent.files["/etc/hosts"].decode()

        await world.until(forgotten)

    play(tmp_path, story)


def test_the_in_guest_api_tells_the_guest_who_it_is(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template("redis")))
        context = await world.ready("shop.redis")
        stream = world.vms[context.metadata.uid].agent.open_stream("api")
        await stream.write(b"GET /v1/self HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := await stream.read():
            answer += piece
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body == {
            "name": "shop",
            "namespace": "default",
            "uid": context.metadata.uid,
            "context": "redis",
            "epoch": 1,
            "node": "n1",
            "rack": "r1",
            "segment": "east",
            "startedBecause": "Created",
            "address": "10.128.0.1",
        }

    play(tmp_path, story)


def test_published_ports_that_are_taken_are_told(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        world.network.taken_ports.add(8080)
        await world.sure.create(lifeform("shop", template(ports=(Port(container_port=80, publish=8080),))))
        await world.ready("shop.main")

        def published(status: str) -> Callable[[], Awaitable[bool]]:
            async def check() -> bool:
                found = find((await world.context("shop.main")).status.conditions, "PortsPublished")
                return found is not None and found.status == status

            return check

        await world.until(published("False"))
        assert any(reason == "PortNotPublished" and "8080" in message for reason, message in await world.events())
        world.network.taken_ports.clear()
        await world.until(published("True"))

    play(tmp_path, story)


def test_the_node_object_is_kept_true_and_an_idle_node_writes_nothing(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop", template(resources=Resources(cpu="250m", memory="100Mi"))))
        await world.ready("shop.main")
        await world.clock.sleep(100)
        node = await world.node_object()
        assert node.metadata.labels["topology.primordia.dev/rack"] == "r1"
        status = node.status
        assert (status.capacity.cpu, status.capacity.memory, status.allocatable.cpu) == ("8", "8192Mi", "32")
        assert (status.allocated.cpu, status.allocated.memory, status.allocated.contexts) == ("250m", "148Mi", 1)
        assert (status.address, status.boot_id, status.vmm_version) == ("10.77.0.1", "boot-1", "fake 1.0")
        assert {each.type: each.status for each in status.conditions} == {
            "Ready": "True",
            "DiskPressure": "False",
            "PoolReady": "False",
        }
        revision = (await world.memory.status()).revision
        await world.clock.sleep(3600)
        assert (await world.memory.status()).revision == revision
        world.host.free_disk = 2**20

        async def pressed() -> bool:
            found = find((await world.node_object()).status.conditions, "DiskPressure")
            return found is not None and found.status == "True"

        await world.until(pressed)
        await world.sure.delete(Node, "n1")

        async def back() -> bool:
            try:
                return bool((await world.node_object()).status.boot_id)
            except NotFoundError:
                return False

        await world.until(back)

    play(tmp_path, story)


def test_the_store_goes_away_and_nothing_that_runs_minds(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        world.store.away = True
        await world.vms[context.metadata.uid].end(Exit("killed"))
        await world.clock.sleep(120)
        assert world.starts[context.metadata.uid] == 2
        assert world.node is not None
        session = await world.node.contexts.exec(context.metadata.uid, Program(("echo", "hi")), stdin=False)
        assert (await session.wait()).code == 0
        await world.restart()
        await world.clock.sleep(60)
        assert world.node is not None
        await world.node.contexts.exec(context.metadata.uid, Program(("echo", "hi")), stdin=False)
        assert world.starts[context.metadata.uid] == 2
        world.store.away = False

        async def told() -> bool:
            status = (await world.context("shop.main")).status
            return status.restarts == 1 and status.ready

        await world.until(told)

    play(tmp_path, story)


def test_what_the_registry_forgot_is_put_away(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        await world.kill()

        await world.sure.mutate(Context, "shop.main", "default", unclaimed)
        await world.sure.mutate(Lifeform, "shop", "default", unclaimed)
        await world.sure.delete(Lifeform, "shop", "default")
        await world.sure.delete(Context, "shop.main", "default")
        assert context.metadata.uid in world.vms
        await world.start()
        await world.gone("shop")

    play(tmp_path, story)


def test_an_unreadable_record_is_put_aside_and_its_context_starts_again(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        await world.kill()
        record = Path(world.config.state_dir) / "contexts" / context.metadata.uid / "record.json"
        record.write_bytes(record.read_bytes()[:-20])
        await world.start()

        async def again() -> bool:
            status = (await world.context("shop.main")).status
            return status.ready and world.starts[context.metadata.uid] == 2

        await world.until(again)
        assert any("quarantined" in entry.name for entry in record.parent.parent.iterdir())

    play(tmp_path, story)


def test_a_microvm_that_nobody_knows_is_ended(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("shop"))
        context = await world.ready("shop.main")
        vm = world.vms[context.metadata.uid]
        await world.kill()
        (Path(world.config.state_dir) / "contexts" / context.metadata.uid / "record.json").write_bytes(b"{")
        await world.sure.mutate(Lifeform, "shop", "default", unclaimed)
        await world.sure.mutate(Context, "shop.main", "default", unclaimed)
        await world.sure.delete(Lifeform, "shop", "default")
        await world.sure.delete(Context, "shop.main", "default")
        await world.start()

        async def ended() -> bool:
            return vm.ended.done() and not any((Path(world.config.run_dir) / "c").iterdir())

        await world.until(ended)

    play(tmp_path, story)


def test_addresses_run_out_and_come_back(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("a"))
        await world.sure.create(lifeform("b"))
        await world.ready("a.main")
        await world.ready("b.main")
        await world.sure.create(lifeform("c"))
        context = await world.phase("c.main", "BackOff")
        assert context.status.reason == "NoFreeAddress"
        await world.sure.delete(Lifeform, "a", "default")
        await world.ready("c.main")

    play(tmp_path, story, pod_cidr="10.128.0.0/30")


def test_logs_are_followed_to_the_end_of_the_run(tmp_path: Path) -> None:
    async def story(world: NodeWorld) -> None:
        await world.sure.create(lifeform("job", template("main", "fail"), restart_policy="Never"))

        async def there() -> bool:
            return "job.main" in await world.contexts() and world.node is not None and bool(world.node.fleet.lives)

        await world.until(there)
        reader = asyncio.create_task(world.log("job.main", follow=True))
        await world.phase("job.main", "Failed")
        async with asyncio.timeout(10):
            assert await reader == ["failing"]

    play(tmp_path, story)
