"""The demo's story: six nodes, a lifeform of two microVMs, who talks to it from where, and who dies without it noticing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from primordia.cli.demo_data import DataChapter, manifest_with, pools_everywhere
from primordia.cli.demo_faults import Faults
from primordia.cli.demo_forks import Forks
from primordia.cli.demo_stage import SOUP, Stage, free_port, median, say, until
from primordia.cli.demo_survive import Survive
from primordia.cli.demo_writer import connection
from primordia.cli.run import context_of
from primordia.client.aio import AsyncClient, connect
from primordia.host.doctor import examine
from primordia.host.leaks import Leak
from primordia.kit.errors import PrimordiaError
from primordia.wire.resources import Node

NAME = "cache"
NODES = 6
MANIFEST = r"""apiVersion: primordia.dev/v1alpha1
kind: Lifeform
metadata: {name: cache}
spec:
  contexts:
    - name: redis
      image: redis
DATA
      ports: [{containerPort: 6379, publish: REDIS_PORT}]
      resources: {cpu: 500m, memory: 96Mi}
      readinessProbe: {tcpSocket: {port: 6379}, initialDelaySeconds: 1, periodSeconds: 1}
    - name: exporter
      image: busybox
      command:
        - sh
        - -c
        - |
          mkdir /www && httpd -p 9121 -h /www
          while sleep 1; do
            printf 'INFO\r\nQUIT\r\n' | nc redis 6379 | tr -d '\r' | grep -E 'redis_vers|uptime_in_s|total_comm' > /www/new
            mv /www/new /www/metrics
          done
      ports: [{containerPort: 9121, publish: EXPORTER_PORT}]
      resources: {cpu: 500m, memory: 80Mi}
REPLICATION
"""
_REDIS_PORT, _EXPORTER_PORT = 16379, 19121
_ROUND_TRIPS = 100
_EXECS = 10
_HTTP_TIMEOUT_S = 5.0
_SECOND_LOOK_S = 3.0


@dataclass
class Story:
    """Told on a stage. `redis` is Redis's client library; ports, hosts and `with_data` are known once the soup is up."""

    stage: Stage
    redis: Any
    hosts: Sequence[str] = ()
    port: int = _REDIS_PORT
    exporter_port: int = _EXPORTER_PORT
    before: tuple[Leak, ...] = ()
    with_data: bool = True

    async def tell(self) -> None:
        """Everything but the end."""
        self.before = (await examine(machine=False)).leaks
        await self._soup()
        async with connect(self.stage.config) as client:
            self.hosts = [urlsplit(server).hostname or "" for server in client.config.servers]
            self.port = free_port(self.hosts, _REDIS_PORT)
            self.exporter_port = free_port(self.hosts, _EXPORTER_PORT)
            await self._lifeform(client)
            await self._place()
            await self._talk(client)
            await self._look_inside(client)
            await Forks(self.stage, client, NAME, "redis").happen()
            await Faults(self.stage, client, NAME, self.redis, self.hosts, self.port).happen()
            if self.with_data:
                await DataChapter(self.stage, client, NAME, "redis").happen()
                await Survive(self.stage, client, NAME, "redis", self.redis, self.hosts, self.port).happen()

    async def _soup(self) -> None:
        stage = self.stage
        stage.title("Six nodes on three racks in two segments")
        seconds = await stage.primordia("up", "--soup", SOUP, "--nodes", str(NODES), "--racks", "3", "--segments", "2")
        stage.note("  six nodes up and ready to serve", f"{seconds:.1f} s")
        await stage.primordia("node", "ls")

    async def _lifeform(self, client: AsyncClient) -> None:
        stage = self.stage
        stage.title("One lifeform: Redis, and beside it a small exporter; each is a microVM")
        self.with_data = pools_everywhere((await client.list(Node)).items)
        if not self.with_data:
            print("Not every node could make a pool for volumes, so Redis has its data in memory only this time.")
        manifest = manifest_with(MANIFEST, data=self.with_data)
        manifest = manifest.replace("REDIS_PORT", str(self.port)).replace("EXPORTER_PORT", str(self.exporter_port))
        with tempfile.TemporaryDirectory(prefix="primordia-demo-") as folder:
            file = Path(folder) / "cache.yaml"
            file.write_text(manifest)
            stage.typed("cat cache.yaml")
            print(manifest, end="")
            seconds = await stage.primordia("image", "build", "redis")
            seconds += await stage.primordia("image", "build", "busybox")
            stage.note("  two images built, or found in the cache", f"{seconds:.1f} s")
            stage.typed("primordia apply -f cache.yaml --wait")
            seconds = await stage.silently("apply", "-f", str(file), "--wait")
        stage.note("  lifeform applied, until both microVMs are ready", f"{seconds:.1f} s")
        async with connection(self.redis, self.hosts[0], self.port) as redis:
            await until(redis.ping, "Redis")
        since = stage.since_begun()
        stage.measured.insert(0, ("from nothing to the first lifeform answering", since))
        print(f"Redis answers through a published port, {since} after there was nothing.")
        context = await context_of(client, NAME, "", "redis")
        stage.note("  Redis' microVM booting, of that", f"{(context.status.boot_ms or 0) / 1000:.1f} s")

    async def _place(self) -> None:
        self.stage.title("Why there?")
        await self.stage.primordia("events", f"lf/{NAME}")
        await self.stage.primordia("racks", "-o", "wide")

    async def _talk(self, client: AsyncClient) -> None:
        stage = self.stage
        home = (await context_of(client, NAME, "", "redis")).spec.node
        own = int(home.removeprefix("n")) - 1
        asked = [(own + step) % NODES for step in (0, 1, 3)]
        stage.title("A Redis client on this host: every node's address is as good")
        taken: dict[int, list[float]] = {}
        async with connection(self.redis, self.hosts[own], self.port) as redis:
            await redis.set("greeting", "hello from")
        for index in asked:
            async with connection(self.redis, self.hosts[index], self.port) as redis:
                await until(redis.ping, "Redis")
                await redis.append("greeting", f" n{index + 1}")
                taken[index] = await _round_trips(redis)
                said = (await redis.get("greeting")).decode()
            say(f"{self.hosts[index]}:{self.port}   n{index + 1}   {median(taken[index]):>7}   {said}")
        stage.note(f"Redis round trip by the lifeform's own node, p50 of {_ROUND_TRIPS}", median(taken[own]))
        stage.note("  the same by another node", median(taken[asked[1]]))
        other = self.hosts[asked[2]]
        stage.typed(f"curl http://{other}:{self.exporter_port}/metrics   # the exporter, who asks Redis by name")
        found: list[str] = []

        async def scrape() -> None:
            found[:] = [await asyncio.to_thread(_fetch, f"http://{other}:{self.exporter_port}/metrics")]

        await until(scrape, "the exporter")
        say(found[0].rstrip())

    async def _look_inside(self, client: AsyncClient) -> None:
        stage = self.stage
        stage.title("What lives here")
        await stage.primordia("get", "lf,ctx")
        await stage.primordia("describe", "lf", NAME)
        stage.title("Inside: commands, output, files")
        await stage.primordia("exec", f"{NAME}/redis", "--", "redis-cli", "get", "greeting")
        await stage.primordia("exec", f"{NAME}/exporter", "--", "sh", "-c", "echo PING | nc -w 1 redis 6379")
        await stage.primordia("exec", NAME, "--", "kbl", "self")
        await stage.primordia("logs", NAME, "--tail", "1")
        with tempfile.TemporaryDirectory(prefix="primordia-demo-") as folder, _inside_folder(folder):
            Path("note").write_text("carried in and out again\n")
            await stage.primordia("cp", "note", f"{NAME}:/tmp/note")
            await stage.primordia("cp", f"{NAME}:/tmp/note", "back")
            stage.typed("cat back")
            print(Path("back").read_text(), end="")
        taken = []
        for _ in range(_EXECS):
            begun = time.perf_counter()
            await client.exec(NAME, ["/bin/true"])
            taken.append((time.perf_counter() - begun) * 1000)
        stage.note(f"exec of /bin/true, p50 of {_EXECS}", median(taken))

    # ------------------------------------------------------------ the end

    async def end(self) -> int:
        """Take it down and look for what is left; gives the number of leaks."""
        stage = self.stage
        stage.title("Everything down, and proof that nothing is left")
        stage.note("everything down and deleted", f"{await self._down():.1f} s")
        stage.typed("primordia doctor --leaks")
        leaks = await self._leaks()
        if leaks:  # what comes and goes is the work of somebody else on this machine
            await asyncio.sleep(_SECOND_LOOK_S)
            leaks = [leak for leak in await self._leaks() if leak in leaks]
        for leak in leaks:
            print(f"leak  {leak.kind} {leak.name}: {leak.detail}")
        print(f"{len(leaks)} leaks")
        stage.note("leaks", str(len(leaks)))
        return len(leaks)

    async def _leaks(self) -> list[Leak]:
        """What there is now and was not before: that is somebody else's, and `primordia doctor` tells of it."""
        return [leak for leak in (await examine(machine=False)).leaks if leak not in self.before]

    async def _down(self) -> float:
        return await self.stage.primordia("down", "--soup", SOUP, "--destroy", "--yes")

    async def clean_up(self) -> None:
        """After a failure: what there is goes, and a second failure does not hide the first."""
        print("\nThe demo ends early; taking down what it made.", file=sys.stderr, flush=True)
        with contextlib.suppress(PrimordiaError):
            await self._down()

    def farewell(self) -> None:
        """Five things to try."""
        config = self.stage.config
        program = os.environ.get("PRIMORDIA_PROGRAM", "primordia")
        if config is not None and config.name != "config":
            program = f"PRIMORDIA_CONFIG={config} {program}"
        lines = (
            f"{program} status",
            f"{program} run -it --rm busybox -- sh",
            f"{program} exec {NAME} -- redis-cli info memory",
            f"{program} run -d --rack r1 -p 16380:6379 redis",
            f"redis-cli -h {self.hosts[-1]} -p {self.port}   # or any other Redis client; any node's address",
        )
        print("\nThe soup is up. Five things to try:\n")
        print("\n".join(f"  {line}" for line in lines))
        print(f"\nTake it down with: sudo {program} down --soup {SOUP} --destroy")


async def _round_trips(redis: Any) -> list[float]:
    taken = []
    for _ in range(_ROUND_TRIPS):
        begun = time.perf_counter()
        await redis.incr("visits")
        taken.append((time.perf_counter() - begun) * 1000)
    return taken


def _fetch(url: str) -> str:
    """A page that has something in it. Raises OSError (urllib's own errors are), ValueError when it is empty."""
    with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as answer:
        text = str(answer.read().decode(errors="replace"))
    if not text.strip():
        raise ValueError("the page is empty")
    return text


@contextlib.contextmanager
def _inside_folder(folder: str) -> Any:
    """Typed names are then short. Nothing else of this process looks at the working folder meanwhile."""
    with contextlib.chdir(folder):
        yield
