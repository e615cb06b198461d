"""What was said of a node's earlier life goes; what has been said of its newest death meanwhile stays."""

from __future__ import annotations

import msgspec

from primordia.control.lifebook import LifeBook, Page
from primordia.control.remains import Remains
from primordia.drivers.store_memory import MemoryStore
from primordia.kit.clock import SystemClock
from primordia.ports.store import Put
from primordia.registry.events import EventRecorder
from primordia.registry.informers import Informers
from primordia.registry.lives import Death, Held, Holding, holding_key
from primordia.registry.registry import Registry

OLD, NEW = Holding(3, {"u": Held(1, 4, "r")}), Holding(9, {"u": Held(2, 7, "s")})


async def test_a_page_that_is_behind_takes_nothing_away_that_is_newer() -> None:
    clock = SystemClock()
    store = MemoryStore(clock)
    registry = Registry(store, clock)
    book = LifeBook(store, clock)
    page = Page("n2", 0.0, life=9, death=Death(9, "controllers"), holdings={"n1": OLD, "n3": OLD})
    book._pages["n2"] = page
    remains = Remains(registry, Informers(registry), book, EventRecorder(registry, "test", "n1"))
    for node, holding in (("n1", OLD), ("n3", NEW)):
        await store.txn([], [Put(holding_key("n2", node), msgspec.json.encode(holding))])
    await remains.forget_holdings()
    assert await store.get(holding_key("n2", "n1")) is None
    assert await store.get(holding_key("n2", "n3")) is not None, "the page only did not know of it yet"
    await store.close()
