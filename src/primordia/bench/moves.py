"""What a move costs its lifeform: how long nothing of it is ready, as the controllers measure it."""

from __future__ import annotations

from primordia.client.aio import AsyncClient
from primordia.client.moves import move
from primordia.kit.errors import PermanentError
from primordia.wire.resources import Volume


async def drain_blackouts(soup: AsyncClient, name: str, rounds: int, *, timeout_s: float = 300.0) -> list[float]:
    """Move the lifeform away from its node so many times, as a drain does; the blackouts, in seconds.

    Waits in between until its copies are in sync, so that each move finds what a drain of a healthy soup finds.
    Raises PermanentError when a move is given up.
    """
    found = []
    for _ in range(rounds):
        await _settled(soup, name, timeout_s)
        outcome = await move(soup, name, "elsewhere", timeout_s=timeout_s)
        if outcome.moved is None:
            raise PermanentError(f"Lifeform {name} was not moved. {outcome.message}")
        found.append(outcome.moved.blackout_seconds)
    return found


async def _settled(soup: AsyncClient, name: str, timeout_s: float) -> None:
    for volume in (await soup.list(Volume)).items:
        if volume.spec.lifeform == name:
            await soup.wait(Volume, volume.metadata.name, _in_sync, timeout_s=timeout_s)


def _in_sync(volume: Volume | None) -> bool:
    copies = volume.status.copies if volume is not None else ()
    return bool(copies) and all(copy.state == "InSync" for copy in copies)
