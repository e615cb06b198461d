"""Programs that a fork is asked to run beside what it has of its parent: started as an exec, their output in the context's log.

They are followed by the daemon that started them, and end with it, as every exec does.
"""

from __future__ import annotations

import logging

from primordia.kit.errors import PrimordiaError
from primordia.kit.tasks import TaskSet
from primordia.node.access import completed
from primordia.node.live import Live
from primordia.node.services import Services
from primordia.ports.guest import ExecSession, GuestGoneError, Program

log = logging.getLogger(__name__)


class Programs:
    """The programs of one node's forks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks = TaskSet("fork programs")

    async def start(self, live: Live, program: Program) -> None:
        """Start it. Raises GuestError when the guest has not got it, GuestGoneError."""
        if live.guest is None:
            raise GuestGoneError(f"The guest of context {live.title} does not answer now.")
        try:
            session = await live.guest.exec(completed(program, live.program), stdin=False)
        except PrimordiaError as error:
            if live.context is not None:
                self._services.events.record(live.context, "ProgramNotStarted", str(error), warning=True)
            raise
        self._tasks.start(self._follow(live, program, session), name=live.title)

    async def close(self) -> None:
        """Let go of them all."""
        await self._tasks.close()

    async def _follow(self, live: Live, program: Program, session: ExecSession) -> None:
        try:
            async for _, data in session.output():
                live.log.add_beside(data)
            status = await session.wait()
        except PrimordiaError as error:
            log.debug("%s: %s is out of sight: %s", live.title, program.argv[0], error)
            return
        finally:
            await session.close()
        if live.context is not None:
            what = f"{program.argv[0]} ended with exit code {status.code}."
            self._services.events.record(live.context, "ProgramEnded", what, warning=status.code != 0)
