"""Whether an engine server's data is there, or was there and is lost.

A server that has voted and forgets it may vote twice, and then the engine can lose what it has acknowledged. So one that
lost its data must never begin anew as the same member. etcd itself refuses that while the others answer; where all start
at the same time, as after a power cut, it cannot know. A mark beside the data says that there was some. Without data, the
mark keeps the server from being started, until its membership has been given up and a new one is there.

For the supervisor, so standard library only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_SUFFIX = ".born"


def has_data(data_dir: Path) -> bool:
    """Whether a server has written anything there: etcd begins with its log. What cannot be read counts as written."""
    try:
        return any(path.suffix == ".wal" for path in (data_dir / "member" / "wal").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def is_lost(data_dir: Path) -> bool:
    """Whether there was data, and is none."""
    return _mark(data_dir).exists() and not has_data(data_dir)


def remember(data_dir: Path) -> None:
    """Make the mark, if there is data. A full disk is no reason to fail: it is tried again."""
    mark = _mark(data_dir)
    with contextlib.suppress(OSError):
        if not mark.exists() and has_data(data_dir):
            mark.touch()


def forget(data_dir: Path) -> None:
    """From here on a server may begin there with nothing: it is a new member."""
    _mark(data_dir).unlink(missing_ok=True)


def _mark(data_dir: Path) -> Path:
    return data_dir.with_name(data_dir.name + _SUFFIX)
