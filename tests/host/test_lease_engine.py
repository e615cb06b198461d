"""The supervisor's lease on a real engine that freezes, dies and comes back; and two nodes with one name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from primordia.domain.lease import death_key, lease_key, life_key
from primordia.domain.timings import Timings
from primordia.ports.store import Delete, KeyValue, Put
from primordia.testing.lease import kept_lease, told, wait_until
from primordia.testing.store import Engine, own_engine

__all__ = ["own_engine"]

TIMINGS = Timings()
KEEPER = """
import sys, pathlib, time
from primordia.supervisor.engine_client import EngineClient, Identity
from primordia.supervisor.lease import LeaseKeeper
from primordia.supervisor.lease_file import Holder
endpoint, ca, certificate, key, folder, incarnation = sys.argv[1:]
client = EngineClient([endpoint], Identity(ca, certificate, key), 0.5)
LeaseKeeper(Holder("n1", "boot", incarnation, "10.77.0.1"), client, pathlib.Path(folder)).start()
time.sleep(600)
"""


@contextlib.contextmanager
def keeper_process(engine: Engine, run_dir: Path, incarnation: str) -> Iterator[None]:
    """A keeper in a process of its own, which is killed at the end."""
    files = (str(engine.ca), str(engine.certificate), str(engine.key), str(run_dir), incarnation)
    process = subprocess.Popen([sys.executable, "-c", KEEPER, engine.endpoint, *files])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def stored(engine: Engine, key: str = lease_key("n1")) -> KeyValue | None:
    """The node's key as the engine has it."""

    async def read() -> KeyValue | None:
        store = engine.store()
        try:
            return await store.get(key)
        finally:
            await store.close()

    return asyncio.run(read())


def change(engine: Engine, *operations: Put | Delete, end_lease: bool = False) -> None:
    """Do these, as controllers or an operator would; first, with `end_lease`, end the lease under the node's key."""

    async def write() -> None:
        store = engine.store()
        try:
            found = await store.get(lease_key("n1"))
            if end_lease and found is not None:
                await store.revoke(found.lease)
            await store.txn([], operations)
        finally:
            await store.close()

    asyncio.run(write())


def dead(life: int) -> Put:
    return Put(death_key("n1"), json.dumps({"life": life, "by": "controllers"}).encode())


def test_what_was_killed_is_proved_and_a_new_life_begins(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.view().life, "held")
        life = keeper.view().life
        wait_until(lambda: told(tmp_path)["createRevision"] == life, "the daemon is told of it")
        keeper.nothing_runs("the daemon hangs")
        assert told(tmp_path)["createRevision"] != life, "a daemon that starts now finds the old life"
        wait_until(lambda: keeper.view().life > life, "a new life")
        proof = stored(own_engine, death_key("n1"))
        assert proof is not None
        said = json.loads(proof.value)
        assert (said["life"], said["by"], said["reason"]) == (life, "node", "the daemon hangs")
        assert not keeper.view().ended
        wait_until(lambda: told(tmp_path)["createRevision"] == keeper.view().life, "the daemon is told of it")


@pytest.mark.parametrize("how", ["declared", "sent away", "lost"])
def test_what_ran_under_an_earlier_life_goes_on_only_if_nobody_can_have_it(
    own_engine: Engine, tmp_path: Path, how: str
) -> None:
    with kept_lease(own_engine, tmp_path, runs=True) as keeper:
        wait_until(lambda: keeper.view().life, "held")
        life = keeper.view().life
        operations = {"declared": [dead(life)], "sent away": [Delete(life_key("n1"))], "lost": [dead(life - 1)]}
        change(own_engine, *operations[how], end_lease=True)
        if how == "lost":
            wait_until(lambda: keeper.view().life > life, "it goes on under a new life")
            wait_until(lambda: told(tmp_path)["createRevision"] == keeper.view().life, "the daemon is told of it")
            return
        wait_until(lambda: keeper.view().ended, "what runs must end")
        assert str(life) in keeper.view().ended and not keeper.view().life
        assert told(tmp_path)["createRevision"] == 0
        keeper.nothing_runs()
        wait_until(lambda: keeper.view().life > life, "a new life")
        wait_until(lambda: told(tmp_path)["createRevision"] == keeper.view().life, "the daemon is told of it")


def test_the_next_supervisor_knows_under_which_life_what_it_finds_runs(own_engine: Engine, tmp_path: Path) -> None:
    with keeper_process(own_engine, tmp_path, "same"):
        wait_until(lambda: (tmp_path / "lease.json").exists() and told(tmp_path)["createRevision"], "held by another process")
    life = told(tmp_path)["settled"]
    change(own_engine, dead(life), end_lease=True)
    with kept_lease(own_engine, tmp_path, "same", runs=True) as keeper:
        wait_until(lambda: keeper.view().ended, "what runs must end")
    with kept_lease(own_engine, tmp_path / "other", "same") as keeper:
        wait_until(lambda: keeper.view().life, "where nothing runs, nothing has to end")


def test_a_node_is_alone_only_with_an_engine_of_its_own(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.view().life, "held")
        assert keeper.others is None
        keeper.use(["https://10.77.0.1:2379"])
        assert keeper.others == {}
    change(own_engine, Put(life_key("n2"), b'{"address": "10.77.0.2"}'))
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.others == {"n2": "10.77.0.2"}, "the other is known")


def test_the_key_is_held_told_and_given_back(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.status()["held"], "held")
        found = stored(own_engine)
        assert found is not None and found.lease
        assert told(tmp_path)["createRevision"] == found.create_revision == keeper.status()["createRevision"]
        written = (tmp_path / "lease.json").stat().st_mtime_ns
        time.sleep(TIMINGS.ttl_s + 1)
        assert keeper.status()["held"]
        assert (tmp_path / "lease.json").stat().st_mtime_ns == written, "the file changes only with the key"
        again = stored(own_engine)
        assert again is not None and again.create_revision == found.create_revision
    assert stored(own_engine) is None
    life = stored(own_engine, life_key("n1"))
    assert life is not None and (life.value, life.mod_revision, life.lease) == (found.value, found.create_revision, 0)
    assert stored(own_engine, death_key("n1")) is None, "who ends in order leaves no death"
    assert told(tmp_path)["createRevision"] == 0


def test_a_short_freeze_costs_nothing(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.status()["held"], "held")
        before = keeper.status()["createRevision"]
        own_engine.freeze()
        time.sleep(2)
        held = keeper.status()["held"]
        own_engine.thaw()
        assert held
        wait_until(lambda: not keeper.status()["trouble"], "renewed again")
        assert keeper.status()["held"] and keeper.status()["createRevision"] == before


def test_a_long_freeze_makes_the_lease_doubtful_and_ends_well(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.status()["held"], "held")
        own_engine.freeze()
        time.sleep(10)
        status = keeper.status()
        own_engine.thaw()
        assert not status["held"] and status["doubtfulSeconds"] > 4 and status["trouble"]
        wait_until(lambda: keeper.status()["held"], "held again")
        found = stored(own_engine)
        assert found is not None and found.create_revision == keeper.status()["createRevision"]
        assert told(tmp_path)["createRevision"] == found.create_revision


def test_a_killed_and_restarted_engine_has_the_key_again(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path) as keeper:
        wait_until(lambda: keeper.status()["held"], "held")
        own_engine.kill()
        wait_until(lambda: keeper.status()["trouble"], "noticed")
        own_engine.start()
        wait_until(lambda: keeper.status()["held"] and not keeper.status()["trouble"], "held again")


def test_a_silent_server_costs_one_try_and_not_the_lease(own_engine: Engine, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        silent = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with kept_lease(own_engine, tmp_path, endpoints=(silent, own_engine.endpoint)) as keeper:
            wait_until(lambda: keeper.status()["held"], "held")


def test_of_two_nodes_with_one_name_the_second_is_refused_until_the_first_is_gone(own_engine: Engine, tmp_path: Path) -> None:
    with kept_lease(own_engine, tmp_path / "a", "first") as first:
        wait_until(lambda: first.status()["held"], "the first holds")
        with kept_lease(own_engine, tmp_path / "b", "second") as second:
            wait_until(lambda: second.status()["takenBy"], "the second is refused")
            assert "first" in second.status()["takenBy"]
            assert told(tmp_path / "b")["createRevision"] == 0
            first.stop()
            wait_until(lambda: second.status()["held"], "the second holds")


def test_a_killed_keeper_loses_the_key_only_by_time_and_its_successor_takes_it_over(own_engine: Engine, tmp_path: Path) -> None:
    with keeper_process(own_engine, tmp_path, "same"):
        wait_until(lambda: stored(own_engine), "held by the first process")
    before = stored(own_engine)
    assert before is not None
    with keeper_process(own_engine, tmp_path, "same"):
        time.sleep(TIMINGS.ttl_s + 1)
        after = stored(own_engine)
        assert after is not None and after.create_revision == before.create_revision, "the same life goes on"
    begun = time.monotonic()
    wait_until(lambda: stored(own_engine) is None, "gone")
    assert time.monotonic() - begun < TIMINGS.ttl_s + 10
