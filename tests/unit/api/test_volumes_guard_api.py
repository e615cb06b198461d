"""Volumes over HTTP: made by users, written by the soup, and deleted on purpose only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from primordia.client.tls import context_of
from primordia.kit.errors import NotFoundError
from primordia.registry.registry import Registry
from primordia.sim.objects import make_lifeform
from primordia.testing.api import TestApi, running_api
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volumes import holder_finalizer

HERE = "/apis/primordia.dev/v1alpha1/namespaces/default/volumes"
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with asyncio.timeout(60), running_api(tmp_path) as running:
        yield running


class Admin:
    """Plain requests of an admin."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def __call__(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, Any]:
        headers = headers or {"Content-Type": "application/json"}
        data = msgspec.json.encode(body) if body is not None else None
        async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
            return answer.status, msgspec.json.decode(await answer.read())

    async def make(self, name: str = "shop.main", **spec: Any) -> dict[str, Any]:
        manifest = {"apiVersion": "primordia.dev/v1alpha1", "kind": "Volume", "metadata": {"name": name}}
        code, made = await self("POST", HERE, manifest | {"spec": {"size": "1Gi"} | spec})
        assert code == 201, made
        assert isinstance(made, dict)
        return made


@pytest.fixture
async def admin(api: TestApi) -> AsyncIterator[Admin]:
    connector = aiohttp.TCPConnector(ssl=context_of(api.admin))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Admin(session, api.url)


async def test_a_volume_is_deleted_only_by_who_names_its_uid(api: TestApi, admin: Admin) -> None:
    made = await admin.make()
    code, status = await admin("DELETE", f"{HERE}/shop.main")
    assert code == 403 and "only on purpose" in status["message"] and "primordia volume destroy shop.main" in status["message"]
    code, status = await admin("DELETE", HERE)
    assert code == 403 and "not deleted many at once" in status["message"]
    code, _ = await admin("DELETE", f"{HERE}/shop.main", {"preconditions": {"uid": "another"}})
    assert code == 409
    uid = {"preconditions": {"uid": made["metadata"]["uid"]}}
    assert (await admin("DELETE", f"{HERE}/shop.main?dryRun=All", uid))[0] == 200
    assert (await admin("DELETE", f"{HERE}/shop.main?dryRun=All"))[0] == 403
    await api.registry.get(Volume, "shop.main", "default")
    assert (await admin("DELETE", f"{HERE}/shop.main", uid))[0] == 200
    with pytest.raises(NotFoundError):
        await api.registry.get(Volume, "shop.main", "default")


async def test_a_volume_in_use_is_not_deleted(api: TestApi, admin: Admin) -> None:
    made = await admin.make()
    await api.registry.create(make_lifeform("shop", data="1Gi"))
    uid = {"preconditions": {"uid": made["metadata"]["uid"]}}
    code, status = await admin("DELETE", f"{HERE}/shop.main", uid)
    assert (code, status["reason"]) == (409, "Conflict") and "Lifeform shop has it" in status["message"]
    other = await admin.make("shop.other")
    assert (await admin("DELETE", f"{HERE}/shop.other", {"preconditions": {"uid": other["metadata"]["uid"]}}))[0] == 200
    await api.registry.delete(Lifeform, "shop", "default")
    assert (await admin("DELETE", f"{HERE}/shop.main", uid))[0] == 200


async def test_status_and_finalizers_are_the_soups(api: TestApi, admin: Admin) -> None:
    made = await admin.make()
    code, status = await admin("PATCH", f"{HERE}/shop.main/status", {"status": {"node": "n9"}}, MERGE)
    assert code == 403 and "written by the soup itself" in status["message"]

    def held(volume: Volume) -> Volume:
        return msgspec.structs.replace(
            volume, metadata=msgspec.structs.replace(volume.metadata, finalizers=(holder_finalizer("n1"),))
        )

    await api.registry.mutate(Volume, "shop.main", "default", held)
    code, status = await admin("PATCH", f"{HERE}/shop.main", {"metadata": {"finalizers": None}}, MERGE)
    assert code == 403 and "they take theirs away" in status["message"]
    code, marked = await admin("DELETE", f"{HERE}/shop.main", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert code == 200 and marked["metadata"]["deletionTimestamp"]


async def test_a_volume_grows_and_never_shrinks(admin: Admin) -> None:
    await admin.make()
    assert (await admin("PATCH", f"{HERE}/shop.main", {"spec": {"size": "2Gi"}}, MERGE))[0] == 200
    code, status = await admin("PATCH", f"{HERE}/shop.main", {"spec": {"size": "1Gi"}}, MERGE)
    assert code == 422 and "cannot shrink from 2Gi to 1Gi" in status["message"]
    code, status = await admin("PATCH", f"{HERE}/shop.main", {"spec": {"filesystem": "xfs"}}, MERGE)
    assert code == 422 and "while the volume exists" in status["message"]


async def test_it_is_discovered_and_listed_as_a_table(admin: Admin) -> None:
    await admin.make()
    _, found = await admin("GET", "/apis/primordia.dev/v1alpha1")
    entry = next(each for each in found["resources"] if each["name"] == "volumes")
    assert (entry["kind"], entry["shortNames"], entry["namespaced"]) == ("Volume", ["vol"], True)
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    _, table = await admin("GET", HERE, headers=accept)
    assert [column["name"] for column in table["columnDefinitions"]][:3] == ["Name", "Phase", "Size"]
    assert table["rows"][0]["cells"][:3] == ["shop.main", "Pending", "1Gi"]
    _, document = await admin("GET", "/openapi/v3/apis/primordia.dev/v1alpha1")
    schemas = document["components"]["schemas"]
    assert "mirror" in schemas["dev.primordia.v1alpha1.Layout"]["properties"]


async def test_what_happens_between_judging_and_deleting_wins(api: TestApi, admin: Admin, monkeypatch: Any) -> None:
    """A lifeform takes the volume up in the instant after it was found to be nobody's."""
    made = await admin.make()
    real = Registry.delete
    taken: list[bool] = []

    async def late(self: Any, kind: Any, name: str, namespace: str = "", **guards: str) -> Any:
        if not taken:
            taken.append(True)
            await api.registry.create(make_lifeform("shop", data="1Gi"))
            await api.registry.mutate(
                Volume, name, namespace, lambda each: msgspec.structs.replace(each, metadata=_labelled(each)), status=False
            )
        return await real(self, kind, name, namespace, **guards)

    monkeypatch.setattr(Registry, "delete", late)
    code, _ = await admin("DELETE", f"{HERE}/shop.main", {"preconditions": {"uid": made["metadata"]["uid"]}})
    assert code == 409
    assert (await api.registry.get(Volume, "shop.main", "default")).metadata.deletion_timestamp is None


def _labelled(volume: Volume) -> Any:
    return msgspec.structs.replace(volume.metadata, labels={"taken": "yes"})
