"""The SDK against a real server: what it returns, what it raises, and what it does when servers go away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from primordia.client import (
    AsyncClient,
    Client,
    ClientConfig,
    ConfigError,
    ConnectError,
    ExpiredError,
    InvalidRequestError,
    NotAllowedError,
    TlsError,
    WaitTimeoutError,
    condition,
    deleted,
    phase,
)
from primordia.client.config import default_path, load, save
from primordia.client.errors import BrokenAnswerError
from primordia.kit import pki
from primordia.kit.errors import AlreadyExistsError, ConflictError, NotFoundError
from primordia.ports.contexts import LogLine
from primordia.testing.api import TestApi, connected, running_api
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec, LifeformStatus, Node

DEADLINE_S = 60


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[TestApi]:
    async with asyncio.timeout(2 * DEADLINE_S), running_api(tmp_path) as running:
        yield running


@pytest.fixture
async def client(api: TestApi) -> AsyncIterator[AsyncClient]:
    async with connected(api.admin) as connection:
        yield connection


def lifeform(name: str = "shop", **meta: Any) -> Lifeform:
    spec = LifeformSpec(contexts=(ContextTemplate(name="main", image="busybox"),))
    return Lifeform(metadata=ObjectMeta(name=name, namespace="default", **meta), spec=spec)


# ---------------------------------------------------------------- objects


async def test_create_get_replace_patch_list_delete(client: AsyncClient) -> None:
    made = await client.create(lifeform())
    assert await client.get(Lifeform, "shop") == made
    changed = msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, labels={"a": "b"}))
    after = await client.replace(changed)
    assert after.metadata.labels == {"a": "b"}
    with pytest.raises(ConflictError):
        await client.replace(changed)
    with pytest.raises(AlreadyExistsError):
        await client.create(lifeform())
    after = await client.patch(Lifeform, "shop", {"spec": {"operatingMode": "Suspended"}})
    assert (after.spec.operating_mode, after.metadata.generation) == ("Suspended", 2)
    assert (await client.list(Lifeform, labels="a=b")).items == (after,)
    assert (await client.list(Lifeform, labels="a=c")).items == ()
    with pytest.raises(ConflictError):
        await client.delete(Lifeform, "shop", uid="other")
    await client.delete(Lifeform, "shop", uid=made.metadata.uid)
    with pytest.raises(NotFoundError, match="Lifeform default/shop does not exist"):
        await client.get(Lifeform, "shop")


async def test_every_page_of_a_long_list(api: TestApi, client: AsyncClient) -> None:
    for index in range(1100):
        await api.registry.create(lifeform(f"l{index:04}"))
    assert [each.metadata.name for each in (await client.list(Lifeform)).items] == [f"l{index:04}" for index in range(1100)]
    assert len((await client.list(Lifeform, all_namespaces=True)).items) == 1100
    assert (await client.list(Lifeform, namespace="other")).items == ()


async def test_a_wrong_object_is_told_field_by_field(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"spec\.contexts: must have at least one") as caught:
        await client.create(msgspec.structs.replace(lifeform("A"), spec=LifeformSpec(contexts=())))
    assert {cause.field for cause in caught.value.causes} == {"metadata.name", "spec.contexts"}
    with pytest.raises(NotFoundError, match="Did you mean 'Lifeform'"):
        await client.create_manifest({"kind": "Liveform"})


async def test_apply(client: AsyncClient) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "primordia.dev/v1alpha1",
        "kind": "Lifeform",
        "metadata": {"name": "shop", "labels": {"a": "1", "b": "2"}},
        "spec": {"contexts": [{"name": "main", "image": "x", "resources": {"cpu": "1"}}], "nodeSelector": {"k": "v"}},
    }
    first = await client.apply(manifest, dry_run=True)
    assert first.outcome == "created"
    with pytest.raises(NotFoundError):
        await client.get(Lifeform, "shop")
    assert (await client.apply(manifest)).outcome == "created"
    assert (await client.apply(manifest)).outcome == "unchanged"
    await client.patch(Lifeform, "shop", {"metadata": {"labels": {"theirs": "3"}}, "spec": {"restartPolicy": "Never"}})
    assert (await client.apply(manifest)).outcome == "unchanged"
    del manifest["metadata"]["labels"]["b"]
    del manifest["spec"]["nodeSelector"]
    manifest["spec"]["contexts"][0]["image"] = "y"
    applied = await client.apply(manifest)
    assert applied.outcome == "configured"
    obj = await client.get(Lifeform, "shop")
    assert obj == applied.object
    assert obj.metadata.labels == {"a": "1", "theirs": "3"}
    assert (obj.spec.node_selector, obj.spec.restart_policy, obj.spec.contexts[0].image) == ({}, "Never", "y")
    with pytest.raises(InvalidRequestError, match=r"spec\.contexts\[0\]\.imgae"):
        await client.apply({**manifest, "spec": {"contexts": [{"name": "main", "imgae": "x"}]}})


async def test_apply_puts_objects_where_it_should(client: AsyncClient) -> None:
    manifest = {"kind": "Lifeform", "metadata": {"name": "a"}, "spec": {"contexts": [{"name": "m", "image": "x"}]}}
    assert (await client.apply(manifest, namespace="other")).object.metadata.namespace == "other"
    typed = lifeform("typed")
    assert (await client.apply(typed)).outcome == "created"
    assert (await client.apply(typed)).outcome == "unchanged"


async def test_tables(client: AsyncClient) -> None:
    await client.create(lifeform())
    table = await client.table(Lifeform)
    assert table.column_definitions[0].name == "Name"
    assert table.rows[0].cells[0] == "shop"
    assert (await client.table(Lifeform, "shop")).rows[0].object["metadata"]["name"] == "shop"
    events = client.watch_table(Lifeform, resource_version=table.metadata.resource_version)
    async with contextlib.aclosing(events), asyncio.timeout(DEADLINE_S):
        reading = asyncio.create_task(anext(events))
        await client.create(lifeform("b"))
        event = await reading
        assert (event.type, event.table.rows[0].cells[0]) == ("ADDED", "b")


# ---------------------------------------------------------------- watch and wait


async def test_a_watch_tells_everything_once_across_servers(api: TestApi, client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    async with running_api(tmp_path / "two", api.store, authority=api.ca) as second:
        both = msgspec.structs.replace(api.admin, servers=(api.url, second.url))
        async with connected(both) as watcher, contextlib.aclosing(watcher.watch(Lifeform)) as events:
            seen: list[str] = []
            for index in range(6):
                if index == 3:
                    await api.server.stop()
                await api.registry.create(lifeform(f"l{index}"))
                async with asyncio.timeout(DEADLINE_S):
                    seen.append((await anext(events)).object.metadata.name)
            assert seen == [f"l{index}" for index in range(6)]


async def test_a_watch_from_too_long_ago(api: TestApi, client: AsyncClient) -> None:
    for index in range(3):
        await client.create(lifeform(f"l{index}"))
    await api.store.compact((await api.store.status()).revision)
    with pytest.raises(ExpiredError):
        async for _ in client.watch(Lifeform, resource_version="1"):
            pass


async def test_waiting(api: TestApi, client: AsyncClient) -> None:
    async def live() -> None:
        for status in (
            LifeformStatus(phase="Running"),
            LifeformStatus(phase="Running", conditions=(Condition(type="Ready", status="True"),)),
        ):
            obj = await api.registry.get(Lifeform, "shop", "default")
            await api.registry.update_status(msgspec.structs.replace(obj, status=status))
            await asyncio.sleep(0.05)
        await api.registry.delete(Lifeform, "shop", "default")

    waits = [
        asyncio.create_task(client.wait(Lifeform, "shop", until, timeout_s=DEADLINE_S))
        for until in (phase("Running"), condition("Ready"), lambda obj: obj is not None)
    ]
    await asyncio.sleep(0.1)
    assert not any(wait.done() for wait in waits)
    await client.create(lifeform())
    assert await waits[2]
    gone = asyncio.create_task(client.wait(Lifeform, "shop", deleted, timeout_s=DEADLINE_S))
    await live()
    assert [getattr(await wait, "kind", Lifeform.KIND) for wait in waits] == ["Lifeform"] * 3
    assert await gone is None
    assert await client.wait(Lifeform, "nope", deleted) is None


async def test_what_does_not_happen_in_time(api: TestApi, client: AsyncClient) -> None:
    await client.create(lifeform())
    with pytest.raises(WaitTimeoutError, match="its phase is Pending"):
        await client.wait(Lifeform, "shop", phase("Running"), timeout_s=0.3)
    with pytest.raises(WaitTimeoutError, match="it does not exist"):
        await client.wait(Lifeform, "nope", phase("Running"), timeout_s=0.3)


def test_conditions_of_an_older_spec_do_not_count() -> None:
    ready = Condition(type="Ready", status="True", observed_generation=1)
    obj = msgspec.structs.replace(lifeform(generation=2), status=LifeformStatus(conditions=(ready,)))
    assert not condition("Ready")(obj)
    assert condition("Ready")(msgspec.structs.replace(obj, metadata=ObjectMeta(name="shop", generation=1)))
    assert not condition("Ready")(None)


# ---------------------------------------------------------------- servers and certificates


async def test_the_next_server_is_tried(api: TestApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = f"https://127.0.0.1:{unused.getsockname()[1]}"
    async with connected(msgspec.structs.replace(api.admin, servers=(dead, api.url))) as client:
        await client.create(lifeform())
        assert client.transport.server == api.url
    async with connected(msgspec.structs.replace(api.admin, servers=(dead,))) as client:
        with pytest.raises(ConnectError) as caught:
            await client.get(Lifeform, "shop")
        assert str(caught.value).startswith(f"No soup answers at {dead}")
        assert str(caught.value).endswith("Start one with `primordia up`.")
        assert await client.health() is False


async def test_a_silent_server_is_given_up(api: TestApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with connected(ClientConfig(servers=(url,))) as client:
            with pytest.raises(ConnectError, match="in time"):
                await client.transport.request("GET", "/version", timeout_s=0.3)
            with pytest.raises(BrokenAnswerError, match="may have been done"):
                await client.transport.request("POST", "/x", body=b"{}", timeout_s=0.3)


async def test_what_is_no_server_of_ours(api: TestApi) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<h1>x")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, connected(ClientConfig(servers=(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",))) as client:
        with pytest.raises(BrokenAnswerError, match="HTTP 418"):
            await client.get(Lifeform, "x")


async def test_certificates_of_another_soup(api: TestApi) -> None:
    other = pki.make_ca("other")
    pair = pki.issue(other, "admin", "primordia:admins")
    stranger = ClientConfig.of_pem((api.url,), ca=api.ca.certificate, cert=pair.certificate, key=pair.key)
    async with connected(stranger) as client:
        with pytest.raises(TlsError, match="not of the soup's own authority"):
            await client.get(Lifeform, "x")
    misled = ClientConfig.of_pem((api.url,), ca=other.certificate, cert=pair.certificate, key=pair.key)
    async with connected(misled) as client:
        with pytest.raises(TlsError, match=r"is not accepted: .*primordia up"):
            await client.get(Lifeform, "x")


async def test_a_name_that_the_certificate_has_not(api: TestApi) -> None:
    async with connected(msgspec.structs.replace(api.admin, servers=(api.url.replace("127.0.0.1", "127.0.0.2"),))) as client:
        with pytest.raises((TlsError, ConnectError)):
            await client.get(Lifeform, "x")


async def test_an_expired_certificate(api: TestApi) -> None:
    cert, key = _expired(api.ca)
    async with connected(ClientConfig.of_pem((api.url,), ca=api.ca.certificate, cert=cert, key=key)) as client:
        with pytest.raises(TlsError, match="has expired") as caught:
            await client.get(Lifeform, "x")
        assert "primordia up" in caught.value.remedy


def _expired(ca: pki.KeyPair) -> tuple[bytes, bytes]:
    authority = x509.load_pem_x509_certificate(ca.certificate)
    signer = serialization.load_pem_private_key(ca.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now - datetime.timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return cert.public_bytes(serialization.Encoding.PEM), pem


async def test_who_is_not_known_or_not_allowed(api: TestApi) -> None:
    for config, words in ((api.anonymous, "without a client certificate"), (api.nobody, "of no role")):
        async with connected(config) as client:
            with pytest.raises(NotAllowedError, match=words):
                await client.get(Lifeform, "x")
    async with connected(api.admin) as client:
        with pytest.raises(NotAllowedError, match="written by the soup itself"):
            await client.create(Node(metadata=ObjectMeta(name="n")))


# ---------------------------------------------------------------- config


def test_the_config_is_private_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "b" / "config"
    config = ClientConfig(servers=("https://127.0.0.1:1",), ca="eA==", namespace="mine")
    save(path, config, owner=(os.getuid(), os.getgid()))
    assert path.stat().st_mode & 0o777 == 0o600
    assert load(path) == config
    monkeypatch.setenv("PRIMORDIA_CONFIG", str(path))
    monkeypatch.setenv("PRIMORDIA_SERVER", "https://a:1,https://b:2")
    monkeypatch.setenv("PRIMORDIA_NAMESPACE", "env")
    assert load().servers == ("https://a:1", "https://b:2")
    assert load(namespace="flag", server="https://c:3") == msgspec.structs.replace(
        config, servers=("https://c:3",), namespace="flag"
    )


def test_yaml_configs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("servers:\n- https://127.0.0.1:1\nnamespace: x\n")
    assert load(path).namespace == "x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a config"),
        ("{", "is not JSON"),
        ("a: [", "not YAML"),
        ("servers: []", "at least one"),
        ("servers: [ftp://x]", "at least one"),
        ("servers: 5", "is not a config"),
        ("servers: [https://x]\ntoken: y", "unknown field"),
        ("\x00", "is not a config"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_configs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no client config") as caught:
        load(tmp_path / "none")
    assert "primordia up" in caught.value.remedy
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("ca", "!"), ("ca", base64.b64encode(b"x").decode()), ("cert", "!"), ("key", base64.b64encode(b"-----BEGIN x").decode())],
)
async def test_keys_that_are_none(api: TestApi, field: str, value: str) -> None:
    async with connected(msgspec.structs.replace(api.admin, **{field: value})) as client:
        with pytest.raises(ConfigError, match=field):
            await client.get(Lifeform, "x")


def test_under_sudo_the_callers_config_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRIMORDIA_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SUDO_USER", "nobody-of-that-name")
    assert default_path() == tmp_path / ".config" / "primordia" / "config"
    monkeypatch.setenv("SUDO_USER", "root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_path() == Path("/root/.config/primordia/config")


# ---------------------------------------------------------------- the synchronous twin


async def test_the_twin_does_the_same(api: TestApi) -> None:
    await api.lifeform()
    api.contexts.lines = [LogLine("2026-01-01T00:00:00Z", b"one"), LogLine("2026-01-01T00:00:00Z", b"two")]
    (api.contexts.root / "f").write_bytes(b"content")
    await asyncio.to_thread(_use_twin, api.admin)


def _use_twin(config: ClientConfig) -> None:
    with Client(config) as client:
        assert client.get(Lifeform, "shop").metadata.name == "shop"
        assert [each.metadata.name for each in client.list(Lifeform).items] == ["shop"]
        assert client.exec("shop", ["cat"], stdin=b"x").stdout == b"x"
        assert b"".join(client.logs("shop")) == b"one\ntwo\n"
        assert b"content" in b"".join(client.read_tar("shop", "/f"))
        with pytest.raises(NotFoundError):
            client.get(Lifeform, "nope")
        for event in client.watch(Lifeform):
            assert event.object.metadata.name == "shop"
            break
        with client.port_forward("shop", 1) as port:
            assert port > 0
        assert client.health()
    client.close()


def test_importing_the_client_is_light() -> None:
    code = "import sys; from primordia.client import Client; assert not {'aiohttp', 'yaml', 'cryptography'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
