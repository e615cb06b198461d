"""What holds for every test run."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Iterator

import hypothesis
import pytest

LONGEST_TEST_S = 900

# A shell that starts a run in the background has it ignore SIGINT, which every program below would inherit: then nothing that
# a test interrupts would ever end.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# How long an example takes says more about what else the machine does than about the code: no test is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """No test may hang the run: one that waits for what never comes fails, and shows where it waits."""

    def ring(number: int, frame: object) -> None:
        with contextlib.suppress(RuntimeError):  # no loop runs
            for task in asyncio.all_tasks():
                task.print_stack()
        raise TimeoutError(f"{item.nodeid} did not end within {LONGEST_TEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_TEST_S)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Collect garbage now, and not while the summary is written.

    CPython 3.11 parses source to print tracebacks; garbage whose finalizer prints one while pytest parses source for its
    own summary makes the interpreter raise "AST constructor recursion depth mismatch" after every test has passed.
    """
    gc.collect()
    gc.disable()
