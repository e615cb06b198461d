"""What the daemon reads of its node's lease, and that it wakes when the file is replaced."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from primordia.kit.clock import SystemClock
from primordia.kit.files import write_atomic
from primordia.node.own_lease import LEASE_FILE, OwnLease
from primordia.registry.ownership import NodeLife
from primordia.supervisor import lease_file as supervisor_lease


def write(folder: Path, revision: int, boot: str = "boot") -> None:
    record = {"node": "n1", "key": "/k", "lease": 5, "createRevision": revision, "bootId": boot, "incarnation": "abc"}
    write_atomic(folder / LEASE_FILE, json.dumps(record).encode(), durable=False)


def test_both_sides_name_the_same_file():
    assert supervisor_lease.LEASE_FILE == LEASE_FILE


def test_a_held_key_is_the_nodes_life(tmp_path: Path):
    lease = OwnLease(tmp_path, "boot", SystemClock())
    assert lease.life() is None and lease.incarnation == ""
    write(tmp_path, 7)
    assert lease.life() == NodeLife("/k", 7) and lease.incarnation == "abc"
    write(tmp_path, 0)
    assert lease.life() is None


def test_a_file_of_another_boot_says_nothing(tmp_path: Path):
    write(tmp_path, 7, "an earlier boot")
    assert OwnLease(tmp_path, "boot", SystemClock()).life() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}', b"\xff\xfe"])
def test_a_damaged_file_is_no_lease(tmp_path: Path, content: bytes):
    (tmp_path / LEASE_FILE).write_bytes(content)
    assert OwnLease(tmp_path, "boot", SystemClock()).life() is None


async def test_who_waits_is_woken_by_the_file(tmp_path: Path):
    lease = OwnLease(tmp_path, "boot", SystemClock())
    waiting = asyncio.create_task(lease.held())
    await asyncio.sleep(0.05)
    write(tmp_path, 0)
    await asyncio.sleep(0.05)
    assert not waiting.done()
    write(tmp_path, 3)
    async with asyncio.timeout(20):
        await waiting


async def test_who_need_not_wait_does_not(tmp_path: Path):
    write(tmp_path, 3)
    async with asyncio.timeout(20):
        await OwnLease(tmp_path, "boot", SystemClock()).held()
