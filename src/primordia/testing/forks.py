"""A node in memory that forks: what tests of templates, claims and live forks have in common."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from primordia.drivers.guest_fake import FakeProcess
from primordia.node.forks.building import READY
from primordia.node.forks.service import ForkService
from primordia.node.settings import NodeSettings
from primordia.ports.forks import Claimed, ClaimRequest, ForkReport, ForkRequest
from primordia.ports.vmm import Exit
from primordia.testing.node import LIFE, NodeWorld, Vm
from primordia.testing.virtual import run_virtual
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, Lifecycle, Resources, Template, TemplateSpec, WarmRange, WarmUp

SETTINGS = NodeSettings(plain_templates=True, plain_warm=1, most_forks=30, most_forks_of_root=10, deepest_fork=3)


async def warm_up(process: FakeProcess) -> int:
    """A warm-up as it should be: says that it is ready, and stays."""
    await process.print(b"warming\n")
    process.agent.files[READY] = b""
    await asyncio.get_running_loop().create_future()
    return 0


async def give_up_soon(process: FakeProcess) -> int:
    """A warm-up that ends."""
    await process.print(b"no module named sun\n")
    return 3


async def never_ready(process: FakeProcess) -> int:
    """A warm-up that takes for ever."""
    await process.print(b"still loading\n")
    await asyncio.get_running_loop().create_future()
    return 0


class ForkWorld(NodeWorld):
    """A NodeWorld with templates."""

    def __init__(self, root: Path, seed: int = 0, settings: NodeSettings | None = None, **config: Any) -> None:
        super().__init__(root, seed, settings or SETTINGS, **config)
        self.graveyard: list[asyncio.Task[Any]] = []
        self.programs |= {"warm": warm_up, "give-up": give_up_soon, "never": never_ready}

    async def crash(self) -> None:
        """The daemon dies on the spot, and the next one starts: nothing that the dead one's tasks would still do gets out."""
        self.knife.dead.add(LIFE.get())
        LIFE.set(LIFE.get() + 1)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self.graveyard += tasks
        await asyncio.sleep(0.1)  # they run into the dead's wall before the next one begins
        await self.start()

    async def close(self) -> None:
        self.knife.let_the_dead_rest()
        for task in self.graveyard:
            task.cancel()
        await asyncio.gather(*self.graveyard, return_exceptions=True)
        await super().close()

    @property
    def forks(self) -> ForkService:
        """The forks of the daemon that runs now."""
        assert self.node is not None
        return self.node.forks

    async def template(
        self, name: str = "py", command: str = "warm", *, warm: tuple[int, int] = (2, 4), lifecycle: Lifecycle | None = None
    ) -> Template:
        """A Template, and wait until it is ready and its pool is full."""
        spec = TemplateSpec(
            image="busybox",
            warm_up=WarmUp(command=(command,)) if command else None,
            resources=Resources(cpu="1", memory="128Mi"),
            warm=WarmRange(min=warm[0], max=warm[1]),
            lifecycle=lifecycle,
        )
        await self.sure.create(Template(metadata=ObjectMeta(name=name), spec=spec))
        return await self.until_warm(name, warm[0])

    async def until_warm(self, name: str, count: int) -> Template:
        """Wait until so many forks of the template wait, and its status says so."""

        async def reached() -> bool:
            status = (await self.sure.get(Template, name)).status
            return status.phase == "Ready" and bool(status.nodes) and status.nodes[0].warm == count

        await self.until(reached, what=f"{count} forks of {name} wait")
        return await self.sure.get(Template, name)

    async def claim(self, template: str = "py", **request: Any) -> Claimed:
        """A box."""
        return await self.forks.claim(ClaimRequest(namespace="default", template=template, **request))

    async def fork(self, name: str, **request: Any) -> ForkReport:
        """Fork a context by name."""
        return await self.forks.fork((await self.context(name)).metadata.uid, ForkRequest(**request))

    async def vm_of(self, name: str) -> Vm:
        """The microVM of a context, whatever it is called."""
        assert self.node is not None
        uid = (await self.context(name)).metadata.uid
        live = self.node.fleet.get(uid)
        assert live is not None
        return self.vms[live.record.machine]

    async def delete(self, name: str) -> None:
        """Delete a context, and wait until it is gone."""
        await self.sure.delete(Context, name, "default")

        async def gone() -> bool:
            return name not in await self.contexts()

        await self.until(gone, what=f"{name} gone")

    def leftovers(self, contexts: dict[str, Context]) -> list[str]:
        """What tells that a lifeform is not gone yet; what else is there, `strays` knows better."""
        lives = self.node.fleet.lives if self.node is not None else {}
        return [f"context {uid}" for uid, live in lives.items() if live.record.spec.lifeform and live.wish().removed]

    def waiting(self) -> list[Vm]:
        """The forks that wait."""
        names = {fork.uid for fork in self.forks._pool.forks()}
        return [vm for uid, vm in self.vms.items() if uid in names]

    async def strays(self) -> list[str]:
        """What is on the machine that belongs neither to a context nor to the pool."""
        found = []
        lives = self.node.fleet.lives if self.node is not None else {}
        contexts = {context.metadata.uid for context in (await self.contexts()).values()}
        known = {live.record.machine for uid, live in lives.items() if uid in contexts} | self.forks.uids
        found += [f"microVM {uid}" for uid, vm in self.vms.items() if uid not in known and not vm.ended.done()]
        state = Path(self.config.state_dir)
        found += [f"run folder {path.name}" for path in _entries(Path(self.config.run_dir) / "c") if path.name not in known]
        found += [f"disk {path.name}" for path in _entries(state / "pool") if path.stem not in self.forks.uids]
        found += [f"context folder {path.name}" for path in _entries(state / "contexts") if path.name not in contexts]
        frozen = {live.record.run.frozen for live in lives.values() if live.record.run is not None}
        found += [f"image {path.name}" for path in _entries(state / "forks") if path.name not in frozen]
        found += [f"build {path.name}" for path in _entries(state / "templates") if path.name.startswith(".")]
        allowed = contexts | self.forks.uids | {uid for uid in known}
        found += [f"address of {uid}" for uid in self.node.fleet.addresses() if uid not in allowed] if self.node else []
        return found

    async def nothing_stray(self) -> None:
        """Wait until nothing is left over."""

        async def clean() -> bool:
            return not await self.strays()

        with contextlib.suppress(AssertionError):
            await self.until(clean, within_s=200, what="nothing left over")
        assert await self.strays() == []

    async def end_vm(self, vm: Vm) -> None:
        """Its VMM is killed by somebody else."""
        await vm.end(Exit("killed", "SIGKILL"))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


Story = Callable[[ForkWorld], Awaitable[None]]


def play(tmp_path: Path, story: Story, **settings: Any) -> None:
    """Tell a story in a world of its own, under virtual time."""

    async def main() -> None:
        world = ForkWorld(tmp_path, settings=dataclasses.replace(SETTINGS, **settings))
        try:
            await world.start()
            await story(world)
        finally:
            await world.close()

    run_virtual(main())
