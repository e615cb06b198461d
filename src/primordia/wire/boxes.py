"""Claims and forks as they cross the API, between clients and servers and between nodes: the same bodies for both.

A fork is answered with 200 once the parent goes on, whatever became of the children: each tells its own outcome, as
207 (RFC 4918) does in its body. Times are in milliseconds, and counted by the node from when it was asked.
"""

from __future__ import annotations

from typing import Literal

from primordia.wire import checks
from primordia.wire.meta import Wire
from primordia.wire.problems import Problems
from primordia.wire.resources import Context, EnvVar

BOXES = "boxes"
"""Where boxes are claimed: below a namespace, beside the kinds."""
FORK = "fork"
"""The subresource of a context, and of a lifeform with one context, that forks it."""
PROMOTE = "promote"
"""The subresource of a fork with data that makes it a lifeform."""
CLAIM = "claim"
"""What another node asks at INTERNAL_CLAIMS."""
INTERNAL_CLAIMS = "/internal/v1/claims"
"""Where a node makes boxes for the other nodes; forks are at `streams.internal_path(uid, FORK)`."""

MOST_CHILDREN = 1000
_LONGEST_TTL_S = 365 * 86_400.0


class BoxRequest(Wire, frozen=True, kw_only=True):
    """A box from a template. Without a `name` the node makes one up; `ttl_seconds` 0 is for as long as it is wanted."""

    template: str
    name: str = ""
    ttl_seconds: float = 0.0
    labels: dict[str, str] = {}
    egress: bool = False


class ClaimRequest(BoxRequest, frozen=True, kw_only=True):
    """The same between nodes, where no path names the namespace."""

    namespace: str


class Claimed(Wire, frozen=True, kw_only=True):
    """What a node answers to it; with the box's object, if it has it at hand."""

    name: str
    uid: str
    node: str
    warm: bool = False
    confirmed_ms: float = 0.0
    context: Context | None = None


class BoxAnswer(Wire, frozen=True, kw_only=True):
    """The box, whether it was `warm`, and after how long its identity was confirmed."""

    context: Context
    warm: bool = False
    confirmed_ms: float = 0.0


class ForkRequest(Wire, frozen=True, kw_only=True):
    """`count` children of a running context. `lifetime` keep lets them outlive it.

    `command`, if there is one, is started in each as soon as it may; with `env`, `working_dir` and `user`, or those of the
    context's program.
    """

    count: int = 1
    ttl_seconds: float = 0.0
    lifetime: Literal["parent", "keep"] = "parent"
    inherit_secrets: bool = False
    command: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    working_dir: str = ""
    user: str = ""


class ForkOutcome(Wire, frozen=True, kw_only=True):
    """One child by its Context's name, or the reason and message why there is none."""

    name: str = ""
    uid: str = ""
    confirmed_ms: float = 0.0
    reason: str = ""
    message: str = ""


class ForkReport(Wire, frozen=True, kw_only=True):
    """`pause_ms` is how long the parent stood still, `copied_bytes` what was copied of its memory meanwhile."""

    pause_ms: float = 0.0
    copied_bytes: int = 0
    children: tuple[ForkOutcome, ...] = ()


class PromoteRequest(Wire, frozen=True, kw_only=True):
    """The `name` of the lifeform that a fork is to become."""

    name: str


class Promoted(Wire, frozen=True, kw_only=True):
    """The lifeform by `name` and `uid`, its `volume` and the `node` with it, and how long the child's disk was stilled."""

    name: str
    uid: str = ""
    volume: str = ""
    node: str = ""
    size_bytes: int = 0
    took_ms: float = 0.0


def problems_of_promotion(request: PromoteRequest) -> Problems:
    """Everything that is wrong with a request to promote a fork."""
    out = Problems()
    checks.check_label(out, "name", request.name)
    return out


def problems_of_box(request: BoxRequest) -> Problems:
    """Everything that is wrong with a request for a box."""
    out = Problems()
    checks.check_label(out, "template", request.template)
    if request.name:
        checks.check_subdomain(out, "name", request.name)
    checks.check_range(out, "ttlSeconds", request.ttl_seconds, 0, _LONGEST_TTL_S)
    checks.check_labels(out, "labels", request.labels)
    return out


def problems_of_fork(request: ForkRequest) -> Problems:
    """Everything that is wrong with a request for a fork."""
    out = Problems()
    checks.check_range(out, "count", request.count, 1, MOST_CHILDREN)
    checks.check_range(out, "ttlSeconds", request.ttl_seconds, 0, _LONGEST_TTL_S)
    checks.check_command(out, "command", request.command or None, first=True)
    for index, variable in enumerate(request.env):
        checks.check_env_name(out, f"env[{index}].name", variable.name)
    if request.working_dir:
        checks.check_path(out, "workingDir", request.working_dir)
    if request.user:
        checks.check_user(out, "user", request.user)
    if not request.command and (request.env or request.working_dir or request.user):
        out.required("command", "is missing, and env, workingDir and user are for it")
    return out
