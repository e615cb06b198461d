"""Contexts without a lifeform: boxes and forks. Their node makes, times and ends them; little is left to do for the soup.

What they hold is counted, so that no lifeform is promised it. A child that is to end with its parent is deleted when the
parent is (its node does the same, sooner; this is for the node that was away). One whose node has fallen silent, or left,
is shown as Unknown: it may run there, or not, and is never started elsewhere. Those of a dead one are ended by `remains.py`.
"""

from __future__ import annotations

import logging
from typing import Literal

import msgspec

from primordia.control.blueprint import held_by
from primordia.control.ledger import Ledger
from primordia.control.queue import WorkQueue
from primordia.kit.errors import NotFoundError
from primordia.registry.codec import Change
from primordia.registry.informers import Informers
from primordia.registry.registry import Registry
from primordia.wire.conditions import is_silent
from primordia.wire.resources import Context, Node

log = logging.getLogger(__name__)

Key = tuple[str, str]
Step = Literal["leave", "delete", "unknown"]

BY_PARENT = "parent"
BY_NODE = "box-node"
_OVER = ("Succeeded", "Failed")


def is_box(context: Context) -> bool:
    """Whether it is of no lifeform."""
    return not context.spec.lifeform_uid


def step_for(box: Context, parent: Context | None, node: Node | None) -> Step:
    """What is to be done about a box or fork, as far as the caches know. Pure."""
    if box.metadata.deletion_timestamp is not None:
        return "leave"
    if box.spec.parent_uid and box.spec.lifetime == "parent" and has_ended(parent, box.spec.parent_uid):
        return "delete"
    silent = node is None or is_silent(node.status.conditions)
    return "unknown" if silent and box.status.phase not in ("Unknown", *_OVER) else "leave"


def has_ended(parent: Context | None, uid: str) -> bool:
    """Whether a parent is deleted, or gone: what has its name may be another one."""
    return parent is None or parent.metadata.uid != uid or parent.metadata.deletion_timestamp is not None


class BoxController:
    """Looks at boxes and forks, by `queue`. `ledger` is told of what each holds."""

    def __init__(self, registry: Registry, informers: Informers, ledger: Ledger, queue: WorkQueue[Key]) -> None:
        self.queue = queue
        self._registry = registry
        self._ledger = ledger
        self._contexts = informers.of(Context)
        self._contexts.index(BY_PARENT, lambda context: context.spec.parent_uid or None)
        self._contexts.index(BY_NODE, lambda context: context.spec.node if is_box(context) else None)
        self._nodes = informers.of(Node)

    def recall(self) -> None:
        """Count and look at all there are: a leader begins."""
        for context in self._contexts.items():
            if is_box(context):
                self._count(context)
                self.queue.add(_key(context))

    def on_context(self, change: Change[Context]) -> None:
        """A context of any kind has changed."""
        about = change.new or change.old
        if about is None:
            return
        if change.new is None or change.new.metadata.deletion_timestamp is not None:
            for child in self._contexts.by_index(BY_PARENT, about.metadata.uid):
                self.queue.add(_key(child))
        if not is_box(about):
            return
        if change.new is None:
            self._ledger.withdraw(about.metadata.uid)
        else:
            self._count(change.new)
            self.queue.add(_key(change.new))

    def on_node(self, change: Change[Node]) -> None:
        """A node has changed; one that fell silent or went concerns all that it runs."""
        about = change.new or change.old
        if about is not None and (change.new is None or is_silent(change.new.status.conditions)):
            for box in self._contexts.by_index(BY_NODE, about.metadata.name):
                self.queue.add(_key(box))

    async def look(self, key: Key) -> None:
        """Do what there is to do about one. Raises ConflictError when the caches are behind, StoreUnavailableError."""
        namespace, name = key
        box = self._contexts.get(name, namespace)
        if box is None or not is_box(box):
            return
        parent = self._contexts.get(box.spec.parent, namespace) if box.spec.parent else None
        match step_for(box, parent, self._nodes.get(box.spec.node)):
            case "delete":
                await self._delete(box)
            case "unknown":
                why = f"Node {box.spec.node} is silent: it may run there, or not."
                status = msgspec.structs.replace(box.status, phase="Unknown", ready=False, reason="NodeUnknown", message=why)
                changed = msgspec.structs.replace(box, status=status)
                self._contexts.learn(await self._registry.amend(box, changed, status=True))

    async def _delete(self, box: Context) -> None:
        """The caches may be late, so the registry is asked whether the parent has really ended."""
        meta = box.metadata
        try:
            parent: Context | None = await self._registry.get(Context, box.spec.parent, meta.namespace)
        except NotFoundError:
            parent = None
        if not has_ended(parent, box.spec.parent_uid):
            return
        log.info("%s/%s: deleted, for its parent %s has ended", meta.namespace, meta.name, box.spec.parent)
        try:
            self._contexts.learn(await self._registry.delete(Context, meta.name, meta.namespace, uid=meta.uid))
        except NotFoundError:
            return

    def _count(self, box: Context) -> None:
        self._ledger.promise(box.metadata.uid, box.spec.node, held_by(box))


def _key(context: Context) -> Key:
    return context.metadata.namespace, context.metadata.name
