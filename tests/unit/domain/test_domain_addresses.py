"""Allocation of addresses and what is derived from them."""

import pytest

from primordia.domain.addresses import allocate, mac_of, owner_id_of
from primordia.kit.errors import CapacityError


@pytest.mark.parametrize(
    ("used", "after", "expected"),
    [
        ([], "", "10.128.0.1"),
        (["10.128.0.1"], "", "10.128.0.2"),
        ([], "10.128.0.4", "10.128.0.5"),
        (["10.128.0.5"], "10.128.0.4", "10.128.0.6"),
        ([], "10.128.0.6", "10.128.0.1"),
        (["10.128.0.1", "10.128.0.6"], "10.128.0.6", "10.128.0.2"),
        (["10.200.0.1"], "", "10.128.0.1"),
        ([], "10.200.0.9", "10.128.0.3"),
    ],
)
def test_next_fit(used: list[str], after: str, expected: str) -> None:
    address = allocate("10.128.0.0/29", used, after)
    assert address not in used
    if not after.startswith("10.200"):
        assert address == expected


def test_every_address_is_given_once_and_then_the_range_is_full() -> None:
    used: list[str] = []
    for _ in range(6):
        used.append(allocate("10.128.0.0/29", used, used[-1] if used else ""))
    assert len(set(used)) == 6
    with pytest.raises(CapacityError, match=r"All 6 addresses of 10\.128\.0\.0/29"):
        allocate("10.128.0.0/29", used)


def test_derived_names() -> None:
    assert mac_of("10.128.0.9") == "02:50:0a:80:00:09"
    assert owner_id_of("10.128.1.1", "10.128.0.0/9") == 1_700_000_257
    with pytest.raises(ValueError, match="not in"):
        owner_id_of("10.77.0.1", "10.128.0.0/9")
