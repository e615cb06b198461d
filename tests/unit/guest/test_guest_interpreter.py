"""The warmed interpreter as a process of this host, in a folder of its own, with a boot id that the test changes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from primordia.host.agent_build import find_interpreter

DEADLINE_S = 60.0
Message = dict[str, Any]


class Connection:
    """A client of the interpreter."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(str(path))

    def ask(self, **request: Any) -> None:
        body = json.dumps({"id": 1, **request}).encode()
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def hear(self) -> Message:
        message: Message = json.loads(self._read(int.from_bytes(self._read(4), "big")))
        assert message.pop("id") == 1
        return message

    def hear_line(self, line: str) -> None:
        """What is printed comes in one piece or in several."""
        heard = ""
        while len(heard) < len(line):
            heard += self.hear()["stdout"]
        assert heard == line

    def run(self, code: str, **more: Any) -> tuple[Message, str, str]:
        """The last message, and all of standard output and error."""
        return self.answer(code=code, **more)

    def answer(self, **request: Any) -> tuple[Message, str, str]:
        """The same for any request."""
        self.ask(**request)
        out = err = ""
        while not (message := self.hear()).get("done"):
            out += message.get("stdout", "")
            err += message.get("stderr", "")
        return message, out, err


class Warmed:
    """A running interpreter."""

    def __init__(self, folder: Path, warm_up: str) -> None:
        self.folder = folder
        self.boot_id = folder / "boot_id"
        self.boot_id.write_text("first\n")
        shutil.copy(find_interpreter(), folder / "interpreter.py")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "interpreter.py"), warm_up],
                stdout=log,
                stderr=log,
                env={**os.environ, "PRIMORDIA_BOOT_ID_FILE": str(self.boot_id)},
            )

    def connect(self) -> Connection:
        return Connection(self.folder / "interpreter.sock")


def eventually(condition: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, why
        time.sleep(0.01)


@contextlib.contextmanager
def warmed(folder: Path, warm_up: str = "import random; word = 'warm'") -> Iterator[Warmed]:
    made = Warmed(folder, warm_up)
    try:
        eventually((folder / "ready").exists, "the interpreter is not ready")
        yield made
    finally:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def interpreter(tmp_path: Path) -> Iterator[Warmed]:
    with warmed(tmp_path) as made:
        yield made


@pytest.fixture
def client(interpreter: Warmed) -> Iterator[Connection]:
    connection = interpreter.connect()
    yield connection
    connection.socket.close()


def test_a_last_expression_is_the_result_and_state_lasts(interpreter: Warmed, client: Connection) -> None:
    assert client.run("word") == ({"done": True, "result": "'warm'", "error": None}, "", "")
    assert client.run("x = 41\ndef f():\n    return x + 1\n")[0]["result"] is None
    other = interpreter.connect()
    assert other.run("f()")[0]["result"] == "42"
    assert client.run("_ + 1; __name__")[0]["result"] == "'__main__'"
    other.socket.close()


def test_errors_tell_of_the_code_alone(client: Connection) -> None:
    client.run("def g(n):\n    return 1 / n\n")
    error = client.run("g(0)")[0]["error"]
    assert (error["type"], error["message"]) == ("ZeroDivisionError", "division by zero")
    assert "interpreter.py" not in error["traceback"]
    assert "return 1 / n" in error["traceback"]
    error = client.run("1 +")[0]["error"]
    assert error["type"] == "SyntaxError"
    assert "ast.py" not in error["traceback"]
    assert client.run("raise SystemExit(3)")[0]["error"]["type"] == "SystemExit"
    bad = client.run("class B:\n    def __repr__(self):\n        raise ValueError('no')\nB()")[0]
    assert bad["error"]["type"] == "ValueError"
    assert client.run("1")[0]["result"] == "1"


def test_output_comes_as_it_is_written_by_whomever(interpreter: Warmed, client: Connection) -> None:
    go = interpreter.folder / "go"
    client.ask(code=f"import os, time\nprint('one')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('two')")
    client.hear_line("one\n")
    go.touch()
    client.hear_line("two\n")
    assert client.hear()["done"]
    code = "import subprocess, sys\nsubprocess.run(['sh', '-c', 'echo out; echo err >&2'])\nprint('é', end='')\n"
    code += "print('x', file=sys.stderr)"
    assert client.run(code)[1:] == ("out\né", "err\nx\n")
    assert client.run("print('y' * 3_000_000)")[1] == "y" * 3_000_000 + "\n"


def test_output_in_the_background_goes_to_the_log(interpreter: Warmed, client: Connection) -> None:
    message, out, _ = client.run(
        "import subprocess\np = subprocess.Popen(['sh', '-c', 'read x; echo later'], stdin=-1)\nprint('now')"
    )
    assert (message["error"], out) == (None, "now\n")
    assert client.run("p.communicate(b'go\\n'); 5")[:2] == ({"done": True, "result": "5", "error": None}, "")
    eventually(lambda: "later\n" in interpreter.log.read_text(), "the log has not got it")


def test_a_time_limit_and_an_environment_hold_for_one_request(client: Connection) -> None:
    error = client.run("import time\ntry:\n    time.sleep(60)\nexcept Exception:\n    pass", timeout=0.05)[0]["error"]
    assert (error["type"], error["message"]) == ("TimeoutError", "the code did not end within 0.05 s")
    assert client.run("import os; os.environ['B'] = '2'; os.environ['A']", env={"A": "1"})[0]["result"] == "'1'"
    assert client.run("(os.environ.get('A'), os.environ['B'])")[0]["result"] == "(None, '2')"


def test_a_client_that_goes_interrupts_its_own_request_only(interpreter: Warmed, client: Connection) -> None:
    leaver = interpreter.connect()
    leaver.ask(
        code="gone = False\ntry:\n    print('on'); import time; time.sleep(3600)\nexcept KeyboardInterrupt:\n    gone = True"
    )
    leaver.hear_line("on\n")
    leaver.socket.shutdown(socket.SHUT_WR)  # it has said all, and still listens
    client.ask(code="gone")
    leaver.socket.close()
    assert client.hear() == {"done": True, "result": "True", "error": None}


def test_a_fork_draws_what_no_other_draws(interpreter: Warmed, client: Connection) -> None:
    draw = "random.seed(7); random.random()"
    same = client.run(draw)[0]["result"]
    assert client.run(draw)[0]["result"] == same
    client.run("random.seed(7)")
    interpreter.boot_id.write_text("second\n")
    assert client.run("random.random()")[0]["result"] != same
    assert client.run(draw)[0]["result"] == same  # once for each fork, not for each request
    client.run("random.seed(7)")
    client.ask(reseed=True)
    assert client.hear() == {"done": True, "result": None, "error": None}
    assert client.run("random.random()")[0]["result"] != same


def test_a_rehearsal_leaves_nothing_and_seeds_anew(interpreter: Warmed, client: Connection) -> None:
    """It is run by a fork that waits, whose boot id is new already, and again new when it is claimed."""
    assert (interpreter.folder / "alone").exists()
    client.run("import gc, linecache; found = sorted(globals()), len(linecache.cache)")
    draws = []
    for boot_id in ("waiting\n", "claimed\n"):
        interpreter.boot_id.write_text(boot_id)
        for _ in range(2):
            last, out, err = client.answer(rehearse=True)
            assert (last, err) == ({"done": True, "result": "['0.143']", "error": None}, "")
            assert json.loads(out)["error"] == "KeyError('none')"
        draws.append(client.run("random.random()")[0]["result"])
    assert draws[0] != draws[1]
    after = client.run("[name for name in globals() if name not in found[0]], gc.isenabled(), len(linecache.cache) - found[1]")
    assert after[0]["result"] == "(['found', '_'], True, 3)"  # what the two draws and this very request left


@pytest.mark.parametrize(
    "warm_up",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *seen: None)\nsignal.alarm(99)",
        "import signal\nsignal.setitimer(signal.ITIMER_PROF, 99)",
        "import subprocess\nchild = subprocess.Popen(['true'])",
        "import gc\ngc.callbacks.append(lambda *seen: None)",
        "import sys\nsys.setprofile(lambda *seen: None)",
    ],
)
def test_a_warm_up_that_left_something_going_is_not_alone(tmp_path: Path, warm_up: str) -> None:
    with warmed(tmp_path, warm_up):
        assert not (tmp_path / "alone").exists()


def test_code_that_runs_while_its_guest_is_forked_goes_on_in_the_child(interpreter: Warmed) -> None:
    parent = interpreter.connect()
    parent.ask(
        code="random.seed(7); first = random.random(); random.seed(7); print('on')\nimport os, time\n"
        f"while not os.path.exists({str(interpreter.folder / 'go')!r}): time.sleep(0.01)\n"
        "print('done'); second = random.random()"
    )
    parent.hear_line("on\n")
    interpreter.boot_id.write_text("child\n")
    parent.socket.close()  # the child's host is another
    child = interpreter.connect()
    child.ask(reseed=True)
    assert child.hear()["done"]
    (interpreter.folder / "go").touch()
    assert child.run("first == second")[0]["result"] == "False"
    assert "done\n" in interpreter.log.read_text()
    child.socket.close()


def test_frames_that_make_no_sense_end_their_connection_alone(interpreter: Warmed, client: Connection) -> None:
    for junk in (b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x03no!", os.urandom(300)):
        bad = interpreter.connect()
        bad.socket.sendall(junk)
        bad.socket.close()
    assert client.run("word")[0]["result"] == "'warm'"


def test_a_warm_up_that_fails_says_why_and_is_never_ready(tmp_path: Path) -> None:
    made = Warmed(tmp_path, "import no_such_module")
    assert made.process.wait(DEADLINE_S) == 1
    assert "No module named 'no_such_module'" in made.log.read_text()
    assert not (tmp_path / "ready").exists()
