"""What a template is made of, and so what its forks are: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from primordia.kit.units import bytes_quantity, parse_bytes, parse_milli_cpu
from primordia.node.program import DATA, initramfs_of
from primordia.ports.guest import Program
from primordia.ports.images import RootImage
from primordia.ports.vmm import Drive, MachineSpec, Nic
from primordia.wire.nodeconfig import Tools
from primordia.wire.resources import ContextTemplate, EnvVar, ImageConfig, Lifecycle, Resources, TemplateSpec, WarmUp

INTERPRETER = "/run/primordia/interpreter.py"
"""Where the agent puts the interpreter that a warm-up of Python code runs in."""


@dataclass(frozen=True)
class Disks:
    """The files of one microVM's own drives."""

    scratch: Path
    data: Path | None = None


@dataclass(frozen=True)
class Shape:
    """A microVM as far as a fork must equal its template. `root` is the image's disk, sizes are bytes.

    `data` is the file system of its data drive, whose size is each fork's own; empty: it has no place for one.
    """

    image: str
    digest: str
    root: Path
    cpus: int
    memory_bytes: int
    scratch_bytes: int
    data: str = ""

    def machine(self, uid: str, run_dir: Path, disks: Disks, owner_id: int, tools: Tools, nic: Nic | None) -> MachineSpec:
        """The microVM of this shape that is called `uid`."""
        data = (Drive(DATA, disks.data, durable=True),) if self.data and disks.data is not None else ()
        return MachineSpec(
            uid=uid,
            run_dir=run_dir,
            cpu_milli=1000 * self.cpus,
            memory_bytes=self.memory_bytes,
            kernel=Path(tools.kernel),
            initramfs=initramfs_of(tools, self.data),
            drives=(Drive("root", self.root, read_only=True), Drive("scratch", disks.scratch), *data),
            owner_id=owner_id,
            cgroup=uid,
            nic=nic,
        )


@dataclass(frozen=True)
class Recipe:
    """A template to be. `program` is its warm-up; without words nothing of the image runs, and what it says of environment,
    folder and user holds for whatever runs in a box."""

    title: str
    shape: Shape
    program: Program
    lifecycle: Lifecycle | None = None

    @property
    def is_warm(self) -> bool:
        """Whether user code runs in it."""
        return bool(self.program.argv)

    def key(self, machine_key: Mapping[str, str]) -> dict[str, str]:
        """All that must be equal for the template to be used; `machine_key` is the VMM's part."""
        program = msgspec.json.encode(self.program).decode() if self.is_warm else ""
        data = {"data": self.shape.data} if self.shape.data else {}
        return {**machine_key, "image": self.shape.digest, "scratch": str(self.shape.scratch_bytes), "program": program, **data}


def shape_of(image: str, root: RootImage, resources: Resources, scratch_bytes: int, *, data: str = "") -> Shape:
    """The shape of a context of that image and size. Raises ValueError for a bad quantity."""
    cpus = max(1, -(-parse_milli_cpu(resources.cpu) // 1000))
    return Shape(image, root.digest, root.path, cpus, parse_bytes(resources.memory), scratch_bytes, data)


def recipe_of(name: str, spec: TemplateSpec, root: RootImage, scratch_bytes: int) -> Recipe:
    """What a Template asks for."""
    argv = _warm_up(spec.warm_up) if spec.warm_up is not None else ()
    program = Program(
        argv=argv,
        env=_environment(root.config, spec.env),
        working_dir=spec.working_dir or root.config.working_dir,
        user=spec.user or root.config.user,
    )
    return Recipe(f"template {name}", shape_of(spec.image, root, spec.resources, scratch_bytes), program, spec.lifecycle)


def plain_recipe(shape: Shape, config: ImageConfig) -> Recipe:
    """A template of an image in which nothing of it has run."""
    program = Program((), env=_environment(config, ()), working_dir=config.working_dir, user=config.user)
    return Recipe(f"image {shape.image}{f' with {shape.data} data' if shape.data else ''}", shape, program)


def context_template(recipe: Recipe, name: str) -> ContextTemplate:
    """How a box of it is described: what it is of, and what runs in it."""
    shape = recipe.shape
    return ContextTemplate(
        name=name,
        image=shape.image,
        command=recipe.program.argv or None,
        env=tuple(EnvVar(name=key, value=value) for key, value in recipe.program.env),
        working_dir=recipe.program.working_dir,
        user=recipe.program.user,
        resources=Resources(cpu=str(shape.cpus), memory=bytes_quantity(shape.memory_bytes)),
        lifecycle=recipe.lifecycle,
    )


def _warm_up(warm_up: WarmUp) -> tuple[str, ...]:
    return warm_up.command if warm_up.command is not None else ("python3", INTERPRETER, warm_up.python)


def _environment(config: ImageConfig, more: tuple[EnvVar, ...]) -> tuple[tuple[str, str], ...]:
    return tuple({variable.name: variable.value for variable in (*config.env, *more)}.items())
