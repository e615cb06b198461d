"""Every way a command can end: the exit code, one line, no traceback."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace

import pytest

from primordia.cli import main as entry
from primordia.kit.errors import NotFoundError


def _ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def perform(options: Namespace) -> int:
        raise error

    monkeypatch.setattr(entry, "_perform", perform)
    return entry.main(["status"])


def test_an_error_is_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ends_with(monkeypatch, NotFoundError("There is no lifeform\n'web'.", remedy="See `primordia get lf`.")) == 1
    assert capsys.readouterr().err == "error: There is no lifeform 'web'. See `primordia get lf`.\n"


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ends_with(monkeypatch, FileNotFoundError(2, "No such file or directory", "web.yaml")) == 1
    assert capsys.readouterr().err == "error: web.yaml: No such file or directory.\n"


def test_a_bug_leaves_its_trace_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _ends_with(monkeypatch, ZeroDivisionError("division by zero")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: This is a bug in primordia (ZeroDivisionError: division by zero).")
    assert len(said.splitlines()) == 1
    (trace,) = tmp_path.iterdir()
    assert str(trace) in said
    assert "Traceback" in trace.read_text()


def test_debug_shows_the_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PRIMORDIA_DEBUG", "1")
    _ends_with(monkeypatch, NotFoundError("gone."))
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ends_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_of_several_errors_ours_is_told() -> None:
    group = BaseExceptionGroup("", [ValueError("x"), BaseExceptionGroup("", [NotFoundError("gone.")])])
    assert str(entry._first(group)) == "gone."


def test_wrong_use_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["frobnicate"]) == 2
    assert "invalid choice" in capsys.readouterr().err
    assert entry.main(["get"]) == 2


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    assert "describe" in capsys.readouterr().out


def test_a_closed_pipe_is_quiet() -> None:
    """`primordia completion zsh | true`: the reader is gone before all is written."""
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys, primordia.cli.main as m; sys.exit(m.main(['completion', 'zsh']))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    writer.stdout.close()
    _, said = writer.communicate(timeout=30)
    assert (writer.returncode, said) == (0, b"")


def test_start_up_imports_no_heavy_library() -> None:
    """`--help` and completion must not pay for HTTP, TLS and YAML."""
    code = (
        "import sys, primordia.cli.tree as t; t.build();"
        "heavy = {'aiohttp', 'cryptography', 'msgspec', 'yaml', 'asyncio', 'shtab'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_files_and_both_names(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for words in ("describe", "namespace", "kbl"):
        assert words in script
    assert {"bash": "_shtab_compgen_files", "zsh": "_files", "fish": "__fish_complete_path"}.get(shell, "") in script


def test_completion_is_bash(capsys: pytest.CaptureFixture[str]) -> None:
    entry.main(["completion", "bash"])
    script = capsys.readouterr().out + "\ncomplete -p kbl primordia\n"
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
