"""Three machines that share no folder and no socket become one soup, by hand; and every way to be refused."""

from __future__ import annotations

import datetime
import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.config import load, save
from primordia.host import leftovers
from primordia.testing.join import HUB_OUTSIDE, Machine, eventually, machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[Machine]]:
    """Three machines, the first of which has founded a soup."""
    soup = f"join-{secrets.token_hex(3)}"
    async with machines(tmp_path, soup, 3) as made:
        await made[0].primordia(
            "up", "--soup", soup, "--address", made[0].address, "--name", "n1", "--rack", "r1", "--segment", "s1", "-q"
        )
        yield made
        for machine in reversed(made):
            await machine.primordia("down", "--soup", soup, "--destroy", "--yes", "-q", check=False)
            assert not await machine.traces()
    left = [f"{leak.kind} {leak.name} {leak.detail}" for leak in await leftovers.look() if soup in str(leak)]
    assert not left
    assert not [path for machine in made for path in (machine.folder / "state").glob("[!.]*")]


async def token(founder: Machine, *words: str) -> str:
    return (await founder.primordia("token", "create", *words)).text().strip()


def joining(founder: Machine, index: int, token_: str, name: str = "") -> list[str]:
    where = ["--rack", f"r{index}", "--segment", "s1", "--name", name or f"n{index}"]
    return ["join", founder.address, "--token", token_, *where, "-q"]


def know_all(made: list[Machine]) -> None:
    """Let the administrator's config list every server."""
    config = load(made[0].config)
    save(made[0].config, msgspec.structs.replace(config, servers=tuple(f"https://{each.address}:7443" for each in made)))


async def phase(founder: Machine, name: str) -> tuple[str, str]:
    status = json.loads((await founder.primordia("get", "lifeforms", name, "-o", "json")).text())["status"]
    return status.get("phase", ""), status.get("node", "")


async def test_three_machines_become_a_soup(three: list[Machine]) -> None:
    founder = three[0]
    for index, machine in enumerate(three[1:], 2):
        await machine.primordia(*joining(founder, index, await token(founder)))
    know_all(three)
    nodes = json.loads((await founder.primordia("get", "nodes", "-o", "json")).text())["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["n1", "n2", "n3"]
    racks = [node["metadata"]["labels"]["topology.primordia.dev/rack"] for node in nodes]
    assert racks == ["r1", "r2", "r3"]
    assert len({node["spec"]["podCIDR"] for node in nodes}) == 3
    for index in (1, 2, 3):
        await founder.primordia(
            "run", "busybox", "-d", "-q", "--name", f"life{index}", "--rack", f"r{index}", "--", "sleep", "9999"
        )

    async def all_run() -> bool:
        return [await phase(founder, f"life{index}") for index in (1, 2, 3)] == [("Running", f"n{i}") for i in (1, 2, 3)]

    await eventually(all_run, within_s=240)
    for server in three:  # every lifeform is reached through every machine
        url = {"PRIMORDIA_SERVER": f"https://{server.address}:7443"}
        for index in (1, 2, 3):
            said = await founder.primordia("exec", f"life{index}", "--", "hostname", env=url)
            assert said.text().strip(), (server.name, index)
    await contexts_are_reached_across_machines(founder, three[1])
    # A machine that is stopped and started again is the same node.
    await three[2].primordia("down", "--soup", three[2].soup, "-q")
    await three[2].primordia("up", "--soup", three[2].soup, "-q")
    await eventually(all_run, within_s=240)
    # One that leaves is gone, and its name is free.
    assert "has lifeforms or boxes: default/life3" in await three[2].refused("leave", "--soup", three[2].soup, "--yes", "-q")
    await founder.primordia("delete", "lifeform", "life3", "-q")
    await three[2].primordia("leave", "--soup", three[2].soup, "--yes", "-q")
    assert (await founder.primordia("get", "nodes", "-o", "name")).text().split() == ["node/n1", "node/n2"]
    await three[2].primordia(*joining(founder, 3, await token(founder)))


async def contexts_are_reached_across_machines(founder: Machine, other: Machine) -> None:
    """The second node reaches a context of the first; one with egress reaches the world behind its machine's address."""
    serve = "while :; do echo hello-there | nc -l -p 8080; done"
    run = ["run", "busybox", "-d", "-q", "--egress", "--name", "web", "--rack", "r1"]
    await founder.primordia(*run, "--", "sh", "-c", serve)

    async def answers() -> bool:
        contexts = json.loads((await founder.primordia("get", "contexts", "-o", "json")).text())["items"]
        address = next(each["status"].get("ip", "") for each in contexts if each["spec"]["lifeform"] == "web")
        connect = f"import socket; print(socket.create_connection(({address!r}, 8080), timeout=5).recv(99))"
        return b"hello-there" in (await other.python(connect)).stdout

    await eventually(answers, within_s=120)
    async with other.hub_listens_at() as port:
        said = await founder.primordia("exec", "web", "--", "sh", "-c", f"nc -w 5 {HUB_OUTSIDE} {port} < /dev/null")
    assert said.text().strip() == founder.address  # the listener says whom it sees


async def test_who_is_refused_is_told_why(three: list[Machine], tmp_path: Path) -> None:
    founder, second, third = three
    good = await token(founder, "--ttl", "1h")
    assert "is no token" in await second.refused(*joining(founder, 2, "rubbish"))
    id_, secret, fingerprint = good.split(".")
    wrong = f"{id_}.{'0' * len(secret)}.{fingerprint}"
    assert "not one of this soup" in await second.refused(*joining(founder, 2, wrong))
    foreign = f"{id_}.{secret}.{'0' * 64}"
    assert "is not the one that the token is for" in await second.refused(*joining(founder, 2, foreign))
    assert "has a node n1 already" in await second.refused(*joining(founder, 2, good, "n1"))
    away = await second.refused("join", "10.9.0.77", "--token", good, "--rack", "r2", "--segment", "s1", "-q")
    assert away.startswith("No soup answers at 10.9.0.77:7443")
    nobody = await second.refused("join", "10.9.0.1:99", "--token", good, "--rack", "r2", "--segment", "s1", "-q")
    assert "No soup answers at 10.9.0.1:99" in nobody
    not_ours = [*joining(founder, 2, good), "--address", "10.9.0.3"]
    assert "10.9.0.3" in await second.refused(*not_ours) and "is no address of this machine" in await second.refused(*not_ours)

    # None of that has used the token up; now it is.
    await second.primordia(*joining(founder, 2, good))
    assert "has been used already, by n2" in await third.refused(*joining(founder, 3, good))
    assert "belongs to a soup" in await second.refused(*joining(founder, 2, good))
    # An address that another node has is refused, whatever the name is.
    short = await token(founder, "--ttl", "10s")

    async def expired() -> bool:
        listed = json.loads((await founder.primordia("token", "ls", "-o", "json")).text())
        return any(each["id"] == short.split(".")[0] and each["expired"] for each in listed)

    await eventually(expired)
    assert "has expired" in await third.refused(*joining(founder, 3, short))
    removed = await token(founder)
    await founder.primordia("token", "rm", removed.split(".")[0])
    assert "not one of this soup" in await third.refused(*joining(founder, 3, removed))
    # Any machine of the soup may be asked: it names the one that lets others in.
    fresh = await token(founder)
    await third.primordia(*joining(second, 3, fresh))
    listed = json.loads((await founder.primordia("token", "ls", "-o", "json")).text())
    assert secret not in json.dumps(listed)
    assert datetime.datetime.fromisoformat(listed[0]["expiresAt"]) > datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
