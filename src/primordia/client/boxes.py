"""Boxes: microVMs claimed from a template, and what is done with them from Python. `sync_boxes.py` has the twins.

    async with client.box("py", ttl=600) as box:
        result = await box.run("ls -l")
        value = await box.run_code("x = 41; x + 1")
        kids = await box.fork(8)

A box lives until `kill`, the end of its `async with`, its ttl, or the end of what it was forked from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from primordia.client import interpreter
from primordia.client.box_files import Files
from primordia.client.box_results import Chunk, CodeResult, Output, Result
from primordia.client.errors import BoxGoneError, BrokenAnswerError, CommandTimeoutError, MissingPathError
from primordia.client.inside import Surroundings
from primordia.client.streams import ExecSession
from primordia.kit.errors import ConflictError, NotFoundError, PermanentError, PrimordiaError
from primordia.wire.boxes import BoxAnswer, ForkOutcome, ForkRequest
from primordia.wire.resources import Context, EnvVar

if TYPE_CHECKING:
    from primordia.client.aio import AsyncClient

Command = str | Sequence[str]
OnText = Callable[[str], object]


class ForkError(PermanentError):
    """Some children could not be made: `failures` says why, `children` are those that live."""

    reason = "ForkFailed"

    def __init__(self, failures: tuple[ForkOutcome, ...], children: list[Box]) -> None:
        words = sorted({each.message or each.reason for each in failures})
        count = len(failures) + len(children)
        super().__init__(f"{len(failures)} of {count} children could not be made: {' '.join(words)}", reason=failures[0].reason)
        self.failures = failures
        self.children = children


class Box:
    """A box or fork. Every method raises BoxGoneError once it is no more."""

    def __init__(self, client: AsyncClient, name: str, namespace: str, uid: str) -> None:
        self.client = client
        self.name = name
        self.namespace = namespace
        self.uid = uid
        self.warm = False
        """Whether it waited, ready, in a pool."""
        self.confirmed_ms = 0.0
        """From the node being asked until the guest had confirmed who it is."""
        self.files = Files(self)

    @classmethod
    def claimed(cls, client: AsyncClient, answer: BoxAnswer) -> Box:
        """The box of a claim's answer."""
        meta = answer.context.metadata
        box = cls(client, meta.name, meta.namespace, meta.uid)
        box.warm, box.confirmed_ms = answer.warm, answer.confirmed_ms
        return box

    @classmethod
    def forked(cls, client: AsyncClient, outcome: ForkOutcome, namespace: str) -> Box:
        """A child that a fork tells of."""
        box = cls(client, outcome.name, namespace, outcome.uid)
        box.confirmed_ms = outcome.confirmed_ms
        return box

    def __repr__(self) -> str:
        return f"<Box {self.namespace}/{self.name}>"

    @property
    def place(self) -> dict[str, Any]:
        """How the client's methods are told which context it is."""
        return {"kind": Context, "namespace": self.namespace}

    async def __aenter__(self) -> Box:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def context(self) -> Context:
        """Its object, as it is now."""
        async with self.translated():
            return await self.client.get(Context, self.name, namespace=self.namespace)

    async def kill(self) -> None:
        """End it and all that ends with it. One that has ended already is fine."""
        with contextlib.suppress(NotFoundError, ConflictError):
            await self.client.delete(Context, self.name, namespace=self.namespace, uid=self.uid)

    # ------------------------------------------------------------ commands

    async def run(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> Result:
        """Run a command (text: a line for /bin/sh) to its end. Raises CommandTimeoutError after `timeout` seconds.

        The callbacks are given the output as it comes; it is in the result all the same.
        """
        written: dict[Output, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        tell = {"stdout": on_stdout, "stderr": on_stderr}
        async with _within(timeout), self.session(command, stdin=bool(stdin), env=env, cwd=cwd, user=user) as session:
            feeder = asyncio.create_task(_feed(session, stdin), name="box/stdin")
            try:
                async for stream, data in session.output():
                    written[stream] += data
                    if (callback := tell[stream]) is not None:
                        callback(data.decode(errors="replace"))
                ended = await session.result()
            finally:
                feeder.cancel()
                await asyncio.wait([feeder])
        out, err = (bytes(written[each]).decode(errors="replace") for each in ("stdout", "stderr"))
        return Result(out, err + ended.error, ended.code)

    async def stream(
        self, command: Command, *, env: Mapping[str, str] | None = None, cwd: str = "", user: str = ""
    ) -> AsyncGenerator[Chunk, None]:
        """The output of a command as it comes. Leaving the loop ends the command."""
        async with self.session(command, env=env, cwd=cwd, user=user) as session:
            async for stream, data in session.output():
                yield Chunk(stream, data)

    @contextlib.asynccontextmanager
    async def session(
        self,
        command: Command,
        *,
        stdin: bool = False,
        tty: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
    ) -> AsyncIterator[ExecSession]:
        """A command with its streams open, for a conversation with it. Leaving the context ends it."""
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        surroundings = Surroundings(dict(env or {}), cwd, user)
        async with (
            self.translated(),
            self.client.exec_session(
                self.name, words, stdin=stdin, tty=tty, surroundings=surroundings, **self.place
            ) as session,
        ):
            yield session

    async def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> CodeResult:
        """Run Python code in the box's warmed interpreter, which keeps its variables from call to call.

        Raises MissingPathError where the template's warm-up was no `python`, CommandTimeoutError after `timeout` seconds: the
        code is interrupted then, and its variables stay.
        """
        request = interpreter.request(code, env=env)
        try:
            async with (
                _within(timeout),
                self.translated(),
                self.client.connect_socket(self.name, interpreter.SOCKET, **self.place) as stream,
            ):
                return await interpreter.converse(stream, request, {"stdout": on_stdout, "stderr": on_stderr})
        except MissingPathError as error:
            raise MissingPathError(
                f"Box {self.name} has no interpreter.", remedy="Claim one from a template with a `python` warm-up."
            ) from error

    # ------------------------------------------------------------ forks

    async def fork(
        self,
        count: int = 1,
        *,
        ttl: float = 0.0,
        keep: bool = False,
        inherit_secrets: bool = False,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> list[Box]:
        """`count` children with this memory and these files, each somebody of its own.

        They end with their parent unless `keep`, and after `ttl` seconds unless 0. `command` is started in each. Raises
        ForkError, which has those that live, when some could not be made; CapacityError when none may be.
        """
        wanted = ForkRequest(
            count=count,
            ttl_seconds=ttl,
            lifetime="keep" if keep else "parent",
            inherit_secrets=inherit_secrets,
            command=tuple(command),
            env=tuple(EnvVar(name=name, value=value) for name, value in (env or {}).items()),
        )
        async with self.translated():
            return await self.client.fork(self.name, wanted, **self.place)

    @contextlib.asynccontextmanager
    async def translated(self) -> AsyncIterator[None]:
        """What fails because the box is no more says so."""
        try:
            yield
        except MissingPathError:
            raise
        except NotFoundError as error:
            raise self._gone() from error
        except BrokenAnswerError as error:
            if not await self._is_there():
                raise self._gone() from error
            raise

    async def _is_there(self) -> bool:
        with contextlib.suppress(PrimordiaError):
            found = await self.client.list(Context, namespace=self.namespace, fields=f"metadata.name={self.name}")
            return any(each.metadata.uid == self.uid and not each.metadata.deletion_timestamp for each in found.items)
        return True  # nobody knows

    def _gone(self) -> BoxGoneError:
        return BoxGoneError(
            f"Box {self.namespace}/{self.name} is no more.", remedy="It was killed, its time was over, or its parent ended."
        )


class Claiming(Awaitable[Box], AbstractAsyncContextManager[Box]):
    """A claim that has not been made yet: await it for the box, or `async with` it to have it killed at the end."""

    def __init__(self, claim: Callable[[], Awaitable[Box]]) -> None:
        self._claim = claim
        self._box: Box | None = None

    def __await__(self) -> Generator[Any, None, Box]:
        return self._claim().__await__()

    async def __aenter__(self) -> Box:
        self._box = await self._claim()
        return self._box

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._box is not None:
            await self._box.kill()


@contextlib.asynccontextmanager
async def _within(timeout: float | None) -> AsyncIterator[None]:
    """Around a whole command, so that leaving early ends it. Raises CommandTimeoutError."""
    try:
        async with asyncio.timeout(timeout) as scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise CommandTimeoutError(
            f"It did not end within {timeout:g} s, and was ended.", remedy="Give it more time."
        ) from error


async def _feed(session: ExecSession, stdin: bytes | str) -> None:
    if stdin:
        await session.write(stdin.encode() if isinstance(stdin, str) else stdin)
        await session.end_input()
