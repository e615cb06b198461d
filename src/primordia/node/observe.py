"""From what the node holds of a context to the status that people see: pure."""

from __future__ import annotations

import math

from primordia.domain.conditions import Verdict
from primordia.domain.contexts import Action, Attach, Close, Discard, Finish, Remove, Rest, Start, Stop
from primordia.node.live import Live
from primordia.node.records import RunRecord
from primordia.wire.conditions import merge
from primordia.wire.resources import ContextStatus

EXIT_BY_MACHINE = "MicroVMDied"
_KEPT = {"kept": "MemoryKept", "not kept": "MemoryNotKept"}


def phase_of(live: Live, action: Action) -> str:
    """The context's phase while this action is under way."""
    if isinstance(action, Rest):
        return action.phase
    if isinstance(action, Stop | Close | Remove):
        return "Stopping"
    if isinstance(action, Start):
        return "Booting" if live.machine is not None else "Preparing"
    if isinstance(action, Attach) and live.record.run is not None and live.record.run.phase == "running":
        return "Running"
    return live.phase if isinstance(action, Finish | Discard | Attach) else "Pending"


def is_ready(live: Live) -> bool:
    """Whether the program runs, can be reached and, where there is a probe, passes it."""
    runs = live.main == "running" or (live.is_fork and live.main is not None)
    if not runs or live.guest is None:
        return False
    return live.readiness is None or live.readiness.ready


def status_of(live: Live, action: Action, before: ContextStatus, now: str, now_s: float) -> ContextStatus:
    """The context's status. `now` is RFC 3339, `now_s` boot-time seconds."""
    run = live.record.run
    phase = phase_of(live, action)
    reason, message = _why(live, action, run, now_s)
    running = phase in ("Running", "Stopping") and live.machine is not None
    return ContextStatus(
        phase=phase,
        observed_generation=live.context.metadata.generation if live.context is not None else before.observed_generation,
        reason=reason,
        message=message,
        ready=is_ready(live) and phase == "Running",
        ip=live.record.address,
        pid=live.machine.identity.pid if live.machine is not None else 0,
        restarts=live.record.restarts,
        exit_code=run.exit_code if run is not None and not running else None,
        started_at=run.started_at if run is not None else "",
        finished_at=run.ended_at if run is not None and not running else "",
        started_because=run.because if run is not None else "",
        started_from=run.started_from if run is not None else "",
        confirmed=run.confirmed if run is not None else (),
        image_digest=run.image_digest if run is not None else "",
        boot_ms=run.boot_ms if run is not None else 0,
        conditions=merge(before.conditions, _verdicts(live, phase, reason, message), now),
    )


def _why(live: Live, action: Action, run: RunRecord | None, now_s: float) -> tuple[str, str]:
    if isinstance(action, Start | Attach) and live.progress:
        return "", live.progress
    if isinstance(action, Rest) and action.phase in ("BackOff", "Failed", "Succeeded"):
        said = action.message or (run.end_message if run is not None else "")
        reason = action.reason or (run.end_reason if run is not None else "")
        if action.until is not None:
            # Rounded up to 10 s: a countdown in the status would be a write each second.
            wait_s = math.ceil(max(0.0, action.until - now_s) / 10) * 10
            said = f"{said} The next try comes within {wait_s} s.".strip()
        return reason, said
    if isinstance(action, Rest):
        if action.phase == "Running" and live.readiness is not None and not live.readiness.ready:
            return "Unready", live.readiness.message
        if action.phase == "Stopped" and run is not None and run.memory in _KEPT:
            return _KEPT[run.memory], run.memory_said
        return action.reason, action.message
    return "", ""


def _of_memory(run: RunRecord | None) -> list[Verdict]:
    """What became of its memory at its last suspension."""
    if run is None or run.memory not in ("kept", "not kept", "resumed", "lost"):
        return []
    if run.memory in _KEPT:
        return [Verdict.of("MemoryKept", run.memory == "kept", _KEPT[run.memory], run.memory_said)]
    reason = "ResumedFromMemory" if run.memory == "resumed" else "StartsFromDisk"
    return [Verdict.of("ResumedFromMemory", run.memory == "resumed", reason, run.memory_said)]


def _verdicts(live: Live, phase: str, reason: str, message: str) -> list[Verdict]:
    ready = is_ready(live) and phase == "Running"
    verdicts = [Verdict.of("Ready", ready, "" if ready else reason or phase, "" if ready else message)]
    if live.machine is not None and phase == "Running" and live.guest is None:
        verdicts.append(Verdict("GuestReachable", "False", "GuestUnreachable", "The agent in the guest does not answer."))
    verdicts += _of_memory(live.record.run)
    if live.faults:
        verdicts.append(Verdict("PortsPublished", "False", "PortTaken", " ".join(live.faults)))
    elif live.context is not None and any(port.publish for port in live.context.spec.template.ports):
        verdicts.append(Verdict("PortsPublished", "True", "Published"))
    return verdicts
