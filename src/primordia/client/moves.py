"""A lifeform moved by request, from outside: the wish is written, and the lifeform says how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from primordia.client.aio import WaitTimeoutError
from primordia.wire.meta import ANNOTATION_MOVE
from primordia.wire.resources import Lifeform, Moved, Moving

if TYPE_CHECKING:
    from primordia.client.aio import AsyncClient

_TAKE_BACK_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a move ended: as `moved`, or else the lifeform is on `node`, for the reason `message`."""

    node: str
    moved: Moved | None
    message: str


def ended(lifeform: Lifeform | None) -> bool:
    """Whether nothing of a move is under way."""
    if lifeform is None:
        return True
    moving = lifeform.status.moving
    return ANNOTATION_MOVE not in lifeform.metadata.annotations and (moving is None or moving.phase == "GivenUp")


async def move(
    soup: AsyncClient,
    name: str,
    to: str,
    *,
    namespace: str = "",
    timeout_s: float = 600.0,
    tell: Callable[[Moving], None] = lambda moving: None,
) -> Outcome:
    """Move a lifeform `to` (`node/n2`, `rack/r1`, `segment/east`, `elsewhere`) and wait for the end of that.

    `tell` is told each state of it. A move that takes longer is taken back, if it still can be. Raises NotFoundError.
    """
    before = await soup.get(Lifeform, name, namespace=namespace)
    asked = {"metadata": {"annotations": {ANNOTATION_MOVE: to}}}
    await soup.patch(Lifeform, name, asked, namespace=namespace)

    def until(lifeform: Lifeform | None) -> bool:
        if lifeform is not None and lifeform.status.moving is not None:
            tell(lifeform.status.moving)
        return ended(lifeform)

    late = ""
    begun_s = time.monotonic()
    try:
        after = await soup.wait(Lifeform, name, until, namespace=namespace, timeout_s=timeout_s)
    except WaitTimeoutError:
        late = f"It was not done within {time.monotonic() - begun_s:.0f} s."
        await soup.patch(Lifeform, name, {"metadata": {"annotations": {ANNOTATION_MOVE: None}}}, namespace=namespace)
        after = await soup.wait(Lifeform, name, until, namespace=namespace, timeout_s=_TAKE_BACK_S)
    return _outcome(before, after, late)


def _outcome(before: Lifeform, after: Lifeform | None, late: str) -> Outcome:
    if after is None or after.metadata.uid != before.metadata.uid:
        return Outcome("", None, "It was deleted meanwhile.")
    status = after.status
    if status.moved is not None and status.moved != before.status.moved:
        return Outcome(status.node, status.moved, "")
    said = status.moving.message if status.moving is not None else f"It is on {status.node}, for another reason."
    return Outcome(status.node, None, f"{late} {said}".strip())
