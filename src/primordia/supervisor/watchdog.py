"""The machine's watchdog, fed by the fence's own loop: a machine whose fence no longer looks is reset by its hardware.

This is what is left when neither the supervisor nor the warden can run any more, as in a kernel that hangs. The device is
opened only where `node.json` names one. Closing it after a `V` disarms it, which is done at an orderly end alone: whoever is
killed leaves it armed, and the next supervisor has one timeout to take it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct

_SET_TIMEOUT = 0xC0045706  # WDIOC_SETTIMEOUT
_FOOD, _DISARM = b"\0", b"V"

log = logging.getLogger("watchdog")


class Watchdog:
    """The device at `path`; without one everything here does nothing. For one thread."""

    def __init__(self, path: str, timeout_s: int) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._device: int | None = None
        self._told = ""

    def feed(self) -> None:
        """Put the reset off. A device that cannot be fed is said once for each cause, and tried again."""
        if not self._path:
            return
        try:
            if self._device is None:
                self._device = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                with contextlib.suppress(OSError):  # one that takes no timeout keeps its own
                    fcntl.ioctl(self._device, _SET_TIMEOUT, struct.pack("i", self._timeout_s))
                log.info("%s is armed", self._path)
            os.write(self._device, _FOOD)
            self._told = ""
        except OSError as error:
            if str(error) != self._told:
                self._told = str(error)
                log.error("the watchdog cannot be fed, so a machine that hangs is not reset: %s", error)

    def disarm(self) -> None:
        """The orderly end."""
        if self._device is not None:
            with contextlib.suppress(OSError):
                os.write(self._device, _DISARM)
            os.close(self._device)
            self._device = None
