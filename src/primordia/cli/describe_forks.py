"""Templates, boxes and forks, told for people: parts of `describe`."""

from __future__ import annotations

from primordia.kit.units import human_bytes
from primordia.wire.resources import Context, Template
from primordia.wire.tables import warm_up_words

Lines = list[tuple[str, str]]

CAME = {"warm": "a fork that waited", "cold": "a fork made for it", "memory": "its own memory, kept", "boot": "a boot"}


def whose_lines(obj: Context) -> Lines:
    """What a context belongs to: a lifeform; or, for a box or fork, where it comes from and how long it may live."""
    spec = obj.spec
    if spec.lifeform:
        return [("Lifeform", spec.lifeform)]
    lines: Lines = [("Template", spec.from_template)] if spec.from_template else []
    if spec.parent:
        ends = "ends with it" if spec.lifetime == "parent" else "outlives it"
        lines.append(("Parent", f"{spec.parent}, {ends}; {spec.depth} forks deep"))
    return [*lines, ("Expires", spec.expires_at or "never")]


def template_lines(obj: Template) -> Lines:
    """A template."""
    spec, status = obj.spec, obj.status
    lines: Lines = [
        ("Phase", status.phase),
        ("Image", spec.image),
        ("Warm-up", warm_up_words(obj) or "none: nothing of the image has run"),
        ("Resources", f"cpu {spec.resources.cpu}, memory {spec.resources.memory}"),
        ("Warm", f"{spec.warm.min} to {spec.warm.most} on each node"),
    ]
    for each in status.nodes:
        words = (
            f"{each.warm} wait, {human_bytes(each.size_bytes)}, {each.digest.removeprefix('sha256:')[:12] or 'not frozen yet'}"
        )
        lines.append((f"On {each.node}", words))
    if spec.env:
        lines.append(("Environment", ", ".join(variable.name for variable in spec.env)))
    if spec.user:
        lines.append(("User", spec.user))
    if spec.working_dir:
        lines.append(("Folder", spec.working_dir))
    if status.message:
        lines.append(("Message", status.message))
    return lines
