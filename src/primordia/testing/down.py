"""A supervisor as far as a held `down` goes."""

from __future__ import annotations

import threading
from pathlib import Path

from primordia.supervisor import control


class HalfDown:
    """In a thread: it says when its second half, the engine server's end, has begun; that half lasts until it `may_end`."""

    def __init__(self, place: Path) -> None:
        self.second_half = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.request: dict[str, object] = {}
        self._server = control.listen(place)
        self._server.setblocking(True)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        self.request = control.receive(connection)
        control.held(connection, timeout_s=60)
        self.second_half.set()
        self.may_end.wait(60)
        control.answer(connection, {"ok": True})

    def close(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        self._server.close()
