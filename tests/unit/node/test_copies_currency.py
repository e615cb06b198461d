"""Until when a copy is known to have been all there was: by the owner's word, whatever the wire did to it."""

from __future__ import annotations

from primordia.node.volumes.copies.currency import Currency
from primordia.testing.store import HandClock


async def test_a_word_counts_from_the_answer_that_it_gives_back() -> None:
    clock = HandClock()
    here = Currency(clock)
    stamp = here.stamp("v", "n1")
    begun_s = clock.boottime()
    await clock.advance(100.0)  # the word was under way for long
    here.confirm("v", "n1", 7, stamp)
    assert here.at_s("v", "n1", 7) == begun_s
    assert here.at_s("v", "n1", 8) == begun_s, "what came later has all of it"
    assert here.at_s("v", "n1", 6) is None
    assert here.at_s("v", "n2", 7) is None, "another owner's disk is another"
    assert here.at_s("w", "n1", 7) is None


async def test_a_word_about_another_answer_counts_nothing() -> None:
    clock = HandClock()
    here = Currency(clock)
    old = here.stamp("v", "n1")
    await clock.advance(1.0)
    new = here.stamp("v", "n1")
    here.confirm("v", "n1", 7, old)
    assert here.at_s("v", "n1", 7) is None
    here.confirm("v", "n2", 7, new)
    assert here.at_s("v", "n2", 7) is None
    Currency(clock).confirm("v", "n1", 7, new)
    here.confirm("v", "n1", 7, new)
    assert here.at_s("v", "n1", 7) == new
