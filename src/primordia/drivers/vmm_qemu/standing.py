"""Stopping a machine's virtual CPUs for a freeze so that they go on whatever happens.

A task of its own asks for it until it is done, so that no cancellation can leave the machine standing; and a file in the
run folder lets the next daemon do it when this one dies in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from primordia.drivers.vmm_qemu import rundir
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.kit.tasks import TaskSet

log = logging.getLogger(__name__)

_TRY_AGAIN_AFTER_S = 0.2
_GOES_ON_WITHIN_S = 12.0


class Standing:
    """The virtual CPUs of one machine. `lock` is held by whoever stops or starts them."""

    def __init__(self, uid: str, run_dir: Path, ask: Callable[[str], Awaitable[None]], tasks: TaskSet) -> None:
        """`ask` gives the monitor a command; it raises PermanentError when that will never work again."""
        self.lock = asyncio.Lock()
        self._uid = uid
        self._file = run_dir / rundir.STANDING
        self._ask = ask
        self._tasks = tasks

    @contextlib.asynccontextmanager
    async def stopped(self, go_on: bool) -> AsyncIterator[None]:
        """They stand within, and go on afterwards: always after a failure, else if `go_on`."""
        self._file.touch()
        try:
            await self._ask("stop")
            yield
        except BaseException:
            go_on = True
            raise
        finally:
            if go_on:
                await asyncio.wait([self._start()], timeout=_GOES_ON_WITHIN_S)
            else:
                self._file.unlink(missing_ok=True)

    def go_on_after_death(self) -> None:
        """Let them go on if they stand for a freeze that its daemon did not live to end."""
        if self._file.exists():
            self._start()

    def _start(self) -> asyncio.Task[None]:
        return self._tasks.start(self._until_they_go_on(), name="go on")

    async def _until_they_go_on(self) -> None:
        while True:
            try:
                await self._ask("cont")
                break
            except TemporaryError:
                await asyncio.sleep(_TRY_AGAIN_AFTER_S)
            except PermanentError as error:
                # It has ended, or this program lets go of it and the next one finds the file.
                log.info("microVM %s does not go on after a freeze: %s", self._uid, error)
                return
        self._file.unlink(missing_ok=True)
