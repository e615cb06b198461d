"""Tables, colour and progress as text."""

from __future__ import annotations

import io

import pytest

from primordia.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_line_up_and_nothing_trails() -> None:
    text = output.table(["NAME", "PHASE"], [["a-long-name", "Running"], ["b", "Failed"]])
    assert text == "NAME          PHASE\na-long-name   Running\nb             Failed"


def test_without_headers_their_width_does_not_count() -> None:
    assert output.table(["A LONG HEADER", "B"], [["x", "y"]], headers=False) == "x   y"


def test_an_empty_table_is_its_header() -> None:
    assert output.table(["NAME"], []) == "NAME"


def test_a_guest_cannot_steer_the_terminal() -> None:
    text = output.table(["NAME"], [["evil\x1b[2J\nx"]])
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_colour_only_on_a_terminal_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.colourful(Terminal())
    assert not output.colourful(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.colourful(Terminal())


def test_colour_does_not_change_the_width() -> None:
    plain = output.table(["P", "Q"], [["Running", "x"], ["b", "y"]])
    coloured = output.table(["P", "Q"], [["Running", "x"], ["b", "y"]], colour=True)
    assert "\x1b[32mRunning" in coloured
    assert coloured.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain


def test_progress_into_a_pipe_has_no_escapes_and_every_step_once() -> None:
    stream = io.StringIO()
    with output.Progress(stream, all_steps=True) as progress:
        progress("unpack")
        progress("unpack")
        progress("start")
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["unpack", "start"]
    assert "\x1b" not in stream.getvalue()


def test_quick_steps_leave_no_line() -> None:
    stream = io.StringIO()
    with output.Progress(stream) as progress:
        progress("quick")
    assert stream.getvalue() == ""


def test_a_failed_step_says_so() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), output.Progress(stream, all_steps=True) as progress:
        progress("unpack")
        raise ValueError("no")
    assert "unpack: failed after" in stream.getvalue()


def test_of_a_single_step_the_error_tells_enough() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), output.Progress(stream) as progress:
        progress("copy")
        raise ValueError("no")
    assert stream.getvalue() == ""


def test_a_said_line_stays_above_the_step_that_goes_on() -> None:
    stream = Terminal()
    with output.Progress(stream, all_steps=True) as progress:
        progress("unpack")
        progress.say("This downloads 62 MB.")
    assert "This downloads 62 MB.\n" in stream.getvalue()
    assert stream.getvalue().index("62 MB") < stream.getvalue().rindex("unpack")


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    with output.Progress(stream, quiet=True, all_steps=True) as progress:
        progress.say("This downloads 62 MB.")
        progress("unpack")
    assert stream.getvalue() == ""
