"""What runs in a context: the image's program with the lifeform's words laid over it, as Kubernetes does. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from primordia.kit.errors import InvalidError, UnsupportedError
from primordia.ports.guest import Mount, Program
from primordia.wire.nodeconfig import Tools
from primordia.wire.resources import ContextSpec, ContextTemplate, ImageConfig, Lifecycle
from primordia.wire.volumes import SnapshotPolicy

DATA = "data"
"""What a guest's data drive is called."""


def program_of(template: ContextTemplate, image: ImageConfig) -> Program:
    """The main program. `command` replaces ENTRYPOINT and drops the image's CMD; `args` replaces CMD.

    Raises InvalidError when neither the lifeform nor the image says what to run.
    """
    if template.command is not None:
        argv = template.command + (template.args or ())
    else:
        argv = (image.entrypoint or ()) + (template.args if template.args is not None else image.cmd or ())
    if not argv:
        raise InvalidError(
            f"contexts[{template.name}].command",
            f"the image {template.image!r} does not say what to run",
            remedy="Give the context a command.",
        )
    env = {variable.name: variable.value for variable in (*image.env, *template.env)}
    return Program(
        argv=argv,
        env=tuple(env.items()),
        working_dir=template.working_dir or image.working_dir,
        user=template.user or image.user,
        tty=template.tty,
    )


def hooks_of(lifecycle: Lifecycle | None, program: Program) -> tuple[Program, ...]:
    """What runs in a fork before it is anybody's, as the program beside which it runs."""
    if lifecycle is None or lifecycle.post_fork is None:
        return ()
    return (replace(program, argv=lifecycle.post_fork.exec.command, tty=False),)


def filesystem_of(spec: ContextSpec) -> str:
    """That of its data; empty when it has none."""
    return spec.template.data.filesystem if spec.template.data is not None and spec.volume_uid else ""


def mounts_of(spec: ContextSpec) -> tuple[Mount, ...]:
    """What is mounted in the guest beside its root."""
    data = spec.template.data
    return (Mount(DATA, data.mount_path, data.filesystem),) if data is not None and spec.volume_uid else ()


def initramfs_of(tools: Tools, filesystem: str) -> Path:
    """What a guest boots from whose data has that file system (empty: no data). Raises UnsupportedError."""
    if filesystem != "xfs":
        return Path(tools.initramfs)
    if not tools.initramfs_xfs:
        raise UnsupportedError("The guests' kernel has no xfs on this node.", remedy="Use ext4.", reason="NoXfs")
    return Path(tools.initramfs_xfs)


def fingerprint(spec: ContextSpec) -> str:
    """What a running microVM cannot change: a new value asks for a new start. Ports and probes are the node's alone, and data
    grows, and is snapshotted, while it is in use."""
    data = spec.template.data
    place = msgspec.structs.replace(data, size="", snapshots=SnapshotPolicy()) if data is not None else None
    inside = msgspec.structs.replace(spec.template, ports=(), readiness_probe=None, lifecycle=None, data=place)
    content = msgspec.json.encode([inside, spec.epoch, spec.lifeform_uid])
    return hashlib.sha256(content).hexdigest()[:16]
