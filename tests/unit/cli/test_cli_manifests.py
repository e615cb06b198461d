"""Finding and reading manifests; every error names its file."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from primordia.cli import manifests
from primordia.kit.errors import PermanentError
from primordia.wire.resources import Lifeform

WEB = "apiVersion: primordia.dev/v1alpha1\nkind: Lifeform\nmetadata: {name: web}\nspec: {contexts: []}\n"
IMAGE = "apiVersion: primordia.dev/v1alpha1\nkind: Image\nmetadata: {name: busybox}\nspec: {}\n"


def test_folder_in_order_of_need(tmp_path: Path) -> None:
    (tmp_path / "a-web.yaml").write_text(WEB)
    (tmp_path / "b-image.yml").write_text(IMAGE)
    (tmp_path / "notes.txt").write_text("no manifest")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.yaml").write_text("not: read")
    found = manifests.load([str(tmp_path)])
    assert [(each.kind.KIND, each.name) for each in found] == [("Image", "busybox"), ("Lifeform", "web")]


def test_several_documents_lists_and_json(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(f"{WEB}---\n---\n{IMAGE}")
    assert len(manifests.load([str(file)])) == 2
    listed = tmp_path / "list.json"
    listed.write_text('{"kind": "List", "items": [{"kind": "Lifeform", "metadata": {"name": "a", "namespace": "x"}}]}')
    (each,) = manifests.load([str(listed)])
    assert (each.kind, each.name, each.namespace) == (Lifeform, "a", "x")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WEB.encode())))
    (each,) = manifests.load(["-"])
    assert each.source == "standard input"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [", "bad.yaml cannot be read"),
        ("kind: Lifeform\nkind: Image\n", "twice"),
        ("just text", "is no object"),
        ("", "no manifest"),
        ("kind: List\nitems: 3\n", "items"),
        ("kind: Lifefrom\n", "no kind 'Lifefrom'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(PermanentError) as problem:
        manifests.load([str(file)])
    assert "bad.yaml" in str(problem.value)
    assert words in str(problem.value)


def test_the_document_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(f"{WEB}---\njust text\n")
    with pytest.raises(PermanentError, match="document 2"):
        manifests.load([str(file)])


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"missing\.yaml cannot be read \(No such file"):
        manifests.load([str(tmp_path / "missing.yaml")])
    with pytest.raises(PermanentError, match="no manifest"):
        manifests.load([str(tmp_path)])


def test_configuration_folder(tmp_path: Path) -> None:
    (tmp_path / "soup.yaml").write_text(
        "apiVersion: primordia.dev/v1alpha1\nkind: Soup\nmetadata: {name: soup}\nspec: {nodes: 1}\n"
    )
    (tmp_path / "lifeforms").mkdir()
    (tmp_path / "lifeforms" / "web.yaml").write_text(WEB)
    soup, found = manifests.read_soup(tmp_path)
    assert soup is not None
    assert soup.spec.nodes == 1
    assert [each.name for each in found] == ["web"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Soup\nmetadata: {name: soup}\nspec: {nodez: 1}\n", "nodez"),
        ("kind: Soup\nmetadata: {name: soup}\nspec: {nodes: many}\n", "spec.nodes"),
        (WEB, "one Soup"),
    ],
)
def test_bad_soup_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "soup.yaml").write_text(text)
    with pytest.raises(PermanentError, match=r"soup\.yaml") as problem:
        manifests.read_soup(tmp_path)
    assert words in str(problem.value)


def test_an_empty_configuration_folder(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="neither"):
        manifests.read_soup(tmp_path)
    with pytest.raises(PermanentError, match="no folder"):
        manifests.read_soup(tmp_path / "missing")


def test_the_examples_can_be_read() -> None:
    examples = Path(__file__).parents[3] / "examples"
    soup, found = manifests.read_soup(examples)
    assert soup is not None
    assert {each.name for each in found} >= {"redis", "shop"}
