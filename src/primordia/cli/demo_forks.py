"""The demo's chapter of forks: the running Redis ten times over, one of them changed, and nobody else the wiser."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from primordia.cli.demo_stage import Stage, median, say
from primordia.cli.fork import report_text
from primordia.cli.run import context_of
from primordia.client.aio import AsyncClient
from primordia.kit.errors import PermanentError
from primordia.wire.boxes import ForkRequest
from primordia.wire.meta import LABEL_PARENT
from primordia.wire.resources import Context

_CHILDREN = 10
_KEY = "greeting"
_CHANGED = "hello from a fork"


@dataclass
class Forks:
    """Children of the context `container` of the lifeform `name`, a Redis."""

    stage: Stage
    client: AsyncClient
    name: str
    container: str

    async def happen(self) -> None:
        """Fork, change one, look at all, delete them. Raises PermanentError when any of it is not as it should be."""
        self.stage.title(f"The running Redis, {_CHILDREN} times more")
        parent = (await context_of(self.client, self.name, "", self.container)).metadata.name
        children = await self._fork()
        changed, *others = children
        before = await self._value(parent)
        await self.stage.primordia("exec", f"context/{changed}", "--", "redis-cli", "set", _KEY, _CHANGED)
        self.stage.typed(f"for each in {parent} $CHILDREN; do primordia exec context/$each -- redis-cli get {_KEY}; done")
        values = await asyncio.gather(*(self._value(name) for name in (parent, *children)))
        if values != [before, _CHANGED, *[before] * len(others)]:
            raise PermanentError(f"Forks are not each other's own: {Counter(values)}.")
        say(f"the parent           {before}")
        say(f"the changed child    {_CHANGED}")
        say(f"the {len(others)} others         {before}")
        await self.stage.primordia("delete", "contexts", "-l", f"{LABEL_PARENT}={parent}", "-q")

    async def _fork(self) -> list[str]:
        """The children, and the table of times."""
        self.stage.typed(f"primordia fork {self.name}/{self.container} --count {_CHILDREN}")
        report = await self.client.fork_report(self.name, ForkRequest(count=_CHILDREN), container=self.container)
        print(report_text(report), flush=True)
        failures = [each.message or each.reason for each in report.children if not each.name]
        if failures:
            raise PermanentError(f"{len(failures)} of {_CHILDREN} children could not be made: {failures[0]}")
        print(f"The parent stood still for {report.pause_ms:.1f} ms.", flush=True)
        confirmed_ms = [each.confirmed_ms for each in report.children]
        self.stage.note(f"running Redis forked {_CHILDREN} times: the parent's pause", f"{report.pause_ms:.1f} ms")
        self.stage.note("  a child confirmed, from the request on, p50", median(confirmed_ms))
        self.stage.note(f"  all {_CHILDREN} of them", f"{max(confirmed_ms):.1f} ms")
        return [each.name for each in report.children]

    async def _value(self, context: str) -> str:
        """What that Redis says."""
        answer = await self.client.exec(context, ["redis-cli", "get", _KEY], kind=Context)
        return answer.stdout.decode().strip()
