"""A soup of three nodes: clocks an hour apart, watchers that are dead, a history that is gone, a race for a port, a node that
shrinks, and a reboot of the machine.

The control over the truth is the microVM itself: its pid stays the same through all but the reboot.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.aio import AsyncClient
from primordia.client.answers import ready
from primordia.client.config import decode_pem, load
from primordia.client.errors import InvalidRequestError
from primordia.host import namespaces
from primordia.host import up as host
from primordia.host.shape import Shape
from primordia.host.soup import API_PORT, netns_name, read_soup, write_soup
from primordia.kit import cgroup, command, netns
from primordia.kit.paths import SoupPaths
from primordia.testing.soup import SERVE, Many, eventually, fetch, is_ready, lifeform, many_nodes, running
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, Lifeform, Node, Secret

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="brings a soup up, which needs root")

PORT = 18140
DEAD_WATCHERS = 6
WRITES = 120
"""Of 200 kB: more than the outbox and all buffers on the way."""
MOST_OF_A_WATCHER = 16 * 2**20
"""Its outbox (4 MiB), as much that was taken from there, and that once more, encrypted."""

SKEW_C = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += SKEW_S;
    return failed;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""

COMPACT = """
import asyncio, sys
from pathlib import Path
from primordia.drivers.store_etcd import EtcdStore
async def main(endpoints, pki):
    store = EtcdStore(endpoints, pki / "engine-ca.crt", pki / "engine.crt", pki / "engine.key")
    await store.compact((await store.status()).revision)
    await store.close()
asyncio.run(main(sys.argv[2:], Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def soup() -> Iterator[Many]:
    with many_nodes(Shape(3, 3, 1)) as built:

        async def populate() -> None:
            async with built.client() as client:
                await nodes_ready(client)
                await running(client, *(lifeform(f"life-{node}", node=node) for node in built.names))

        asyncio.run(populate())
        yield built


@pytest.fixture
async def client(soup: Many) -> AsyncIterator[AsyncClient]:
    async with soup.client() as client:
        yield client


async def nodes_ready(client: AsyncClient) -> None:
    async def all_are() -> bool:
        nodes = (await client.list(Node)).items
        return len(nodes) == 3 and all(ready(node) for node in nodes)

    await eventually("all nodes are Ready", all_are)


async def up(soup: Many) -> None:
    """Bring up what is missing."""
    await host.up(host.UpOptions(soup=soup.soup.name, client_config=soup.config), lambda step: None)


# ---------------------------------------------------------------- watchers


def dead_watcher(soup: Many, node: str) -> ssl.SSLSocket:
    """A client that asks for all secrets from now on and never reads what it is told."""
    config = load(soup.config)
    context = ssl.create_default_context(cadata=decode_pem(config, "ca").decode())
    folder = soup.config.parent
    for name in ("cert", "key"):
        (folder / name).write_bytes(decode_pem(config, name))
    context.load_cert_chain(folder / "cert", folder / "key")
    plain = socket.create_connection((soup.address(node), API_PORT), timeout=20)
    secured = context.wrap_socket(plain, server_hostname=soup.address(node))
    secured.sendall(b"GET /apis/primordia.dev/v1alpha1/secrets?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 200 " in secured.recv(15)
    return secured


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def most_memory_of_writes(soup: Many, client: AsyncClient) -> int:
    """The daemon's resident bytes at the highest while a large object is written again and again and a watcher reads."""
    most, text = 0, os.urandom(100_000).hex()
    events = client.watch(Secret, fields="metadata.name=large")
    async with contextlib.aclosing(events):
        await anext(events)
        for number in range(WRITES):
            note = {"metadata": {"annotations": {"text": text, "n": str(number)}}}
            await client.patch(Secret, "large", note)
            async with asyncio.timeout(60):
                event = await anext(events)
            assert event.object.metadata.annotations["n"] == str(number), "who reads is told everything"
            most = max(most, memory_of(soup.pid("n1", "daemon")))
    return most


async def test_dead_watchers_cost_bounded_memory_and_nobody_else_notices(soup: Many) -> None:
    with contextlib.ExitStack() as dead:
        async with soup.client("n1") as client:
            await client.create(Secret(metadata=ObjectMeta(name="large"), data={"n": "MQ=="}))
            before = await most_memory_of_writes(soup, client)  # what the writes themselves cost, without the dead
            for _ in range(DEAD_WATCHERS):
                dead.enter_context(dead_watcher(soup, "n1"))
            grown = await most_memory_of_writes(soup, client) - before
            print(f"{DEAD_WATCHERS} dead watchers: the daemon grew by {grown / 2**20:.0f} MiB at most")
            assert grown < DEAD_WATCHERS * MOST_OF_A_WATCHER < DEAD_WATCHERS * WRITES * 200_000
            await eventually("they are dropped", lambda: _nobody_watches(client))
            await client.delete(Secret, "large")


async def _nobody_watches(client: AsyncClient) -> bool:
    metrics = (await client.transport.request("GET", "/metrics", accept="*/*")).decode()
    return "\nprimordia_api_streams_open 0\n" in metrics


async def test_a_daemon_whose_history_is_compacted_lists_again(soup: Many, client: AsyncClient) -> None:
    """Its own engine server dies while it hangs: it must ask another one for what it has missed, which has it no more."""
    (doomed,) = await running(client, lifeform("doomed", node="n2"))
    with soup.frozen("n2", "daemon"):
        await client.delete(Lifeform, doomed.metadata.name)
        await client.create(lifeform("late", node="n2"))
        endpoints = [f"https://10.77.0.{index}:2379" for index in (1, 3)]
        program = [sys.executable, "-c", COMPACT, str(soup.paths("n1").pki), *endpoints]
        await command.run(netns.argv_in(netns_name(soup.soup.name, "n1"), program), timeout_s=60)
        soup.kill("n2", "engine")
        await asyncio.sleep(1)

    async def caught_up() -> bool:
        names = {one.metadata.name: one for one in (await client.list(Lifeform)).items}
        return "doomed" not in names and is_ready(names.get("late"))

    await eventually("the daemon has caught up", caught_up)
    assert len(soup.runs()) == 4
    await client.delete(Lifeform, "late")
    await eventually("it is gone", lambda: _count(soup, 3))


async def _count(soup: Many, count: int) -> bool:
    return len(soup.runs()) == count


# ---------------------------------------------------------------- a race


async def test_of_three_servers_asked_at_once_one_gives_the_port(soup: Many) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(soup.client(node)) for node in soup.names]
        for round_ in range(10):
            asked = [
                client.create(lifeform(f"race-{round_}-{number}", node="nowhere", publish=PORT))
                for number, client in enumerate(clients)
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            (won,) = [answer for answer in answers if isinstance(answer, Lifeform)]
            refused = [answer for answer in answers if isinstance(answer, InvalidRequestError)]
            assert len(refused) == 2, answers
            assert all(f"Lifeform default/{won.metadata.name} already" in str(error) for error in refused)
            await clients[0].delete(Lifeform, won.metadata.name)
            await eventually("the port is free", lambda name=won.metadata.name: _gone(clients[0], name))  # type: ignore[misc]


async def _gone(client: AsyncClient, name: str) -> bool:
    return name not in {one.metadata.name for one in (await client.list(Lifeform)).items}


# ---------------------------------------------------------------- clocks


@contextlib.contextmanager
def skewed(folder: Path, seconds: int) -> Iterator[None]:
    """What is started meanwhile has a wall clock that is so many seconds off; its boot clock is everybody's."""
    source, library = folder / "skew.c", folder / f"skew{seconds}.so"
    source.write_text(SKEW_C)
    argv = ["cc", "-shared", "-fPIC", f"-DSKEW_S=({seconds})", "-o", str(library), str(source), "-ldl"]
    asyncio.run(command.run(argv, timeout_s=60))
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_a_node_whose_clock_is_an_hour_off_is_a_node_like_any_other(
    soup: Many, client: AsyncClient, tmp_path: Path, seconds: int
) -> None:
    machines = soup.runs()
    os.kill(soup.pid("n3", "supervisor"), signal.SIGKILL)
    await asyncio.to_thread(_up_skewed, soup, tmp_path, seconds)
    await nodes_ready(client)
    async with soup.client("n3") as skewed_client:
        (made,) = await running(skewed_client, lifeform("made", node="n1", command=SERVE, publish=PORT))
        assert (await skewed_client.exec("life-n1", ["echo", "hi"])).stdout == b"hi\n", "it relays to others"
        born = datetime.datetime.fromisoformat(made.metadata.creation_timestamp or "")
        off_by_s = (born - datetime.datetime.now(datetime.UTC)).total_seconds()
        assert abs(off_by_s - seconds) < abs(seconds) / 2, "that clock is off indeed"
    async with soup.client("n1") as straight:
        (there,) = await running(straight, lifeform("there", node="n3"))
        assert (await straight.exec("life-n3", ["echo", "hi"])).stdout == b"hi\n", "others relay to it"
        await eventually("the port answers", lambda: _answers(soup, "n3", "made-main"))
        for name in (made.metadata.name, there.metadata.name):
            await straight.delete(Lifeform, name)
        await eventually("both are gone", lambda: _count(soup, 3))
    assert ready(await client.get(Node, "n3"))
    assert soup.runs() == machines
    assert all(one.status.restarts == 0 for one in (await client.list(Context)).items)


def _up_skewed(soup: Many, folder: Path, seconds: int) -> None:
    with skewed(folder, seconds):
        asyncio.run(up(soup))


async def _answers(soup: Many, node: str, text: str) -> bool:
    return await fetch(soup.address(node), PORT) == text


# ---------------------------------------------------------------- less room, and a reboot


async def test_a_node_too_small_for_what_it_runs_keeps_it_and_takes_nothing_new(soup: Many, client: AsyncClient) -> None:
    machines = soup.runs()
    paths = SoupPaths.of(soup.soup.name)
    known = read_soup(paths)
    assert known is not None
    small = [msgspec.structs.replace(node, memory_bytes=100 * 2**20) if node.name == "n2" else node for node in known.nodes]
    write_soup(paths, msgspec.structs.replace(known, nodes=tuple(small)))
    await up(soup)
    soup.kill("n2", "daemon")

    async def shrunk() -> bool:
        return (await client.get(Node, "n2")).status.capacity.memory == "100Mi"

    await eventually("the node says how small it is", shrunk)
    await client.create(lifeform("too-much", node="n2"))

    async def explained() -> bool:
        stored = await client.get(Lifeform, "too-much")
        return any("1 has not enough memory" in one.message for one in stored.status.conditions if one.type == "Scheduled")

    await eventually("it says why it can go nowhere", explained)
    assert (await client.exec("life-n2", ["echo", "hi"])).stdout == b"hi\n"
    assert soup.runs() == machines
    write_soup(paths, known)
    await up(soup)
    soup.kill("n2", "daemon")

    async def placed() -> bool:
        return is_ready(await client.get(Lifeform, "too-much"))

    await eventually("with its memory back it takes what waits", placed)
    await client.delete(Lifeform, "too-much")
    await eventually("it is gone", lambda: _count(soup, 3))


async def test_a_reboot_brings_the_same_soup_back(soup: Many) -> None:
    async with soup.client() as client:
        await running(client, lifeform("web", command=SERVE, publish=PORT))
        before = await identities(soup, client)
        pids = soup.runs()
    power_cut(soup)
    await namespaces.remove(soup.soup.name)
    shutil.rmtree(SoupPaths.of(soup.soup.name).run)
    await up(soup)
    async with soup.client() as client:
        await nodes_ready(client)

        async def all_run_again() -> bool:
            if soup.runs().keys() != pids.keys():
                return False
            found = (await client.list(Lifeform)).items
            return len(found) == 4 and all(is_ready(one) for one in found)

        await eventually("every lifeform runs again", all_run_again)
        assert await identities(soup, client) == before
        assert not soup.runs().items() & pids.items()
        await eventually("the port answers", lambda: _answers(soup, "n2", "web-main"))


async def identities(soup: Many, client: AsyncClient) -> dict[str, object]:
    """What must be the same after a reboot: names, uids, owners, epochs, and whom they trust."""
    known = read_soup(SoupPaths.of(soup.soup.name))
    assert known is not None
    nodes, lives = (await client.list(Node)).items, (await client.list(Lifeform)).items
    return {
        "soup": (known.uid, known.slot),
        "authority": [(soup.paths(name).pki / "ca.crt").read_bytes() for name in soup.names],
        "nodes": {node.metadata.name: (node.metadata.uid, node.spec.pod_cidr, node.status.address) for node in nodes},
        "lifeforms": {one.metadata.name: (one.metadata.uid, one.status.node, one.status.epoch) for one in lives},
        "contexts": {one.metadata.name: one.metadata.uid for one in (await client.list(Context)).items},
    }


def power_cut(soup: Many) -> None:
    """Every process of the soup ends at once, with no chance to say a word, and its cgroups are gone."""
    for node in soup.names:
        cgroup.kill_tree(f"primordia/{soup.soup.name}/{node}")
    cgroup.remove_tree(f"primordia/{soup.soup.name}")
