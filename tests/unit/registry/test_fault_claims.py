"""A published port is one lifeform's, whoever asks where at the same instant, and free again when its holder lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.errors import AlreadyExistsError
from primordia.ports.store import Put
from primordia.registry.claims import NO_CHANGE, change_of
from primordia.registry.registry import Registry
from primordia.testing.store import HandClock
from primordia.wire.meta import ObjectMeta
from primordia.wire.problems import InvalidResourceError
from primordia.wire.resources import ContextTemplate, Lifeform, LifeformSpec, LifeformStatus, Node, Port, Resource

CLAIMS = "/primordia/claims/"


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore(HandClock())
    yield made
    await made.close()


@pytest.fixture
def registry(store: MemoryStore) -> Registry:
    return Registry(store, HandClock())


def lifeform(name: str, *ports: int, finalizers: tuple[str, ...] = ()) -> Lifeform:
    template = ContextTemplate(
        name="main", image="busybox", ports=tuple(Port(container_port=80 + port % 100, publish=port) for port in ports)
    )
    return Lifeform(
        metadata=ObjectMeta(name=name, namespace="default", finalizers=finalizers), spec=LifeformSpec(contexts=(template,))
    )


def publishing(obj: Lifeform, *ports: int) -> Lifeform:
    return msgspec.structs.replace(obj, spec=lifeform("x", *ports).spec)


async def claims(registry: Registry) -> dict[str, str]:
    found = (await registry.store.list(CLAIMS)).items
    return {item.key.rpartition("/")[2]: item.value.decode() for item in found}


async def test_of_many_at_once_one_gets_the_port(store: MemoryStore) -> None:
    servers = [Registry(store, HandClock()) for _ in range(2)]
    asked = [servers[number % 2].create(lifeform(f"life-{number}", 8080)) for number in range(20)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    (won,) = [answer for answer in answers if isinstance(answer, Resource)]
    refused = [answer for answer in answers if isinstance(answer, InvalidResourceError)]
    assert len(refused) == 19
    assert f"8080 is published by Lifeform default/{won.metadata.name} already" in str(refused[0])
    assert refused[0].problems[0].field == "spec.contexts[0].ports[0].publish"
    assert len((await servers[0].list(Lifeform)).items) == 1, "who is refused is not half there"


async def test_of_many_changes_at_once_one_gets_the_port(store: MemoryStore) -> None:
    servers = [Registry(store, HandClock()) for _ in range(2)]
    for number in range(6):
        await servers[0].create(lifeform(f"life-{number}", 9000 + number))
    asked = [
        servers[number % 2].mutate(Lifeform, f"life-{number}", "default", lambda obj: publishing(obj, 8080))
        for number in range(6)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Lifeform) for answer in answers) == 1
    assert sum(isinstance(answer, InvalidResourceError) for answer in answers) == 5
    assert len(await claims(servers[0])) == 6, "the winner has given up what it had, the others have not"


async def test_ports_follow_the_manifest(registry: Registry) -> None:
    await registry.create(lifeform("a", 8080, 8081))
    await registry.mutate(Lifeform, "a", "default", lambda obj: publishing(obj, 8081, 8082))
    assert await claims(registry) == {"8081": "default/a", "8082": "default/a"}
    await registry.create(lifeform("b", 8080))
    with pytest.raises(InvalidResourceError, match="default/b"):
        await registry.mutate(Lifeform, "a", "default", lambda obj: publishing(obj, 8080))
    await registry.update_status(
        msgspec.structs.replace(await registry.get(Lifeform, "a", "default"), status=LifeformStatus(node="n1"))
    )
    assert (await claims(registry))["8082"] == "default/a"


async def test_a_port_is_held_until_its_holder_is_gone(registry: Registry) -> None:
    await registry.create(lifeform("a", 8080, finalizers=("primordia.dev/contexts",)))
    await registry.delete(Lifeform, "a", "default")
    with pytest.raises(InvalidResourceError):
        await registry.create(lifeform("b", 8080))
    await registry.mutate(
        Lifeform,
        "a",
        "default",
        lambda obj: msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, finalizers=())),
    )
    assert await claims(registry) == {}
    await registry.create(lifeform("b", 8080))
    await registry.delete(Lifeform, "b", "default")
    assert await claims(registry) == {}


async def test_a_name_that_exists_is_said_before_its_ports(registry: Registry) -> None:
    await registry.create(lifeform("a", 8080))
    with pytest.raises(AlreadyExistsError):
        await registry.create(lifeform("a", 8080))


@pytest.mark.parametrize("left_by", ["default/gone", "default/moved", "nonsense"])
async def test_a_claim_of_nobody_is_taken_once(store: MemoryStore, left_by: str) -> None:
    """As a server of another version may have left it, that knew of no claims."""
    servers = [Registry(store, HandClock()) for _ in range(2)]
    await servers[0].create(lifeform("moved", 9000))
    await store.txn([], [Put(f"{CLAIMS}ports/8080", left_by.encode())])
    asked = [servers[number % 2].create(lifeform(f"life-{number}", 8080)) for number in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    (won,) = [answer for answer in answers if isinstance(answer, Resource)]
    assert sum(isinstance(answer, InvalidResourceError) for answer in answers) == 7
    assert (await claims(servers[0]))["8080"] == f"default/{won.metadata.name}"


async def test_asking_beforehand_writes_nothing(registry: Registry) -> None:
    await registry.create(lifeform("a", 8080))
    before = (await registry.store.status()).revision
    with pytest.raises(InvalidResourceError):
        await registry.check_claims(None, lifeform("b", 8080))
    await registry.check_claims(None, lifeform("b", 8081))
    await registry.check_claims(await registry.get(Lifeform, "a", "default"), lifeform("a", 8080, 8082))
    assert (await registry.store.status()).revision == before


def test_other_kinds_claim_nothing() -> None:
    assert change_of(None, Node(metadata=ObjectMeta(name="n"))) is NO_CHANGE
