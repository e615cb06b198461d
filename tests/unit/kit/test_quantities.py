"""Quantities are written as people write them, and mean the same bytes."""

from __future__ import annotations

import pytest

from primordia.kit.units import bytes_quantity, parse_bytes


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (1024, "1Ki"), (134217728, "128Mi"), (1536 * 2**20, "1536Mi"), (2**40, "1Ti")]
)
def test_bytes_are_a_quantity_and_back(count: int, text: str) -> None:
    assert bytes_quantity(count) == text
    assert parse_bytes(text) == count
