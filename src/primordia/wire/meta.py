"""What every resource shares: metadata, conditions, lists and the Status answer, shaped as Kubernetes shapes them."""

from __future__ import annotations

from typing import Any

import msgspec

GROUP = "primordia.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

LABEL_SEGMENT = "topology.primordia.dev/segment"
LABEL_RACK = "topology.primordia.dev/rack"
LABEL_NODE = "topology.primordia.dev/node"
LABEL_LIFEFORM = "primordia.dev/lifeform"
LABEL_CONTEXT = "primordia.dev/context"
LABEL_PARENT = "primordia.dev/parent"
LABEL_TEMPLATE = "primordia.dev/template"
LABEL_PLAIN = "primordia.dev/plain"
"""On a Template that was made on the way to a box of an image: "true"."""
ANNOTATION_MOVE = "primordia.dev/move-to"
"""On a Lifeform, the wish that it go to `node/NAME`, `rack/NAME`, `segment/NAME` or `elsewhere`; taken away, it stays."""

ANNOTATION_ALLOW_LOSS = "primordia.dev/allow-loss"
"""On a Lifeform: the epoch that it may leave with a loss, once (`primordia failover NAME --allow-loss`)."""
ANNOTATION_FAILOVER_ALL = "primordia.dev/failover-all"
"""On the Soup: when the hold of failovers was lifted (`primordia failover --all`), RFC 3339; it counts for five minutes."""


class Wire(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True, kw_only=True, frozen=True, gc=False):
    """The base of everything that crosses the API. Unknown fields are refused by name.

    The garbage collector passes them by (`gc=False`): what is frozen and read from JSON makes no cycles, and a cache of a
    hundred thousand would be walked through again and again.
    """


def always(value: Any, name: str | None = None) -> Any:
    """A field with a default that is written out all the same, for readers that do not know our defaults."""
    return msgspec.field(default_factory=lambda: value, name=name)


class OwnerReference(Wire, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Wire, frozen=True, kw_only=True):
    """`generation` counts changes of the spec; `resource_version` is the store's revision of the last change."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()
    generate_name: str = ""
    managed_fields: Any = None
    self_link: str = ""


class Condition(Wire, frozen=True, kw_only=True):
    """`status` is True, False or Unknown; `last_transition_time` changes only with it."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int = 0


class ListMeta(Wire, frozen=True, kw_only=True):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class StatusCause(Wire, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(Wire, frozen=True, kw_only=True):
    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: tuple[StatusCause, ...] = ()
    retry_after_seconds: int = 0


class Status(Wire, frozen=True, kw_only=True):
    """The body of every failed request, and of some deletes."""

    api_version: str = always("v1", name="apiVersion")
    kind: str = always("Status")
    metadata: ListMeta = ListMeta()
    status: str = always("Failure")
    message: str = ""
    reason: str = ""
    details: StatusDetails | None = None
    code: int = always(500)
