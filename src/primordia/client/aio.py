"""The client: everything that can be asked of a soup, typed, for asyncio. `client/sync.py` is its twin for everyone else.

Namespaces default to the config's; `all_namespaces` lists every one. Streams are async iterators and hold no more in
memory than a socket does. Every failure is a PrimordiaError that says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import msgspec

from primordia.client import apply as applying
from primordia.client.answers import Applied, ObjectList, R, Table, TableEvent, Until, WatchEvent, decode
from primordia.client.boxes import Box, Claiming, ForkError
from primordia.client.config import load
from primordia.client.errors import ExpiredError
from primordia.client.inside import Target
from primordia.client.templates import USUAL_SIZE, plain_template, template_settled
from primordia.client.volumes import VolumeAccess
from primordia.client.watching import TABLE, query, watch_lines, watch_objects
from primordia.kit.errors import AlreadyExistsError, InvalidError, PrimordiaError, TemporaryError
from primordia.wire.boxes import (
    BOXES,
    FORK,
    PROMOTE,
    BoxAnswer,
    BoxRequest,
    ForkReport,
    ForkRequest,
    Promoted,
    PromoteRequest,
)
from primordia.wire.kinds import kind_of_manifest, root_of
from primordia.wire.meta import ListMeta
from primordia.wire.resources import Context, Lifeform, Resource, Resources, Template

_PAGE = 500
_FORK_S = 150.0
"""More than a server gives a claim or fork."""
_MERGE_PATCH = "application/merge-patch+json"


class WaitTimeoutError(TemporaryError):
    """What was waited for did not happen in time."""

    reason = "Timeout"


class _Listed(msgspec.Struct, frozen=True):
    items: tuple[msgspec.Raw, ...] = ()
    metadata: ListMeta = ListMeta()


class AsyncClient(VolumeAccess):
    """A connection to a soup. Use it as an async context manager, or `close` it, in the event loop that made it."""

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------ objects

    async def get(self, kind: type[R], name: str, *, namespace: str = "") -> R:
        """One object. Raises NotFoundError."""
        return decode(kind, await self.transport.request("GET", self._path(kind, namespace, name)))

    async def list(
        self, kind: type[R], *, namespace: str = "", all_namespaces: bool = False, labels: str = "", fields: str = ""
    ) -> ObjectList[R]:
        """The objects that the label and field selectors leave, all pages of them, as of one moment."""
        path = self._path(kind, namespace, every=all_namespaces)
        items: list_[R] = []
        params = query(labels=labels, fields=fields, limit=_PAGE)
        while True:
            page = decode(_Listed, await self.transport.request("GET", path, params=params))
            items += [decode(kind, item) for item in page.items]
            if not page.metadata.continue_:
                return ObjectList(tuple(items), page.metadata.resource_version)
            params = {**params, "continue": page.metadata.continue_}

    def watch(
        self,
        kind: type[R],
        *,
        namespace: str = "",
        all_namespaces: bool = False,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
    ) -> AsyncGenerator[WatchEvent[R], None]:
        """Changes after a resource version (a list's); without one, first what is there, as ADDED.

        Goes on across closed connections and lost servers. Raises ExpiredError when the version is no longer kept: list
        again.
        """
        path = self._path(kind, namespace, every=all_namespaces)
        return watch_objects(self.transport, kind, path, query(labels=labels, fields=fields), resource_version)

    async def create(self, obj: R, *, dry_run: bool = False) -> R:
        """Create an object. Raises AlreadyExistsError, InvalidRequestError with every wrong field."""
        kind = type(obj)
        path = self._path(kind, obj.metadata.namespace)
        return decode(kind, await self.transport.request("POST", path, params=_dry(dry_run), body=msgspec.json.encode(obj)))

    async def create_manifest(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Resource:
        """Create what a manifest (plain values, as from YAML) describes; the server checks every field of it."""
        kind = kind_of_manifest(manifest)
        path = self._path(kind, applying.namespace_of(manifest))
        body = msgspec.json.encode(manifest)
        return decode(kind, await self.transport.request("POST", path, params=_dry(dry_run), body=body))

    async def replace(self, obj: R, *, dry_run: bool = False) -> R:
        """Write a changed object; raises ConflictError when it changed since it was read."""
        path = self._path(type(obj), obj.metadata.namespace, obj.metadata.name)
        answer = await self.transport.request("PUT", path, params=_dry(dry_run), body=msgspec.json.encode(obj))
        return decode(type(obj), answer)

    async def patch(
        self, kind: type[R], name: str, patch: Mapping[str, Any], *, namespace: str = "", dry_run: bool = False
    ) -> R:
        """Merge a patch (RFC 7386: null removes) into an object."""
        path = self._path(kind, namespace, name)
        body = msgspec.json.encode(patch)
        answer = await self.transport.request("PATCH", path, params=_dry(dry_run), body=body, content_type=_MERGE_PATCH)
        return decode(kind, answer)

    async def apply(self, manifest: Mapping[str, Any] | Resource, *, namespace: str = "", dry_run: bool = False) -> Applied:
        """Create what a manifest describes, or change what is there into it, field by field.

        A field that an earlier `apply` (or `kubectl apply`) gave and this one does not is removed; what others wrote stays.
        The manifest is kept in an annotation for that, under kubectl's own key, so that the two can be mixed.
        """
        return await applying.apply(self, manifest, namespace, dry_run)

    async def delete(self, kind: type[R], name: str, *, namespace: str = "", uid: str = "", dry_run: bool = False) -> None:
        """Ask for an object's end; `wait(..., deleted)` sees it. Raises NotFoundError, or ConflictError for another uid."""
        body = msgspec.json.encode({"preconditions": {"uid": uid}}) if uid else None
        await self.transport.request("DELETE", self._path(kind, namespace, name), params=_dry(dry_run), body=body)

    async def wait(self, kind: type[R], name: str, until: Until, *, namespace: str = "", timeout_s: float = 60.0) -> R | None:
        """Watch an object until `until` (given it, or None while it does not exist) is true; gives it as it then was.

        `client.answers` has `ready`, `condition(...)`, `phase(...)` and `deleted`. Raises WaitTimeoutError.
        """
        last: R | None = None
        try:
            async with asyncio.timeout(timeout_s):
                async for obj in self._states(kind, name, namespace):
                    last = obj
                    if until(obj):
                        return obj
        except TimeoutError as error:
            state = "it does not exist" if last is None else applying.state_of(last)
            raise WaitTimeoutError(
                f"{kind.KIND} {name} did not get there within {timeout_s:g} s: {state}.",
                remedy=f"See `primordia describe {kind.PLURAL} {name}`.",
            ) from error
        raise AssertionError("the states of an object have no end")

    async def table(
        self,
        kind: type[Resource],
        name: str = "",
        *,
        namespace: str = "",
        all_namespaces: bool = False,
        labels: str = "",
        fields: str = "",
    ) -> Table:
        """A list, or one object, as the server lays it out for people."""
        path = self._path(kind, namespace, name, every=all_namespaces)
        params = {} if name else query(labels=labels, fields=fields)
        return decode(Table, await self.transport.request("GET", path, params=params, accept=TABLE))

    async def watch_table(
        self,
        kind: type[Resource],
        *,
        namespace: str = "",
        all_namespaces: bool = False,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
    ) -> AsyncGenerator[TableEvent, None]:
        """Changed rows, as they change, after a table's resource version. Raises ExpiredError: get the table again."""
        path = self._path(kind, namespace, every=all_namespaces)
        params = query(labels=labels, fields=fields, watch="true", resourceVersion=resource_version)
        async for line in watch_lines(self.transport, path, params, TABLE):
            yield TableEvent(line.type, decode(Table, line.object))

    # ------------------------------------------------------------ boxes

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
    ) -> Claiming:
        """Claim a box from a template, or from an image's plain one: await it, or `async with` it to have it killed after.

        It lives `ttl` seconds; 0 is until it is killed. Raises NotFoundError (no such template), CapacityError (no room).
        """

        async def claim() -> Box:
            wanted = BoxRequest(
                template=template or (await self.plain_template(image)).metadata.name,
                name=name,
                ttl_seconds=ttl,
                labels=dict(labels or {}),
                egress=egress,
            )
            return Box.claimed(self, await self.claim(wanted, namespace=namespace))

        if bool(template) == bool(image):
            raise InvalidError("template", "a box is from either a template or an image.")
        return Claiming(claim)

    async def claim(self, wanted: BoxRequest, *, namespace: str = "") -> BoxAnswer:
        """Claim a box, as the API answers it."""
        path = f"{root_of(Context)}/namespaces/{quote(namespace or self.namespace, safe='')}/{BOXES}"
        body = msgspec.json.encode(wanted)
        return decode(BoxAnswer, await self.transport.request("POST", path, body=body, timeout_s=_FORK_S))

    async def plain_template(self, image: str, resources: Resources = USUAL_SIZE, *, timeout_s: float = 600.0) -> Template:
        """The template of an image in which nothing has run, made if it is not there, once it is Ready.

        Raises WaitTimeoutError, PermanentError when it cannot be made.
        """
        wanted = plain_template(image, resources)
        name = wanted.metadata.name
        with contextlib.suppress(AlreadyExistsError):
            await self.create(wanted)
        found = await self.wait(Template, name, template_settled, timeout_s=timeout_s)
        assert found is not None
        return found

    async def fork(
        self,
        name: str,
        wanted: ForkRequest = ForkRequest(),  # noqa: B008 (frozen)
        *,
        kind: Target = Lifeform,
        namespace: str = "",
        container: str = "",
    ) -> list_[Box]:
        """Fork a running context: its children, as `Box.fork`. A lifeform with several contexts needs a `container`."""
        report = await self.fork_report(name, wanted, kind=kind, namespace=namespace, container=container)
        children = [Box.forked(self, each, namespace or self.namespace) for each in report.children if each.name]
        failures = tuple(each for each in report.children if not each.name)
        if failures:
            raise ForkError(failures, children)
        return children

    async def fork_report(
        self, name: str, wanted: ForkRequest, *, kind: Target = Lifeform, namespace: str = "", container: str = ""
    ) -> ForkReport:
        """Fork a running context; what became of each child, and how long the parent stood still."""
        path = self._path(kind, namespace, name, FORK)
        params = {"container": container} if container else None
        body = msgspec.json.encode(wanted)
        answer = await self.transport.request("POST", path, params=params, body=body, timeout_s=_FORK_S)
        return decode(ForkReport, answer)

    async def promote(self, fork: str, name: str, *, namespace: str = "") -> Promoted:
        """Make a fork that has data the lifeform `name`, which starts from that data; the fork is gone then."""
        path = self._path(Context, namespace, fork, PROMOTE)
        body = msgspec.json.encode(PromoteRequest(name=name))
        return decode(Promoted, await self.transport.request("POST", path, body=body, timeout_s=_FORK_S))

    # ------------------------------------------------------------ the soup

    async def version(self) -> dict[str, Any]:
        """What the server says of its version."""
        return decode(dict, await self.transport.request("GET", "/version"))

    async def health(self) -> bool:
        """Whether the server that answers is ready to serve."""
        try:
            await self.transport.request("GET", "/readyz", accept="*/*", timeout_s=10)
        except PrimordiaError:
            return False
        return True

    # ------------------------------------------------------------ helpers

    async def _states(self, kind: type[R], name: str, namespace: str) -> AsyncIterator[R | None]:
        """An object as it is, then after each change; None while it does not exist."""
        fields = f"metadata.name={name}"
        while True:
            listed = await self.list(kind, namespace=namespace, fields=fields)
            yield listed.items[0] if listed.items else None
            version = listed.resource_version
            with contextlib.suppress(ExpiredError):
                async for event in self.watch(kind, namespace=namespace, fields=fields, resource_version=version):
                    yield None if event.type == "DELETED" else event.object


def connect(config: Path | None = None, *, server: str = "", namespace: str = "") -> AsyncClient:
    """A client from the user's config (see `client/config.py`). Raises ConfigError."""
    return AsyncClient(load(config, server=server, namespace=namespace))


list_ = list


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}
