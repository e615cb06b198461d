"""Asking the other nodes whether they have an engine, and answering them: what lets a soup outlive the loss of its quorum.

A node that cannot reach the engine may be the only one that cannot; then somebody else will soon run what it runs. Only if
every other node says that it has no engine either is there nobody who could. So each node answers on a port of its own, over
mutual TLS by the authority that signs nodes alone, and says whether it has had an answer of the engine's of
late: it is never asked to say more than it knows. One that does not answer within the round, or is not who it should be,
has refused.

While the engine answers nobody asks: a listener that sleeps is all there is. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from primordia.domain.timings import Timings
from primordia.supervisor.lease import now

PORT_ABOVE_API = 1
_BACKLOG = 64
_MOST_AT_ONCE = 64
_LONGEST_LINE = 1024
_SERVE_WITHIN_S = 2.0
_LISTEN_AGAIN_S = 2.0

log = logging.getLogger("failsafe")


@dataclass(frozen=True)
class Place:
    """Who answers where: a node's name and incarnation, its address and the port, which is the same on every node."""

    node: str
    incarnation: str
    address: str
    port: int


class Keeper(Protocol):
    """What is asked of the lease keeper."""

    @property
    def others(self) -> Mapping[str, str] | None: ...

    @property
    def has_engine(self) -> bool: ...


class Failsafe:
    """One node's voice and ear. `start` and `stop` belong to the main thread, `ask` and `round_s` to the fence's."""

    def __init__(self, place: Place, pki: Path, keeper: Keeper, timings: Timings) -> None:
        self._place = place
        self._pki = pki
        self._keeper = keeper
        self._timings = timings
        self._round_s: float | None = None
        self._asking = threading.Event()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._said: dict[str, str] = {}
        self._thread = threading.Thread(target=self._listen, name="failsafe", daemon=True)

    @property
    def round_s(self) -> float | None:
        """When the last round began in which every other node said that it has no engine."""
        return self._round_s

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def status(self) -> dict[str, str]:
        """What each of the others said in the last round."""
        return dict(self._said)

    # ------------------------------------------------------------ asking

    def ask(self) -> None:
        """Begin a round, if none is under way; returns at once."""
        others = self._keeper.others
        if others and not self._asking.is_set():
            self._asking.set()
            self._in_thread("round", lambda: self._round(others))

    def _round(self, others: Mapping[str, str]) -> None:
        try:
            begun, patience_s = now(), self._timings.failsafe_round_s
            said: dict[str, str] = {}
            tls = self._context(ssl.Purpose.SERVER_AUTH)
            threads = [
                self._in_thread(name, lambda name=name, address=address: said.__setitem__(name, self._hear(tls, name, address)))  # type: ignore[misc]
                for name, address in others.items()
            ]
            for thread in threads:
                thread.join(max(0.0, begun + patience_s - now()))
            self._said = {name: said.get(name, "no answer in time") for name in others}
            refused = [f"{name}: {words}" for name, words in self._said.items() if words != _NO_ENGINE]
            if not refused:
                self._round_s = begun
            else:
                log.warning("not every other node has lost the engine: %s", "; ".join(refused))
        except (OSError, RuntimeError) as error:
            log.error("the other nodes cannot be asked: %s", error)
        finally:
            self._asking.clear()

    def _hear(self, tls: ssl.SSLContext, name: str, address: str) -> str:
        """What one node says, in words."""
        patience_s = self._timings.failsafe_round_s
        try:
            with (
                socket.create_connection((address, self._place.port), timeout=patience_s) as plain,
                tls.wrap_socket(plain, server_hostname=address) as connection,
            ):
                connection.sendall(b"engine?\n")
                answer = json.loads(_line(connection))
        except (OSError, ValueError) as error:
            return f"no answer ({error or type(error).__name__})"
        if not isinstance(answer, dict) or answer.get("node") != name:
            return "somebody else answers"
        return _NO_ENGINE if answer.get("engine") is False else "it has an engine"

    # ------------------------------------------------------------ answering

    def _listen(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        told = ""
        while not self._stopping.is_set():
            try:
                self._listener = socket.create_server((self._place.address, self._place.port), backlog=_BACKLOG)
                told = ""
                self._accept(self._listener, self._context(ssl.Purpose.CLIENT_AUTH))
            except (OSError, RuntimeError) as error:  # the latter where no thread can be started
                if not self._stopping.is_set() and str(error) != told:
                    told = str(error)
                    log.error(
                        "other nodes cannot ask this one at %s:%d: %s. Without the engine they freeze what they run.",
                        self._place.address,
                        self._place.port,
                        error,
                    )
                self._stopping.wait(_LISTEN_AGAIN_S)

    def _accept(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        with listener:
            while not self._stopping.is_set():
                plain, _ = listener.accept()
                if not self._room.acquire(blocking=False):
                    plain.close()
                    continue
                self._in_thread("answer", lambda plain=plain: self._answer(plain, tls))  # type: ignore[misc]

    def _answer(self, plain: socket.socket, tls: ssl.SSLContext) -> None:
        try:
            plain.settimeout(_SERVE_WITHIN_S)
            with tls.wrap_socket(plain, server_side=True) as connection:
                _line(connection)
                connection.sendall(json.dumps(self._truth()).encode() + b"\n")
        except (OSError, ValueError) as error:
            log.debug("an asker got no answer: %s", error)
        finally:
            plain.close()
            self._room.release()

    def _truth(self) -> dict[str, Any]:
        """What our own attempts at the engine came to."""
        place = self._place
        return {"engine": self._keeper.has_engine, "node": place.node, "incarnation": place.incarnation}

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cafile=str(self._pki / "engine-ca.crt"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._pki / "engine.crt", self._pki / "engine.key")
        return context

    @staticmethod
    def _in_thread(name: str, work: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"failsafe/{name}", daemon=True)
        thread.start()
        return thread


_NO_ENGINE = "it has no engine"


def _line(connection: ssl.SSLSocket) -> bytes:
    """One line, or what there was of it. Raises OSError after the socket's patience."""
    text = b""
    while not text.endswith(b"\n") and len(text) < _LONGEST_LINE and (part := connection.recv(_LONGEST_LINE)):
        text += part
    return text
