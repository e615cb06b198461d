"""How a machine ended, from what was seen."""

from __future__ import annotations

import pytest

from primordia.drivers.vmm_qemu.driver import parse_version
from primordia.drivers.vmm_qemu.endings import Evidence, exit_of, last_line, panic_text, start_error
from primordia.kit.errors import CapacityError, PermanentError, TemporaryError

PANIC = "[    1.5] Kernel panic - not syncing: Attempted to kill init!\r\n[    1.6] CPU: 0\r\n"


@pytest.mark.parametrize(
    ("seen", "cause", "detail"),
    [
        (Evidence(shutdown="guest-shutdown", status=0), "shutdown", "powered itself off"),
        (Evidence(shutdown="guest-ended"), "shutdown", "while nobody watched"),
        (Evidence(shutdown="guest-ended", console="Kernel panic - not syncing: told"), "crashed", "not syncing: told"),
        (Evidence(shutdown="guest-reset", status=0), "shutdown", "rebooted"),
        (Evidence(shutdown="guest-reset", status=0, console=PANIC), "crashed", "Attempted to kill init!"),
        (Evidence(shutdown="guest-panic", status=0), "crashed", "panicked"),
        (Evidence(shutdown="internal-error", status=0, stderr="KVM internal error"), "crashed", "KVM internal error"),
        (Evidence(shutdown="host-signal", status=0), "killed", "host-signal"),
        (Evidence(status=-9), "killed", "SIGKILL"),
        (Evidence(status=-9, over_memory=True), "crashed", "memory limit"),
        (Evidence(status=-11), "crashed", "SIGSEGV"),
        (Evidence(status=1, stderr="qemu: boom\n"), "crashed", "boom"),
        (Evidence(status=None), "lost", "nobody watched"),
        (Evidence(requested=True, status=-9), "killed", ""),
        (Evidence(requested=True, status=None), "killed", ""),
    ],
)
def test_verdicts(seen: Evidence, cause: str, detail: str) -> None:
    end = exit_of(seen)
    assert end.cause == cause
    assert detail in end.detail
    assert end.requested is seen.requested


def test_a_powered_off_guest_that_we_had_told_to_go_was_requested() -> None:
    end = exit_of(Evidence(requested=True, shutdown="guest-shutdown", status=0))
    assert (end.cause, end.requested) == ("shutdown", True)


def test_a_guest_writing_panic_to_its_console_changes_no_other_end() -> None:
    assert exit_of(Evidence(shutdown="guest-shutdown", console=PANIC)).cause == "shutdown"
    assert exit_of(Evidence(status=-9, console=PANIC)).cause == "killed"


def test_the_last_panic_is_quoted_and_bounded() -> None:
    assert panic_text(PANIC) == "Kernel panic - not syncing: Attempted to kill init!"
    assert len(panic_text("Kernel panic - not syncing: " + "x" * 10_000)) == 400
    assert panic_text("nothing") == ""


def test_the_programs_own_name_is_left_out() -> None:
    assert last_line("a\n/usr/bin/qemu: cannot do it\n\n") == "cannot do it"
    assert last_line("qemu-system-x86_64: -drive x: no") == "-drive x: no"
    assert last_line("Error: it broke") == "Error: it broke"
    assert last_line("") == ""


def test_a_failed_start_says_what_to_do() -> None:
    no_memory = start_error("u", 1, "qemu: cannot set up guest memory 'ram': Cannot allocate memory", over_memory=False)
    assert isinstance(no_memory, CapacityError)
    assert isinstance(start_error("u", -9, "", over_memory=True), CapacityError)
    assert isinstance(start_error("u", 1, 'Failed to get "write" lock', over_memory=False), TemporaryError)
    refused = start_error("u", 1, "/q/qemu-system-x86_64: -cpu what: unable to find CPU model", over_memory=False)
    assert isinstance(refused, PermanentError)
    assert "exit code 1: -cpu what: unable to find CPU model" in refused.message
    assert "SIGABRT" in start_error("u", -6, "", over_memory=False).message
    assert "does not answer" in start_error("u", None, "", over_memory=False).message


def test_versions() -> None:
    assert parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright") == "10.0.2"
    assert parse_version("nonsense") == "0.0"
