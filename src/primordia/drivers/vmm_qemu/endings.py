"""How a machine ended, from what was seen of it. Pure.

Three witnesses: QEMU's SHUTDOWN event (why the guest stopped), the guest's console (the kernel's last words; the guest can
write there what it likes, which changes nothing but the story of its own end) and the exit status, which only the parent
of the process gets to see.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from primordia.kit.errors import CapacityError, PermanentError, PrimordiaError, TemporaryError
from primordia.ports.vmm import Exit

PANIC = "Kernel panic - not syncing"
_LONGEST_DETAIL = 400
_WORDS = {
    "guest-shutdown": "powered itself off",
    "guest-reset": "rebooted, which ends it",
    "guest-ended": "powered itself off or rebooted while nobody watched",
}


@dataclass(frozen=True)
class Evidence:
    """`shutdown` is the reason in QEMU's event, or `guest-ended` when the event was missed and only the state tells; empty
    when neither was seen. `status` is an exit code, or minus a signal's number, or None when the process was not our child."""

    requested: bool = False
    shutdown: str = ""
    status: int | None = None
    console: str = ""
    stderr: str = ""
    over_memory: bool = False


def exit_of(seen: Evidence) -> Exit:
    """The verdict. What the guest did itself comes before what was done to the process afterwards."""
    if seen.shutdown.startswith("guest-"):
        return _ended_itself(seen)
    if seen.shutdown == "internal-error":
        return Exit("crashed", f"QEMU could not go on emulating. {last_line(seen.stderr)}".strip(), seen.requested)
    if seen.requested:
        return Exit("killed", "", True)
    if seen.over_memory:
        return Exit("crashed", "The host's kernel killed QEMU, which had gone over its memory limit.")
    if seen.shutdown:
        return Exit("killed", f"QEMU was told to end ({seen.shutdown}).")
    return _process_ended(seen)


def _ended_itself(seen: Evidence) -> Exit:
    panic = panic_text(seen.console)
    if seen.shutdown == "guest-panic" or (seen.shutdown in ("guest-reset", "guest-ended") and panic):
        return Exit("crashed", panic or "The guest's kernel panicked.", seen.requested)
    return Exit("shutdown", f"The guest {_WORDS.get(seen.shutdown, _WORDS['guest-shutdown'])}.", seen.requested)


def _process_ended(seen: Evidence) -> Exit:
    if seen.status is None:
        return Exit("lost", "It ended while nobody watched.")
    if seen.status >= 0:
        return Exit("crashed", f"QEMU ended with exit code {seen.status}. {last_line(seen.stderr)}".strip())
    name = signal.Signals(-seen.status).name
    if name in ("SIGKILL", "SIGTERM"):
        return Exit("killed", f"Somebody else sent QEMU {name}.")
    return Exit("crashed", f"QEMU was ended by {name}. {last_line(seen.stderr)}".strip())


def panic_text(console: str) -> str:
    """The kernel's sentence about its panic, without the time in front of it; empty when there is none."""
    start = console.rfind(PANIC)
    return console[start:].splitlines()[0].strip()[:_LONGEST_DETAIL] if start >= 0 else ""


def last_line(text: str) -> str:
    """The last line that is not empty, without the program's name in front of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1]
    head, colon, tail = line.partition(": ")
    is_program = "/" in head or head.startswith("qemu-system")
    return (tail if colon and is_program and " " not in head else line)[:_LONGEST_DETAIL]


def start_error(uid: str, status: int | None, stderr: str, *, over_memory: bool) -> PrimordiaError:
    """Why QEMU did not start, as an error that says what to do."""
    said = last_line(stderr)
    low = stderr.lower()
    if over_memory or "cannot allocate memory" in low or "cannot set up guest memory" in low:
        return CapacityError(
            f"There is not enough memory to start microVM {uid}. {said}".strip(),
            remedy="Give it less memory, or free some on the node.",
        )
    if 'failed to get "write" lock' in low or "failed to get shared" in low:
        return TemporaryError(f"microVM {uid} cannot start: another process has its disk open.", remedy="It is tried again.")
    if status is None:
        how = "does not answer"
    elif status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        how = f"gave up with exit code {status}"
    return PermanentError(
        f"microVM {uid} cannot start: QEMU {how}" + (f": {said}" if said else "."),
        remedy="`primordia doctor` checks QEMU, kernel and disks.",
        reason="StartFailed",
    )
