"""What a node refuses to fork, and in which words."""

from __future__ import annotations

from primordia.domain.forklimits import Ask, Limits, Use, charge_bytes, refusal_of
from primordia.domain.placement import VMM_OVERHEAD_BYTES

MI = 2**20
LIMITS = Limits(most=100, most_of_root=10, deepest=3, memory_bytes=10 * (128 * MI + VMM_OVERHEAD_BYTES))
NOTHING = Use(0, 0, 0)


def ask(count: int = 1, depth: int = 1) -> Ask:
    return Ask(count, depth, 128 * MI)


def test_what_fits_is_taken_to_the_last() -> None:
    assert refusal_of(ask(10), NOTHING, LIMITS) is None


def test_each_limit_names_its_numbers() -> None:
    cases = [
        (ask(depth=4), NOTHING, "ForkTooDeep", "3"),
        (ask(3), Use(8, 8, 0), "TooManyForks", "limit of 10"),
        (ask(3), Use(98, 0, 0), "TooManyForks", "limit of 100"),
        (ask(2), Use(1, 1, LIMITS.memory_bytes - charge_bytes(128 * MI)), "InsufficientMemory", "352 MiB"),
    ]
    for wanted, use, reason, words in cases:
        refusal = refusal_of(wanted, use, LIMITS)
        assert refusal is not None
        assert refusal.reason == reason
        assert words in refusal.message.replace(".0 MiB", " MiB")
        assert refusal.remedy


def test_one_that_waits_is_charged_a_part() -> None:
    assert 0 < charge_bytes(128 * MI, paused=True) < charge_bytes(128 * MI) // 2
