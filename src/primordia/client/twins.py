"""Asynchronous methods made into ones that are not: each is run to its end on a loop in a thread of its own.

Nothing is written twice: `call`, `iterate` and `enter` turn a method into its twin, with its types. The twin's class has
the `asynchronous` object and the `loop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop in a daemon thread, until closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="primordia-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; Ctrl-C cancels it there and is raised here."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._loop.is_closed()

    def close(self) -> None:
        """End the loop and its thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def call(method: Callable[Concatenate[A, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """The twin of a coroutine method."""

    @functools.wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = self.loop.run(method(self.asynchronous, *args, **kwargs))
        return found

    return twin


def iterate(method: Callable[Concatenate[A, P], AsyncGenerator[T, None]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The twin of an asynchronous generator."""

    @functools.wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        source = method(self.asynchronous, *args, **kwargs)

        async def advance() -> tuple[T, ...]:
            async for item in source:
                return (item,)
            return ()

        try:
            while found := self.loop.run(advance()):
                yield found[0]
        finally:
            self.loop.run(source.aclose())

    return twin


def enter(
    method: Callable[Concatenate[A, P], AbstractAsyncContextManager[T]],
) -> Callable[Concatenate[Any, P], AbstractContextManager[T]]:
    """The twin of a method that gives an asynchronous context manager."""

    @contextlib.contextmanager
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        manager = method(self.asynchronous, *args, **kwargs)
        value = self.loop.run(manager.__aenter__())
        try:
            yield value
        finally:
            self.loop.run(manager.__aexit__(None, None, None))

    return functools.wraps(method)(twin)
