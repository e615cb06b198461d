"""What a connection says when it breaks."""

from __future__ import annotations

from typing import Any

import pytest

from primordia.kit.breakage import broken_as_os_error


def writelines(method: Any) -> None:
    """As the transport's, with a method that is gone."""
    method()


def test_a_transport_that_breaks_while_something_is_sent_is_a_broken_connection() -> None:
    with pytest.raises(ConnectionResetError, match="broke"), broken_as_os_error():
        writelines(None)


def test_every_other_mistake_stays_what_it_is() -> None:
    with pytest.raises(TypeError), broken_as_os_error():
        len(3)  # type: ignore[arg-type]
