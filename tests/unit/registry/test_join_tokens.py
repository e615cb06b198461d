"""Tokens and admissions over the memory store: what lets a machine in, once, and what does not."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.kit.errors import AlreadyExistsError, CapacityError, NotFoundError
from primordia.ports.store import Put
from primordia.registry import lives
from primordia.registry.joining import Joined, Joining, TokenError
from primordia.wire.joining import JoinRequest, JoinToken
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Node, NodeSpec, NodeStatus

CIDR = "10.128.0.0/9"
FOUNDER = Node(metadata=ObjectMeta(name="n1"), spec=NodeSpec(pod_cidr="10.128.0.0/19"), status=NodeStatus(address="10.9.0.1"))


@pytest.fixture
def joining() -> Joining:
    clock = SystemClock()
    return Joining(MemoryStore(clock), clock)


def request(token: JoinToken, name: str = "n2", address: str = "10.9.0.2") -> JoinRequest:
    return JoinRequest(
        token_id=token.id,
        secret=token.secret,
        name=name,
        rack="r2",
        segment="s1",
        address=address,
        request="",
        engine_request="",
    )


async def made(joining: Joining, uses: int = 1, ttl_s: int = 60) -> JoinToken:
    return (await joining.create("admin", ttl_s, uses, "f" * 64))[0]


async def admit(joining: Joining, wanted: JoinRequest, key: str = "k", cidr: str = CIDR) -> Joined:
    return await joining.admit(wanted, key, cidr, (FOUNDER,))


async def test_a_token_lets_one_machine_in_and_says_whom(joining: Joining) -> None:
    token = await made(joining)
    assert (await admit(joining, request(token))).index == 2
    with pytest.raises(TokenError, match="used already, by n2"):
        await admit(joining, request(token, "n3", "10.9.0.3"), "other")
    (info,) = await joining.tokens()
    assert info.used_by == ("n2",) and not info.expired


async def test_the_same_machine_may_ask_again_and_another_by_its_name_may_not(joining: Joining) -> None:
    token = await made(joining)
    first = await admit(joining, request(token))
    assert await admit(joining, request(token)) == first
    with pytest.raises(TokenError, match="used already"):
        await admit(joining, request(token), "another key")
    with pytest.raises(AlreadyExistsError, match=r"node n2 already, at 10\.9\.0\.2"):
        await admit(joining, request(await made(joining)), "another key")


async def test_of_many_at_once_one_gets_in(joining: Joining) -> None:
    token = await made(joining)
    wanted = [request(token, f"n{number}", f"10.9.0.{number}") for number in range(2, 8)]
    results = await asyncio.gather(*(admit(joining, each, each.name) for each in wanted), return_exceptions=True)
    assert sum(isinstance(each, Joined) for each in results) == 1
    assert sum(isinstance(each, TokenError) for each in results) == len(wanted) - 1


async def test_numbers_are_never_shared_and_come_back_when_a_node_has_left(joining: Joining) -> None:
    token = await made(joining, uses=3)
    got = [(await admit(joining, request(token, f"n{n}", f"10.9.0.{n}"), str(n))).index for n in (2, 3)]
    assert got == [2, 3]
    await joining.forget("n2")
    assert (await admit(joining, request(token, "n4", "10.9.0.4"), "4")).index == 2
    await joining.forget("nobody")


async def test_wrong_secrets_removed_tokens_and_strange_ids_are_refused(joining: Joining) -> None:
    token = await made(joining)
    for bad in (
        msgspec.structs.replace(request(token), secret="0" * 40),
        msgspec.structs.replace(request(token), token_id="00000000"),
        msgspec.structs.replace(request(token), token_id="../nodes/n1"),
    ):
        with pytest.raises(TokenError, match="not one of this soup"):
            await admit(joining, bad)
    await joining.remove(token.id)
    with pytest.raises(TokenError, match="not one of this soup"):
        await admit(joining, request(token))
    with pytest.raises(NotFoundError):
        await joining.remove(token.id)


async def test_an_expired_token_is_told_from_one_that_never_was(joining: Joining) -> None:
    token = await made(joining, ttl_s=1)
    async with asyncio.timeout(30):
        while not (await joining.tokens())[0].expired:  # noqa: ASYNC110 - the store's lease ends by itself
            await asyncio.sleep(0.1)
    with pytest.raises(TokenError, match="has expired"):
        await admit(joining, request(token))


async def test_names_and_addresses_of_others_are_refused_and_use_nothing_up(joining: Joining) -> None:
    token = await made(joining)
    with pytest.raises(AlreadyExistsError, match="node n1 already"):
        await admit(joining, request(token, "n1"))
    with pytest.raises(AlreadyExistsError, match=r"Address 10\.9\.0\.1 is node n1's"):
        await admit(joining, request(token, "n2", "10.9.0.1"))
    with pytest.raises(CapacityError):
        await admit(joining, request(token), cidr="10.128.0.0/19")
    assert (await admit(joining, request(token))).name == "n2"


async def test_a_node_that_left_leaves_no_keys_of_its_lives(joining: Joining) -> None:
    store = joining._store
    kept = [lives.life_key("n3"), lives.holding_key("n3", "n1")]
    gone = [lives.life_key("n2"), lives.death_key("n2"), lives.holding_key("n2", "n1"), lives.holding_key("n3", "n2")]
    await store.txn([], [Put(key, b"{}") for key in kept + gone])
    await joining.forget("n2")
    assert sorted(item.key for item in (await store.list("/primordia/")).items) == sorted(kept)
