"""What each call says to the agent and what its answer means. Pure; guest/PROTOCOL.md has the table of kinds."""

from __future__ import annotations

from collections.abc import Mapping

from primordia.ports.guest import CONFIRMED, ExitStatus, GuestError, GuestIdentity, MainState, Program
from primordia.wire.guest_frames import encode_params

Params = list[tuple[str, str]]
_TEXT_MAX = 400
_BOOT_ID_SIZE = 16


def identity_params(identity: GuestIdentity) -> Params:
    """GuestIdentity as parameters of `identify`; bytes are in hex. Nobody is let go by it: that is `release`."""
    params: Params = [
        ("hostname", identity.hostname),
        ("machine_id", identity.machine_id),
        ("wall_ns", str(identity.wall_ns)),
        ("entropy", identity.entropy.hex()),
        ("inherit_secrets", "1" if identity.inherit_secrets else "0"),
        ("rehearsal" if identity.rehearsal else "hold", "1"),
    ]
    if (net := identity.network) is not None:
        params += [("address", net.address), ("mac", net.mac)] if net.address else []
        params += [("gateway", net.gateway), ("gateway_mac", net.gateway_mac), ("mtu", str(net.mtu))]
    params += hosts_params(identity.hosts)
    params += [("search", domain) for domain in identity.search]
    for mount in identity.mounts:
        params.append(("mount", f"{mount.device}:{mount.filesystem}:{'ro' if mount.read_only else 'rw'}:{mount.path}"))
    for secret in identity.secrets:
        params.append(("secret", f"{secret.mode:o}:{secret.content.hex()}:{secret.path}"))
    return params


def hook_params(identity: GuestIdentity) -> Params:
    """What runs once the user processes go on. Raises ValueError for a NUL."""
    return [("hook", encode_params(program_params(hook)).hex()) for hook in identity.hooks]


def confirmed_items(answer: Mapping[str, str]) -> dict[str, int]:
    """What `identify` confirmed, and the microseconds that each item took. Raises GuestError when that makes no sense."""
    known = (*CONFIRMED, "mounts")
    return {name: _number(answer, f"ok_{name}", 2**31) for name in known if f"ok_{name}" in answer}


def boot_id(answer: Mapping[str, str]) -> bytes:
    """The id that the agent chose. Raises GuestError when it is none."""
    text = answer.get("boot_id", "")
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _BOOT_ID_SIZE:
        raise GuestError(f"The guest's agent answered boot_id={shown(text)}, which is none.", reason="EPROTO")
    return found


def hosts_params(hosts: Mapping[str, str]) -> Params:
    """Names and addresses for /etc/hosts, in the order of the names."""
    return [("host", f"{name}={address}") for name, address in sorted(hosts.items())]


def program_params(program: Program) -> Params:
    """A program to start."""
    params: Params = [("argv", argument) for argument in program.argv]
    params += [("env", f"{key}={value}") for key, value in program.env]
    params += [("cwd", program.working_dir), ("user", program.user)]
    if program.tty:
        params += [("tty", "1"), ("rows", str(program.rows)), ("columns", str(program.columns))]
    return params


def freeze_params(deadline_s: float) -> Params:
    """How long data file systems may stand, in whole milliseconds, one at least."""
    return [("deadline_ms", str(max(1, round(deadline_s * 1000))))]


def exit_status(answer: Mapping[str, str]) -> ExitStatus:
    """How a process ended. Raises GuestError when the answer makes no sense."""
    return ExitStatus(code=_number(answer, "code", 255), signal=_number(answer, "signal", 64))


def main_state(answer: Mapping[str, str]) -> MainState:
    """The main program's state. Raises GuestError when the answer makes no sense."""
    match answer.get("phase"):
        case "none":
            return MainState("none")
        case "running":
            return MainState("running", pid=_number(answer, "pid", 2**31))
        case "ended":
            return MainState("ended", status=exit_status(answer))
        case other:
            raise GuestError(f"The guest's agent gave the main program the unknown phase {shown(str(other))}.")


def _number(answer: Mapping[str, str], key: str, high: int) -> int:
    text = answer.get(key, "")
    if len(text) > 10 or not text.isascii() or not text.isdigit() or int(text) > high:
        raise GuestError(f"The guest's agent answered {key}={shown(text)}, which is no number up to {high}.")
    return int(text)


def refusal(answer: Mapping[str, str]) -> GuestError:
    """The error that an agent's `error` and `message` mean."""
    reason = answer.get("error", "EIO")
    known = reason.isascii() and reason.isalnum() and len(reason) < 20
    return GuestError(
        f"The guest refused: {shown(answer.get('message', 'it gave no reason'))}.", reason=reason if known else "EIO"
    )


def shown(text: str) -> str:
    """Text of the guest made fit for people and logs: short, on one line, without control characters."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[:_TEXT_MAX])
    return clean + ("..." if len(text) > _TEXT_MAX else "")
