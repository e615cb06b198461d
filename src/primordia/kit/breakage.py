"""A connection that breaks while something is sent, as an OSError also where the standard library says it in other words.

`writelines` of a transport that was closed since the last answer calls a method that is gone by then (asyncio of Python 3.12
and 3.13, `_SelectorSocketTransport`): its TypeError ended clients that were ready for every error of a connection.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator


@contextlib.contextmanager
def broken_as_os_error() -> Iterator[None]:
    """Raises ConnectionResetError instead of such a TypeError; every other one is the caller's."""
    try:
        yield
    except TypeError as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        if last.name != "writelines":
            raise
        raise ConnectionResetError("The connection broke while something was sent.") from error
