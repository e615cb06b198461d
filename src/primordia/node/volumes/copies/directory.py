"""Who owns which volume, who is to hold copies of it, and where those nodes are: what this node has been told last."""

from __future__ import annotations

from collections.abc import Callable

from primordia.domain.copying import Site
from primordia.kit.errors import ConflictError
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.wire.meta import LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Node, Volume

_BY_UID = "uid"


class Directory:
    """As `informers`, which somebody runs, have it; `node` is this node's name."""

    def __init__(self, informers: Informers, node: str) -> None:
        self.node = node
        self._volumes = informers.of(Volume)
        self._nodes = informers.of(Node)
        self._volumes.index(_BY_UID, lambda volume: volume.metadata.uid)

    def find(self, uid: str) -> Volume | None:
        """The volume; None when there is none of that uid, or we have not heard of it yet."""
        found = self._volumes.by_index(_BY_UID, uid)
        return found[0] if found else None

    def volume(self, uid: str) -> Volume:
        """The volume. ConflictError (UnknownVolume): who asks has perhaps heard of it earlier than we."""
        found = self.find(uid)
        if found is None:
            raise ConflictError(f"Node {self.node} knows no volume {uid[:80]}.", reason="UnknownVolume")
        return found

    def all(self) -> tuple[Volume, ...]:
        """Every volume of the soup."""
        return self._volumes.items()

    def site(self, node: str) -> Site:
        """A node's segment and rack; empty words where it does not know them."""
        known = self._nodes.get(node)
        labels = known.metadata.labels if known is not None else {}
        return labels.get(LABEL_SEGMENT, ""), labels.get(LABEL_RACK, "")

    def follow(self, listener: Callable[[Volume, bool], None]) -> None:
        """Be told of each volume that is there, appears or changes (True), or is gone (False)."""

        def on_change(change: Change[Volume]) -> None:
            about = change.new or change.old
            if about is not None:
                listener(about, change.new is not None)

        self._volumes.subscribe(on_change)
