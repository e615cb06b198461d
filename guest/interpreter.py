"""The warmed interpreter of a template: `python3 interpreter.py CODE` runs the warm-up CODE, says that it is ready, and then
serves requests on a socket beside this file, in one namespace that lasts, as a notebook does.

A frame is four bytes of length, big-endian, and that much JSON. Requests: `{"id", "code", "timeout"?, "env"?}` and
`{"id", "reseed": true}`. Answers carry the `id`: `{"stdout": text}` and `{"stderr": text}` as it is written, by this process
or those it starts, and at the end `{"done": true, "result": repr of a last expression or null, "error": null or {"type",
"message", "traceback"}}`. Code runs in the main thread, one request after the other; each connection has a thread.

The invariant: no request runs with random state that another fork has too. Forks wake with equal memory, so before each
request the boot id, which is new in each fork, is compared with the one before; if it changed, what draws random numbers in
user space is seeded anew. A client that goes interrupts its request, unless it went because this is a fork: then the code,
which may be the one that asked for the fork, goes on, and its output goes to the program's log.

`{"id", "rehearse": true}` runs a little code of ours the way a request's runs, of which nothing stays: in a fork that waits to
be claimed this makes the first request fast. It is asked only where the file `alone` lies beside this one: nothing of the
warm-up would run if this process went on for a moment, no thread, child or timer of it.

Standard library only, for Python 3.9 and newer: it runs in whatever Python the image has.
"""

from __future__ import annotations

import ast
import codecs
import contextlib
import gc
import io
import json
import linecache
import os
import queue
import random
import select
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
BOOT_ID = Path(os.environ.get("PRIMORDIA_BOOT_ID_FILE", "/proc/sys/kernel/random/boot_id"))
FRAME_MAX = 64 * 1024 * 1024
RESULT_MAX = 1024 * 1024
READ_SIZE = 65536
OWN_THREADS = 2
"""The main one, and the one that accepts connections; both wait."""
REHEARSAL = """
import json
class Kind:
    def __init__(self, count):
        self.words = [f"{number / 7:.3f}" for number in range(count)]
def found(*kinds, **named):
    named["words"] = {len(word): word for kind in kinds for word in kind.words}
    return named
try:
    found()["none"]
except KeyError as error:
    print(json.dumps(found(Kind(3), error=repr(error), numbers=(1, 2.5, None, True))))
json.loads(json.dumps(list(found(Kind(2))["words"].values())))
"""
"""What a request is likely to need; all that it imports is there already."""


class LateError(BaseException):
    """The request's time is over. No Exception, so that code that catches those does not catch this."""


# ---- never twins ----


Message = dict[str, Any]


def read_boot_id() -> str:
    """The id of this boot, or fork, of the guest."""
    return BOOT_ID.read_text()


def reseed() -> None:
    """Give every generator of random numbers that this process is known to have a state of its own."""
    random.seed(os.urandom(64))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(list(os.urandom(64)))
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(64), 64.0)


class Twin:
    """Notices that this process woke as another guest."""

    def __init__(self) -> None:
        self._known = read_boot_id()
        self._lock = threading.Lock()

    def check(self) -> str:
        """Reseed if the boot id changed. Returns the boot id."""
        with self._lock:
            found = read_boot_id()
            if found != self._known:
                reseed()
                self._known = found
            return found


def is_alone() -> bool:
    """Whether nothing but our own two threads would run if this process, frozen now, went on for a moment."""
    try:
        timers = Path("/proc/self/timers").read_text()
        threads = len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return False
    ticking = any(signal.getitimer(each)[0] for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF))
    watched = sys.gettrace() or sys.getprofile() or gc.callbacks
    return threads == OWN_THREADS and not (timers or ticking or watched or _has_children())


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


# ---- frames ----


class Client:
    """A connection. Sending to one that is gone is harmless: what it was to hear goes to the log."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.gone = False

    def send(self, message: Message) -> bool:
        """One frame. False when the client is gone."""
        body = json.dumps(message).encode()
        with self._lock:
            if not self.gone:
                try:
                    self._connection.sendall(len(body).to_bytes(4, "big") + body)
                except OSError:
                    self.gone = True
            return not self.gone

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            part = self._connection.recv(min(READ_SIZE, size - len(data)))
            if not part:
                return None
            data += part
        return data

    def receive(self) -> Message | None:
        """The next request; None when there will be no more, or no sense in what came."""
        try:
            head = self._exactly(4)
            size = int.from_bytes(head, "big") if head else FRAME_MAX + 1
            body = self._exactly(size) if size <= FRAME_MAX else None
            request = json.loads(body) if body else None
        except (OSError, ValueError):
            return None
        return request if isinstance(request, dict) else None

    def wait_until_gone(self) -> None:
        """Block until both directions have ended; a client that has only said its last word still listens."""
        poll = select.poll()
        poll.register(self._connection, 0)
        poll.poll()
        self.gone = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()


# ---- output ----


class Output:
    """What is written to descriptors 1 and 2 while a request runs, sent on as it comes."""

    def __init__(self, send: Callable[[Message], bool]) -> None:
        self._send = send
        self._over = os.pipe()  # a byte in it says that the request has ended
        self._told = threading.Event()
        self._saved = {"stdout": os.dup(1), "stderr": os.dup(2)}
        self._names: dict[int, str] = {}
        for number, name in ((1, "stdout"), (2, "stderr")):
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            os.dup2(writing, number)
            os.close(writing)
            self._names[reading] = name
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in self._names}
        threading.Thread(target=self._forward, daemon=True).start()

    def end(self) -> None:
        """Returns when all that was written until now is sent. What is written later, in the background, goes to the log."""
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                file.flush()
        os.dup2(self._saved["stdout"], 1)
        os.dup2(self._saved["stderr"], 2)
        os.write(self._over[1], b"x")
        self._told.wait()

    def _forward(self) -> None:
        poll = select.poll()
        for fd in (*self._names, self._over[0]):
            poll.register(fd, select.POLLIN)
        while self._names or not self._told.is_set():
            for fd, _ in poll.poll():
                if fd == self._over[0]:
                    poll.unregister(fd)
                    self._drain(poll)
                    self._told.set()
                elif fd in self._names:
                    self._pass_on(poll, fd)
        for fd in (*self._over, *self._saved.values()):
            os.close(fd)

    def _drain(self, poll: select.poll) -> None:
        """Pass on what is there now."""
        for fd in list(self._names):
            while fd in self._names and self._pass_on(poll, fd):
                pass

    def _pass_on(self, poll: select.poll, fd: int) -> bool:
        """Read once. False when there is nothing now."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        name = self._names[fd]
        if not data:
            poll.unregister(fd)
            os.close(fd)
            del self._names[fd]
        text = self._decoders[fd].decode(data, not data)
        if text and (self._told.is_set() or not self._send({name: text})):
            with contextlib.suppress(OSError):
                os.write(self._saved[name], text.encode())
        return bool(data)


# ---- code ----


class Job:
    """A request for code to be run. `boot_id` is the guest's when it began."""

    def __init__(self, client: Client, request: Message) -> None:
        self.client = client
        self.id = request.get("id")
        self.code = str(request.get("code", ""))
        timeout_s = request.get("timeout")
        self.timeout_s = max(float(timeout_s), 0.001) if isinstance(timeout_s, (int, float)) else 0.0
        env = request.get("env")
        self.env = {str(key): str(value) for key, value in env.items()} if isinstance(env, dict) else {}
        self.boot_id = ""
        self.is_rehearsal = request.get("rehearse") is True

    def send(self, message: Message) -> bool:
        """A part of its answer. False when nobody waits for it."""
        return self.client.send({"id": self.id, **message})


class Interpreter:
    """One namespace, and the code that runs in it, all in the main thread."""

    def __init__(self) -> None:
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self._namespace = module.__dict__
        self._count = 0
        self._in_code = False
        self._job: Job | None = None
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._in_code:
            raise LateError if number == signal.SIGALRM else KeyboardInterrupt

    def interrupt(self, job: Job) -> None:
        """From another thread: end the job, if it is the one that runs."""
        main = threading.main_thread().ident
        if self._job is job and main is not None:
            signal.pthread_kill(main, signal.SIGINT)

    def execute(self, code: str) -> str | None:
        """The repr of a last expression, else None. Raises what the code raises."""
        self._count += 1
        name = f"<code {self._count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        try:
            self._in_code = True
            exec(compile(tree, name, "exec", dont_inherit=True), self._namespace)
            if not isinstance(last, ast.Expr):
                return None
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), self._namespace)
            self._namespace["_"] = value
            return None if value is None else repr(value)[:RESULT_MAX]
        finally:
            self._in_code = False

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Code runs in a namespace of its own, no finalizer of others' runs meanwhile, and nothing of it stays."""
        namespace, count, collecting = self._namespace, self._count, gc.isenabled()
        self._namespace = types.ModuleType("rehearsal").__dict__
        gc.disable()
        try:
            yield
        finally:
            linecache.cache.pop(f"<code {self._count}>", None)
            self._namespace, self._count = namespace, count
            if collecting:
                gc.enable()

    def rehearse(self, job: Job) -> Message:
        """Run our own code as if it were the job's. Returns the last message of its answer; never raises."""
        job.code = REHEARSAL
        with self._apart():
            return self.answer(job)

    def answer(self, job: Job) -> Message:
        """Run a job. Returns the last message of its answer; never raises."""
        self._job = job
        try:
            with environment(job.env), limit(job.timeout_s):
                return {"done": True, "result": self.execute(job.code), "error": None}
        except LateError:
            error = {"type": "TimeoutError", "message": f"the code did not end within {job.timeout_s:g} s", "traceback": ""}
        except BaseException as caught:
            self._in_code = False  # a second signal may have come before `execute` could say so
            error = described(caught)
        finally:
            self._job = None
        return {"done": True, "result": None, "error": error}


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """SIGALRM after that time, and each second again, for code that swallows it. 0: never."""
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """Variables for a while; what the code itself sets beside them stays."""
    before = {key: os.environ.get(key) for key in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def described(error: BaseException) -> Message:
    """An exception as its owner would see it, without our own frames."""
    trace = traceback.TracebackException.from_exception(error)
    ours = [number for number, frame in enumerate(trace.stack) if frame.filename in (__file__, ast.__file__)]
    del trace.stack[: ours[-1] + 1 if ours else 0]
    try:
        message = str(error)
    except Exception:
        message = ""
    return {"type": type(error).__name__, "message": message, "traceback": "".join(trace.format())}


# ---- serving ----


class Server:
    """Connections to jobs, jobs to the main thread."""

    def __init__(self, interpreter: Interpreter, twin: Twin) -> None:
        self._interpreter = interpreter
        self._twin = twin
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def listen(self, path: Path) -> None:
        """Accept connections in a thread from now on."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._converse, args=(Client(connection),), daemon=True).start()

    def _converse(self, client: Client) -> None:
        jobs = []
        while (request := client.receive()) is not None:
            job = Job(client, request)
            if request.get("reseed"):
                reseed()
                job.send({"done": True, "result": None, "error": None})
            else:
                jobs.append(job)
                self._jobs.put(job)
        client.wait_until_gone()
        for job in jobs:
            if self._twin.check() == job.boot_id:
                self._interpreter.interrupt(job)
        client.close()

    def serve_for_ever(self) -> None:
        """The main thread's own loop."""
        while True:
            job = self._jobs.get()
            if job.client.gone:
                continue
            job.boot_id = self._twin.check()
            output = Output(job.send)
            last = self._interpreter.rehearse(job) if job.is_rehearsal else self._interpreter.answer(job)
            output.end()
            job.send(last)


def warm_up(interpreter: Interpreter, code: str) -> bool:
    """Run the warm-up; what goes wrong is told on standard error."""
    try:
        interpreter.execute(code)
    except BaseException as error:
        sys.stderr.write(described(error)["traceback"])
        return False
    return True


def main(argv: list[str]) -> int:
    """Warm up, say so, serve."""
    sys.argv = [""]
    sys.path[0] = ""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    interpreter, twin = Interpreter(), Twin()
    if not warm_up(interpreter, argv[1] if len(argv) > 1 else ""):
        return 1
    server = Server(interpreter, twin)
    server.listen(FOLDER / "interpreter.sock")
    if is_alone():
        (FOLDER / "alone").touch()
    (FOLDER / "ready").touch()
    server.serve_for_ever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
