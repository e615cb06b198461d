"""The client for code that is not asynchronous: the same methods, each run to its end on a loop in a thread of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from primordia.client.aio import AsyncClient
from primordia.client.boxes import Box
from primordia.client.config import ClientConfig, load
from primordia.client.sync_boxes import SyncBox, forked
from primordia.client.twins import Loop, call, enter, iterate
from primordia.wire.boxes import ForkRequest

list_ = list


class Client:
    """A connection to a soup for synchronous code; may be shared by threads. Use it with `with`, or `close` it."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.loop = Loop()
        self.asynchronous = AsyncClient(config)

    @classmethod
    def connect(cls, config: Path | None = None, *, server: str = "", namespace: str = "") -> Client:
        """A client from the user's config (see `client/config.py`). Raises ConfigError."""
        return cls(load(config, server=server, namespace=namespace))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection and end the thread."""
        if not self.loop.closed:
            self.loop.run(self.asynchronous.close())
            self.loop.close()

    def box(
        self,
        template: str = "",
        *,
        image: str = "",
        name: str = "",
        ttl: float = 0.0,
        labels: Mapping[str, str] | None = None,
        egress: bool = False,
        namespace: str = "",
    ) -> SyncBox:
        """Claim a box: see `AsyncClient.box`. Used with `with`, it is killed at the end of the block."""

        async def claim() -> Box:
            return await self.asynchronous.box(
                template, image=image, name=name, ttl=ttl, labels=labels, egress=egress, namespace=namespace
            )

        return SyncBox(self.loop.run(claim()), self.loop)

    def fork(self, name: str, wanted: ForkRequest = ForkRequest(), **where: Any) -> list_[SyncBox]:  # noqa: B008 (frozen)
        """Fork a running context: see `AsyncClient.fork`."""
        return forked(self.loop, self.asynchronous.fork(name, wanted, **where))

    get = call(AsyncClient.get)
    list = call(AsyncClient.list)
    watch = iterate(AsyncClient.watch)
    create = call(AsyncClient.create)
    create_manifest = call(AsyncClient.create_manifest)
    replace = call(AsyncClient.replace)
    patch = call(AsyncClient.patch)
    apply = call(AsyncClient.apply)
    delete = call(AsyncClient.delete)
    wait = call(AsyncClient.wait)
    snapshot = call(AsyncClient.snapshot)
    snapshots = call(AsyncClient.snapshots)
    restore = call(AsyncClient.restore)
    clone = call(AsyncClient.clone)
    export = call(AsyncClient.export)
    import_volume = call(AsyncClient.import_volume)
    sync = call(AsyncClient.sync)
    scrub = call(AsyncClient.scrub)
    table = call(AsyncClient.table)
    watch_table = iterate(AsyncClient.watch_table)
    exec = call(AsyncClient.exec)
    logs = iterate(AsyncClient.logs)
    read_tar = iterate(AsyncClient.read_tar)
    write_tar = call(AsyncClient.write_tar)
    port_forward = enter(AsyncClient.port_forward)
    fork_report = call(AsyncClient.fork_report)
    promote = call(AsyncClient.promote)
    plain_template = call(AsyncClient.plain_template)
    version = call(AsyncClient.version)
    health = call(AsyncClient.health)
