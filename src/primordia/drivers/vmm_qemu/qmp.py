"""QEMU's monitor, over QEMU's own library: connect, ask, hear why a machine stopped.

Everything has a deadline, because the other end is a process that a hostile guest may have taken over; and nothing that
it sends is kept: the library's listeners remember every event for ever, ours handles each and forgets it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from primordia.drivers.vmm_qemu.argv import CONSOLE, CONSOLE_BYTES
from primordia.kit.errors import PermanentError, TemporaryError
from primordia.kit.tasks import to_the_end

CONNECT_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 10.0
# Each port has two queues, in and out, and between those of port 0 and port 1 lie the two for control (virtio 1.2, 5.3.2).
_AGENT_OUTPUT_QUEUE = 5

# The library writes its own account of every lost connection to the log; ours says it where it matters.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class _Forgetful(EventListener):
    """Hands each event on instead of keeping it."""

    def __init__(self, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        data = event.get("data")
        self._on_event(str(event.get("event", "")), data if isinstance(data, Mapping) else {})


class Monitor:
    """One connection to a machine's monitor. Not reconnected: make another."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, connection: socket.socket, on_event: Callable[[str, Mapping[str, Any]], None]) -> Monitor:
        """Negotiate over a connected socket, which then belongs to the monitor. Raises TemporaryError."""
        client = QMPClient()
        client.events.event_filter = lambda event: False  # it cannot be removed
        client.register_listener(_Forgetful(on_event))
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await client.connect(connection)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            connection.close()
            raise TemporaryError(f"QEMU's monitor does not answer ({error}).") from error
        except BaseException:
            connection.close()
            raise
        return cls(client)

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a command and return what it returns. Raises PermanentError when QEMU refuses, TemporaryError when lost."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise PermanentError(f"QEMU refused {command}: {error}.", reason="VmmRefused") from error
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise TemporaryError(f"QEMU's monitor was lost during {command}.", remedy="It is connected again.") from error

    async def hand_over(self, descriptor: int) -> int:
        """Give QEMU a copy of an open file; returns n, so that QEMU knows it as /dev/fdset/n. One at a time.

        Raises PermanentError when QEMU refuses, TemporaryError when lost.
        """
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError, AssertionError) as error:
            raise TemporaryError("QEMU's monitor was lost while it was handed a file.", remedy="Try again.") from error
        answer = await self.execute("add-fd")
        return int(answer["fdset-id"])

    async def serial_device(self) -> str:
        """Where QEMU keeps the device that has the agent's port."""
        for device in await self.execute("x-query-virtio"):
            if device["name"] == "virtio-serial":
                return str(device["path"])
        raise PermanentError("QEMU has no virtio-serial device.", reason="VmmRefused")

    async def is_sending(self, serial_device: str) -> bool:
        """Whether the agent's port holds something of the guest's that the host's end of the channel has no room for."""
        queue = {"path": serial_device, "queue": _AGENT_OUTPUT_QUEUE}
        return bool((await self.execute("x-query-virtio-queue-status", queue))["inuse"])

    async def status(self) -> str:
        """The run state: running, paused, shutdown, internal-error..."""
        answer = await self.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def take_console(self) -> str:
        """What the guest wrote to its console since the last time, at most the ring's size."""
        answer = await self.execute("ringbuf-read", {"device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64"})
        with contextlib.suppress(ValueError):
            return base64.b64decode(str(answer)).decode(errors="replace")
        return ""

    async def end_at_resets(self) -> None:
        """From now on a guest that resets has ended, as with `-no-reboot`."""
        await self.execute("set-action", {"reboot": "shutdown"})

    async def lost(self) -> None:
        """Wait until the connection is gone."""
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()

    async def close(self) -> None:
        """Drop the connection; the machine goes on."""
        # The library's disconnect, cut off, leaves the connection's own failure to asyncio, which would report it as a bug.
        await to_the_end(self._disconnect())

    async def _disconnect(self) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._client.disconnect()
