"""What a template's spec may hold."""

from __future__ import annotations

from primordia.wire import checks, lifeform_rules
from primordia.wire.problems import Problems
from primordia.wire.resources import TemplateSpec, WarmUp

MOST_WARM = 1000
"""On each node; what its memory allows is the node's own business."""
_LONGEST_CODE = 64 * 1024


def check_template(out: Problems, spec: TemplateSpec) -> None:
    """A template's spec."""
    lifeform_rules.check_surroundings(out, "spec", spec)
    if spec.warm_up is not None:
        _check_warm_up(out, "spec.warmUp", spec.warm_up)
    checks.check_range(out, "spec.warm.min", spec.warm.min, 0, MOST_WARM)
    checks.check_range(out, "spec.warm.max", spec.warm.max, 0, MOST_WARM)
    if 0 < spec.warm.max < spec.warm.min:
        out.invalid("spec.warm.max", f"{spec.warm.max} is less than min, which is {spec.warm.min}")


def _check_warm_up(out: Problems, field: str, warm_up: WarmUp) -> None:
    if (warm_up.command is not None) == bool(warm_up.python):
        out.invalid(field, "must have exactly one of command and python; leave it out for a template that has run nothing")
    checks.check_command(out, f"{field}.command", warm_up.command, first=True)
    checks.check_text(out, f"{field}.python", warm_up.python, _LONGEST_CODE)
