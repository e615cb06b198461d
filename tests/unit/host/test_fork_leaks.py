"""Under which names a node may have microVMs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from primordia.host.leftovers import machines_of
from primordia.kit.paths import NodePaths
from primordia.node.records import Record, RunRecord
from primordia.wire.resources import ContextSpec, ContextTemplate


def test_contexts_forks_that_wait_and_builds_may_have_one(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path / "state", tmp_path / "run")
    run = RunRecord(number=1, fingerprint="", phase="running", because="Claimed", boot_id="", machine="machine-1")
    spec = ContextSpec(node="n1", epoch=0, template=ContextTemplate(name="box", image="busybox"))
    folder = paths.context_state("uid-1")
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(
        msgspec.json.encode(Record(uid="uid-1", namespace="default", name="box", spec=spec, run=run))
    )
    for name, content in (("uid-2", b""), ("uid-3", b"[]"), ("uid-4", b"{}")):
        other = paths.context_state(name)
        other.mkdir()
        (other / "record.json").write_bytes(content)
    paths.pool.mkdir()
    (paths.pool / "machine-2.ext4").touch()
    (paths.templates / ".build-machine-3").mkdir(parents=True)
    (paths.templates / "0123").mkdir()
    found = set(machines_of(paths)) - {""}
    assert found == {"uid-1", "uid-2", "uid-3", "uid-4", "machine-1", "machine-2", "machine-3"}
