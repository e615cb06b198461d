"""A template that is not what was written is put aside once, whoever asks for it at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from primordia.node.forks.store import MEMORY, TemplateStore

KEY = {"image": "busybox"}


async def test_who_asks_at_once_for_a_damaged_template_puts_it_aside_once(tmp_path: Path) -> None:
    bad: list[str] = []
    store = TemplateStore(tmp_path, lambda key, words: bad.append(words))
    store.open()
    folder = store.new_folder("born")
    (folder / MEMORY).write_bytes(b"as it was")
    stored = await store.publish(folder, KEY)
    await store.distrust(stored, "a fork of it failed")
    (stored.folder / MEMORY).write_bytes(b"as it is!")
    assert await asyncio.gather(*(store.find(KEY) for _ in range(3))) == [None] * 3
    assert len(bad) == 1
    assert [path.name.partition(".quarantined")[0] for path in tmp_path.iterdir()] == [stored.digest]
