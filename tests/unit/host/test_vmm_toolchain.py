"""The toolchain's decisions that need no network: what is planned, what counts as warm, wrappers."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from primordia.host import initramfs, toolchain
from primordia.host.toolchain import Manifest, plan, qemu_version, write_wrapper
from primordia.kit.command import run
from primordia.kit.errors import PermanentError
from primordia.wire.nodeconfig import Tools


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose toolchain is complete, of empty files."""
    monkeypatch.delenv("PRIMORDIA_KERNEL", raising=False)
    folder = tmp_path / "toolchain"
    (folder / "qemu").mkdir(parents=True)
    (folder / "kernel").mkdir()
    names = ("qemu", "launcher", "kernel", "initramfs", "etcd", "slirp4netns")
    places = {name: str(folder / f"{name}.file") for name in names}
    for place in places.values():
        Path(place).touch()
    (folder / "manifest.json").write_bytes(msgspec.json.encode(toolchain._manifest(Tools(**places))))
    return tmp_path


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: object) -> Tools:
        raise AssertionError("the warm cache was not enough")

    monkeypatch.setattr(toolchain._Maker, "make", refuse)


async def test_a_warm_cache_starts_nothing(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    monkeypatch.setenv("PATH", "/nowhere")
    tools = await toolchain.ensure(warm, lambda step: None)
    assert tools.qemu.endswith("qemu.file")


@pytest.mark.parametrize(
    "what",
    [
        "a file is gone",
        "other packages are installed",
        "another agent",
        "another launcher",
        "other modules",
        "another kernel",
        "damaged",
    ],
)
async def test_any_difference_is_looked_at(warm: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    forbid(monkeypatch)
    file = warm / "toolchain" / "manifest.json"
    known = msgspec.json.decode(file.read_bytes(), type=Manifest)
    if what == "a file is gone":
        (warm / "toolchain" / "etcd.file").unlink()
    elif what == "damaged":
        file.write_bytes(b"{")
    elif what == "other packages are installed":
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, dpkg_ns=1)))
    elif what == "another agent":
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, agent="agent-old")))
    elif what == "another launcher":
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, launcher="launch-old")))
    elif what == "other modules":
        monkeypatch.setattr(initramfs, "WANTED", (*initramfs.WANTED, "btrfs"))
    else:
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(known, kernel="/other")))
    with pytest.raises(AssertionError, match="not enough"):
        await toolchain.ensure(warm, lambda step: None)


async def test_the_plan_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMORDIA_KERNEL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [item.name for item in await plan(tmp_path)] == ["package lists", "qemu", "kernel", "etcd", "slirp4netns"]
    assert all(item.size_bytes > 0 for item in await plan(tmp_path))
    assert list(tmp_path.iterdir()) == []

    for name in ("etcd", "slirp4netns"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert [item.name for item in await plan(tmp_path)] == ["package lists", "qemu", "kernel"]
    for name in ("qemu", "kernel"):
        (tmp_path / "toolchain" / name).mkdir(parents=True)
    assert await plan(tmp_path) == []


async def test_a_wrapper_runs_the_program_where_it_will_lie(tmp_path: Path) -> None:
    partial, place = tmp_path / "par tial", tmp_path / "it's"
    (partial / "usr/bin").mkdir(parents=True)
    (partial / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (partial / "usr/lib/x86_64-linux-gnu/libx.so.1").touch()
    (partial / "usr/bin/tool").write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH|$1"\n')
    (partial / "usr/bin/tool").chmod(0o755)
    write_wrapper(partial, "tool", place)
    partial.rename(place)
    assert (await run([str(place / "run"), "a b"])).text() == f"{place}/usr/lib/x86_64-linux-gnu|a b"


def test_a_package_without_its_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="etcd"):
        write_wrapper(tmp_path, "etcd", tmp_path)


async def test_the_version_of_what_does_not_run_is_empty(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    assert await qemu_version(Tools()) == ""
    assert await qemu_version(Tools(qemu=str(program))) == ""
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    assert await qemu_version(Tools(qemu=str(program))) == ""
    program.write_text("#!/bin/sh\necho QEMU emulator version 9.1.0\n")
    assert await qemu_version(Tools(qemu=str(program))) == "9.1.0"


async def test_nothing_half_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_OS_RELEASE", tmp_path / "os-release")
    (tmp_path / "os-release").write_text("ID=debian\nVERSION_CODENAME=nosuchrelease\nPRETTY_NAME='No such release'\n")
    if shutil.which("apt-get") is None:
        pytest.skip("this machine has no apt-get")
    with pytest.raises(PermanentError, match="No such release"):
        await toolchain.ensure(tmp_path / "cache", lambda step: None)
    assert [path.name for path in (tmp_path / "cache" / "toolchain").iterdir()] == [".lock"]


async def test_the_announcement_adds_up_and_a_warm_cache_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIMORDIA_KERNEL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = await plan(tmp_path)
    said = toolchain.announcement(missing, tmp_path)
    assert f"about {sum(each.size_bytes for each in missing) / 1_000_000:.0f} MB" in said
    for words in (str(tmp_path), "installs nothing", "qemu 16 MB", "kernel 27 MB", "slirp4netns 0.1 MB"):
        assert words in said
    assert toolchain.announcement([], tmp_path) == ""
