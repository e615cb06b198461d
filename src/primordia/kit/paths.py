"""Where files live: one cache for the machine, one state and one run folder for each soup on it.

The cache may be deleted at any time and is made again. The state folder holds what must survive a reboot. The run folder
holds sockets and pid files and is empty after a boot.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from primordia.kit.errors import InvalidError

_SOUP = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


def is_soup_name(text: str) -> bool:
    """Up to 40 of a-z, 0-9 and -, with a letter or digit at both ends."""
    return _SOUP.fullmatch(text) is not None


def cache_dir() -> Path:
    """Downloads, unpacked programs, images: PRIMORDIA_CACHE, else /var/cache/primordia."""
    return Path(os.environ.get("PRIMORDIA_CACHE", "/var/cache/primordia"))


@dataclass(frozen=True)
class SoupPaths:
    """The folders of one soup on this machine."""

    state: Path
    run: Path

    @classmethod
    def of(cls, soup: str = "default") -> SoupPaths:
        """PRIMORDIA_STATE and PRIMORDIA_RUN override /var/lib/primordia and /run/primordia.

        InvalidError: no name for a soup. It becomes part of names of folders, cgroups and network namespaces, and nothing that
        carries it may lie, or be deleted, anywhere else.
        """
        if not is_soup_name(soup):
            raise InvalidError(
                "--soup",
                f"{soup[:80]!r} is no name for a soup: at most 40 of a-z, 0-9 and -, with a letter or digit at both ends.",
            )
        state = Path(os.environ.get("PRIMORDIA_STATE", "/var/lib/primordia"))
        run = Path(os.environ.get("PRIMORDIA_RUN", "/run/primordia"))
        return cls(state / soup, run / soup)

    def node(self, name: str) -> NodePaths:
        """The folders of one node of the soup."""
        return NodePaths(self.state / "nodes" / name, self.run / name)


@dataclass(frozen=True)
class NodePaths:
    """The folders of one node. A real machine has one; a local soup has one for each of its nodes."""

    state: Path
    run: Path

    @property
    def config(self) -> Path:
        """The node's settings, written by `up` or `join`."""
        return self.state / "node.json"

    @property
    def pki(self) -> Path:
        """ca.crt, node.crt, node.key."""
        return self.state / "pki"

    @property
    def engine(self) -> Path:
        """The engine server's data, on engine nodes."""
        return self.state / "engine"

    @property
    def logs(self) -> Path:
        """supervisor.log, daemon.log, engine.log."""
        return self.state / "log"

    @property
    def templates(self) -> Path:
        """Frozen microVMs that others are forked from."""
        return self.state / "templates"

    @property
    def pool(self) -> Path:
        """Disks of forks that no context has taken over. Nothing in it outlives a daemon."""
        return self.state / "pool"

    @property
    def volumes(self) -> Path:
        """Where the node's pool is mounted: its volumes and the copies that it holds."""
        return self.state / "volumes"

    @property
    def pool_file(self) -> Path:
        """The loop file behind it, where it is not a device."""
        return self.state / "pool.btrfs"

    @property
    def intents(self) -> Path:
        """What was about to be done with volumes, for the next daemon."""
        return self.state / "intents"

    @property
    def kept(self) -> Path:
        """Objects that this node keeps, for an engine that would have to begin anew."""
        return self.state / "objects"

    @property
    def rebuild(self) -> Path:
        """Objects that this node's daemon is to write into an engine that begins anew; gone when it has."""
        return self.state / "rebuild.json"

    @property
    def forks(self) -> Path:
        """Images of running contexts, frozen for their children; each goes with the last of them."""
        return self.state / "forks"

    @property
    def suspended(self) -> Path:
        """Images of contexts whose memory was kept when they were suspended; each is used once."""
        return self.state / "suspended"

    def context_state(self, uid: str) -> Path:
        """A context's durable record and scratch disk."""
        return self.state / "contexts" / uid

    def context_run(self, uid: str) -> Path:
        """A context's sockets and pid file."""
        return self.run / "c" / uid
