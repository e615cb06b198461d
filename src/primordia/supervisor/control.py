"""Asking a running supervisor: one JSON object a line over a root-only unix socket. `up`, `down` and `status` use it."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

from primordia.kit.unix import short_address

_LONGEST_REQUEST = 4096


def listen(path: Path) -> socket.socket:
    """The control socket, replacing one that a dead supervisor left (the caller holds the lock)."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_address(path) as address:
        server.bind(address)
    path.chmod(0o600)
    server.listen(8)
    server.setblocking(False)
    return server


def receive(connection: socket.socket) -> dict[str, Any]:
    """Read one request; anything that is none becomes an empty one."""
    connection.settimeout(1.0)
    try:
        text = connection.recv(_LONGEST_REQUEST)
        request = json.loads(text)
    except (OSError, ValueError):
        return {}
    return request if isinstance(request, dict) else {}


def answer(connection: socket.socket, reply: dict[str, Any]) -> None:
    """Send the reply and close; a client that has gone away is no error."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(reply).encode() + b"\n")
    connection.close()


def held(connection: socket.socket, timeout_s: float) -> None:
    """Say that the first half is done, then wait until the asker lets go (`release`), is gone, or the time is over."""
    with contextlib.suppress(OSError):
        connection.settimeout(timeout_s)
        connection.sendall(json.dumps({"ok": True, "held": True}).encode() + b"\n")
        connection.recv(1)


def ask(path: Path, command: str, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask the supervisor that listens at `path`. Raises OSError when none does, ValueError on nonsense."""
    with _connected(path, timeout_s) as client:
        return _exchange(client, {"command": command})


def hold_down(path: Path, *, timeout_s: float) -> socket.socket:
    """Ask for `down`, and return when all but the engine server has ended; `release` ends that too. Raises as `ask`."""
    client = _connected(path, timeout_s)
    try:
        _exchange(client, {"command": "down", "hold": True})
    except BaseException:
        client.close()
        raise
    return client


def release(client: socket.socket) -> None:
    """Let a held supervisor end what is left; returns when it has."""
    with client, contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def _connected(path: Path, timeout_s: float) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        with short_address(path) as address:
            client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def _exchange(client: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    client.sendall(json.dumps(request).encode() + b"\n")
    text = b""
    while not text.endswith(b"\n") and (part := client.recv(65536)):
        text += part
    reply = json.loads(text)
    if not isinstance(reply, dict):
        raise ValueError("the supervisor's answer is no object")
    return reply
