"""A tree made ready for a guest, and named; the tree may be a stranger's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from primordia.drivers.images_local.tree import clear, furnish, tree_digest
from primordia.kit.errors import PermanentError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("untouched")
    return outside


def test_an_empty_tree_gets_all_that_a_guest_needs(tree: Path) -> None:
    furnish(tree)
    assert {path.name for path in tree.iterdir()} == {"proc", "sys", "dev", "run", "tmp", "etc"}
    assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert {path.name for path in (tree / "etc").iterdir()} == {"hosts", "hostname", "resolv.conf", "machine-id"}
    furnish(tree)


def test_what_the_builder_left_in_etc_does_not_travel(tree: Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/resolv.conf").write_text("nameserver 192.0.2.1")
    (tree / "etc/hosts").mkdir()
    (tree / "etc/passwd").write_text("root")
    furnish(tree)
    assert (tree / "etc/resolv.conf").read_text() == ""
    assert (tree / "etc/hosts").is_file()
    assert (tree / "etc/passwd").read_text() == "root"


def test_links_are_replaced_and_never_followed(tree: Path, outside: Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/hosts").symlink_to(outside / "hosts")
    (tree / "tmp").symlink_to(outside)
    (tree / "proc").write_text("a file")
    furnish(tree)
    assert (outside / "hosts").read_text() == "untouched"
    assert not (tree / "etc/hosts").is_symlink()
    assert (tree / "tmp").is_dir()
    assert not (tree / "tmp").is_symlink()
    assert (tree / "proc").is_dir()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_an_etc_that_is_no_folder_is_refused(kind: str, tree: Path, outside: Path) -> None:
    if kind == "link":
        (tree / "etc").symlink_to(outside)
    else:
        (tree / "etc").write_text("")
    with pytest.raises(PermanentError, match="/etc"):
        furnish(tree)
    assert (outside / "hosts").read_text() == "untouched"


def test_clearing_stays_inside(tree: Path, outside: Path) -> None:
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_text("")
    (tree / "keep").mkdir()
    (tree / "keep/x").mkdir()
    (tree / "keep/y").symlink_to(outside)
    (tree / "link").symlink_to(outside)
    clear(tree, ("a/b", "keep/", "link/hosts", "link/", "absent/deep/file", "absent"))
    assert list((tree / "a").iterdir()) == []
    assert list((tree / "keep").iterdir()) == []
    assert (outside / "hosts").exists()


def test_a_digest_sees_everything_but_time(tree: Path) -> None:
    (tree / "file").write_text("x")
    (tree / "link").symlink_to("file")
    seen = {tree_digest(tree, b"")}
    os.utime(tree / "file", (1, 1))
    assert tree_digest(tree, b"") in seen

    def changed() -> None:
        digest = tree_digest(tree, b"")
        assert digest not in seen
        seen.add(digest)

    (tree / "file").write_text("y")
    changed()
    (tree / "file").chmod(0o4755)
    changed()
    os.chown(tree / "file", 7, 8)
    changed()
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere")
    changed()
    (tree / "folder").mkdir()
    changed()
    os.mkfifo(tree / "pipe")
    changed()
    (tree / "file").rename(tree / "folder/file")
    changed()
    assert tree_digest(tree, b"config") not in seen
