"""Where lifeforms with certain labels are, so that `colocateWith` costs what it finds and not what there is."""

from __future__ import annotations

from collections.abc import Mapping

from primordia.wire.resources import Lifeform

_Bucket = tuple[str, str, str]


class Company:
    """The placed lifeforms by namespace and label. Uids find them again."""

    def __init__(self) -> None:
        self._buckets: dict[_Bucket, dict[str, tuple[str, Mapping[str, str]]]] = {}

    def replace(self, old: Lifeform | None, new: Lifeform | None) -> None:
        """One lifeform has changed, come (no `old`) or gone (no `new`)."""
        if old is not None:
            for bucket in _buckets_of(old):
                held = self._buckets.get(bucket, {})
                held.pop(old.metadata.uid, None)
                if not held:
                    self._buckets.pop(bucket, None)
        if new is not None and new.status.node:
            for bucket in _buckets_of(new):
                self._buckets.setdefault(bucket, {})[new.metadata.uid] = (new.status.node, new.metadata.labels)

    def nodes(self, namespace: str, labels: Mapping[str, str], uid: str) -> frozenset[str]:
        """The nodes with a lifeform that has all these labels, other than the lifeform `uid` itself."""
        keys = [(namespace, key, value) for key, value in labels.items()] or [(namespace, "", "")]
        fewest = min((self._buckets.get(key, {}) for key in keys), key=len)
        return frozenset(node for other, (node, theirs) in fewest.items() if other != uid and labels.items() <= theirs.items())


def _buckets_of(lifeform: Lifeform) -> list[_Bucket]:
    namespace = lifeform.metadata.namespace
    return [(namespace, "", ""), *((namespace, key, value) for key, value in lifeform.metadata.labels.items())]
