"""Engine members on real machines: added on racks of their own, lost with their data and replaced, outliving the founder."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from primordia.client.config import load, save
from primordia.host import leftovers
from primordia.testing.join import Machine, eventually, machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

RACKS = ("r1", "r2", "r3", "r2")


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[list[Machine]]:
    """Four machines in one soup, on three racks; the second has joined with a server of the engine."""
    soup = f"members-{secrets.token_hex(3)}"
    async with machines(tmp_path, soup, len(RACKS)) as made:
        founder = made[0]
        await founder.primordia("up", "--soup", soup, "--address", founder.address, "--name", "n1", "--rack", "r1", "-q")
        token = (await founder.primordia("token", "create", "--uses", "3")).text().strip()
        for index, machine in enumerate(made[1:], 2):
            where = ["--rack", RACKS[index - 1], "--segment", "s1", "--name", f"n{index}"]
            more = ["--engine"] if index == 2 else []
            await machine.primordia("join", founder.address, "--token", token, *where, *more, "-q")
        config = load(founder.config)
        save(founder.config, msgspec.structs.replace(config, servers=tuple(f"https://{each.address}:7443" for each in made)))
        yield made
    assert not [leak for leak in await leftovers.look() if soup in str(leak)]


async def seats(founder: Machine) -> dict[str, tuple[bool, bool, bool]]:
    found = json.loads((await founder.primordia("engine", "status", "-o", "json")).text())
    return {each["node"]: (each["ready"], each["member"], each["answers"]) for each in found}


def told(machine: Machine, name: str) -> dict[str, object]:
    path = machine.folder / "state" / machine.soup / "nodes" / name / "node.json"
    engine: dict[str, object] = json.loads(path.read_text())["engine"]
    return engine


async def test_members_are_added_lost_and_replaced(four: list[Machine]) -> None:
    founder, second, third, _ = four
    good = (True, True, True)
    assert await seats(founder) == {"n1": good, "n2": good}
    assert "both on rack r2" in await founder.refused("engine", "add", "n4", "-q")
    assert "has an engine server already" in await founder.refused("engine", "add", "n2", "-q")
    assert "n9" in await founder.refused("engine", "add", "n9", "-q")
    await founder.primordia("engine", "add", "n3", "-q")
    assert await seats(founder) == {"n1": good, "n2": good, "n3": good}

    async def all_know() -> bool:
        endpoints = [set(told(machine, f"n{index}")["endpoints"]) for index, machine in enumerate(four, 1)]
        return all(each == {f"https://{machine.address}:2379" for machine in four[:3]} for each in endpoints)

    await eventually(all_know)
    assert "runs a member of the engine" in await third.refused("leave", "--soup", third.soup, "--yes", "-q")

    # The third machine's disk is lost with its server's data: it is removed, and added again when it is back.
    await third.primordia("down", "--soup", third.soup, "-q")
    shutil.rmtree(third.folder / "state" / third.soup / "nodes" / "n3" / "engine")
    assert (await seats(founder))["n3"] == (True, True, False)
    assert "on node n3 does not answer" in await founder.refused("engine", "remove", "n1", "-q")
    await founder.primordia("engine", "remove", "n3", "-q")
    await third.primordia("up", "--soup", third.soup, "-q")

    async def has_none() -> bool:
        return told(third, "n3")["member"] is False

    await eventually(has_none)
    await founder.primordia("engine", "add", "n3", "-q")
    assert await seats(founder) == {"n1": good, "n2": good, "n3": good}

    # With three of them the founder may go, and the soup goes on.
    await founder.primordia("down", "--soup", founder.soup, "-q")

    async def goes_on() -> bool:
        done = await second.primordia("get", "nodes", "-o", "name", check=False, env={"PRIMORDIA_CONFIG": str(founder.config)})
        return len(done.stdout.split()) == 4

    await eventually(goes_on)
    await founder.primordia("up", "--soup", founder.soup, "-q")
    assert await seats(founder) == {"n1": good, "n2": good, "n3": good}
