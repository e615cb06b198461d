"""What must hold at every single revision, whatever goes wrong: judged from the store's history alone.

The system may act on what it has not heard yet: a node that was cordoned a moment ago may still be chosen. So a choice is
judged by what was true at any time of the last `LATENESS_S`, which is longer than any fault keeps news back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from primordia.sim import counting
from primordia.sim.counting import Sum
from primordia.sim.history import Moment, Move, State
from primordia.wire.resources import Context, ContextTemplate, Lifeform, Node

LATENESS_S = 60.0


@dataclass(frozen=True)
class Violation:
    """Something that must never be, with when it came to be."""

    checker: str
    time_s: float
    revision: int
    message: str

    def __str__(self) -> str:
        return f"[{self.checker}] at {self.time_s:.3f} s, revision {self.revision}: {self.message}"


class Checker:
    """Collects violations; a body says what it finds wrong about one moment."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    @property
    def name(self) -> str:
        """As it is called in reports."""
        return type(self).__name__

    def seen(self, moment: Moment) -> None:
        """Judge one moment."""
        for message in self.judge(moment):
            self.violations.append(Violation(self.name, moment.time_s, moment.revision, message))

    def judge(self, moment: Moment) -> Iterator[str]:
        """What is wrong, in sentences."""
        raise NotImplementedError


class Capacity(Checker):
    """Never more is promised of a node than it has. A node that shrinks evicts nobody, but takes nothing more.

    What a context of a lifeform gave back there may be another's of the same lifeform: that is not more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._promises: dict[str, tuple[str, Sum]] = {}
        self._at_placement: dict[str, Sum] = {}
        self._sizes: dict[str, Sum] = {}
        self._ended: dict[str, ContextTemplate] = {}
        self._rooms: dict[str, list[tuple[float, Sum]]] = defaultdict(list)
        self._had: dict[tuple[str, str], list[tuple[float, Sum]]] = defaultdict(list)

    def used(self, node: str) -> Sum:
        """All that is promised there."""
        return counting.total(promise for where, promise in self._promises.values() if where == node)

    def judge(self, moment: Moment) -> Iterator[str]:
        touched: dict[str, bool] = {}
        for move in moment.moves:
            if isinstance(move.new, Node):
                self._rooms[move.new.metadata.name].append((moment.time_s, counting.of_capacity(move.new.status.allocatable)))
            elif isinstance(move.either, Lifeform):
                self._note_placement(move)
                touched[move.either.metadata.uid] = touched.get(move.either.metadata.uid, False) or _is_placement(move)
            elif isinstance(move.either, Context):
                uid = move.either.spec.lifeform_uid
                self._note_context(move)
                touched[uid] = touched.get(uid, False) or _is_decision(move)
        for uid, decided in touched.items():
            yield from self._update(uid, decided, moment)

    def _note_placement(self, move: Move) -> None:
        """With its node a lifeform gets what its manifest asks for. If that changes before there are contexts, it is asked
        for anew, and what was promised may be another's meanwhile."""
        new = move.new
        if isinstance(new, Lifeform) and _is_placement(move):
            self._at_placement[new.metadata.uid] = counting.wanted(new) or Sum()
        elif move.old is not None and new is not None and move.old.metadata.generation != new.metadata.generation:
            self._at_placement.pop(new.metadata.uid, None)

    def _note_context(self, move: Move) -> None:
        """A context is as large as it was last wanted to run: a new manifest does not change what is being stopped.

        And one that has ended stays so until its template changes, whatever else does.
        """
        uid, new = move.either.metadata.uid, move.new
        if not isinstance(new, Context):
            self._sizes.pop(uid, None)
            self._ended.pop(uid, None)
            return
        if new.spec.wanted == "Running":
            self._sizes[uid] = counting.of_template(new.spec.template)
        if new.status.phase not in ("Succeeded", "Failed"):
            self._ended.pop(uid, None)
        elif counting.is_told(new):
            self._ended[uid] = new.spec.template

    def _held(self, contexts: Iterable[Context]) -> Sum:
        return counting.total(self._sizes.get(each.metadata.uid, Sum()) for each in contexts if self._holds(each))

    def _holds(self, context: Context) -> bool:
        return counting.holds(context) and self._ended.get(context.metadata.uid) != context.spec.template

    def _update(self, uid: str, decided: bool, moment: Moment) -> Iterator[str]:
        contexts = moment.state.contexts_of(uid)
        lifeform = moment.state.lifeforms.get(uid)
        node = lifeform.status.node if lifeform is not None else ""
        node = node or next((context.spec.node for context in contexts), "")
        if contexts:
            self._at_placement.pop(uid, None)
        now = self._held(contexts) if contexts else self._at_placement.get(uid, Sum())
        _, before = self._promises.pop(uid, ("", Sum()))
        had = self._had[uid, node]
        if node:
            self._promises[uid] = (node, now)
        if decided and now.exceeds(before) and (lifeform is None or _is_as_wanted(lifeform, contexts)):
            most = _most(self._rooms[node], moment.time_s)
            over = self.used(node).exceeds(most)
            shrank = any(room.exceeds(most) for _, room in self._rooms[node])
            if over and (not shrank or now.exceeds(_most(had, moment.time_s))):
                name = lifeform.metadata.name if lifeform is not None else uid
                yield f"{node} is promised {over} when {name} gets {now} (had {before})."
        had.append((moment.time_s, now))


class Togetherness(Checker):
    """All contexts of a lifeform are on its node, and come all or none."""

    def judge(self, moment: Moment) -> Iterator[str]:
        created = {move.new.spec.lifeform_uid for move in moment.moves if move.old is None and isinstance(move.new, Context)}
        for uid in created:
            lifeform = moment.state.lifeforms.get(uid)
            if lifeform is None:
                continue
            contexts = moment.state.contexts_of(uid)
            missing = {template.name for template in lifeform.spec.contexts} - {each.spec.template.name for each in contexts}
            if missing:
                yield f"{lifeform.metadata.name} got some contexts without {', '.join(sorted(missing))}."
            nodes = {context.spec.node for context in contexts} | {lifeform.status.node}
            if len(nodes) > 1:
                yield f"{lifeform.metadata.name} is on {', '.join(sorted(nodes))} at once."


class Ownership(Checker):
    """Every context is made for a lifeform that is there, names it as its owner, and is made once."""

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            if move.old is not None or not isinstance(move.new, Context):
                continue
            context = move.new
            name, uid = context.metadata.name, context.spec.lifeform_uid
            if uid not in moment.state.lifeforms:
                yield f"{name} was made for a lifeform that is not there."
            if [owner.uid for owner in context.metadata.owner_references if owner.controller] != [uid]:
                yield f"{name} does not name its lifeform as its owner."
            twins = [each for each in moment.state.contexts_of(uid) if each.spec.template.name == context.spec.template.name]
            if len(twins) > 1:
                yield f"{name} was made twice."


class Epochs(Checker):
    """An epoch never falls, and no lifeform changes its node without a new one."""

    def __init__(self) -> None:
        super().__init__()
        self._contexts: dict[str, int] = {}

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            if isinstance(move.old, Lifeform) and isinstance(move.new, Lifeform):
                yield from self._judge_lifeform(move.old, move.new)
            elif isinstance(move.new, Context):
                before = move.old.spec.epoch if isinstance(move.old, Context) else None
                if before != move.new.spec.epoch:  # its node may tell of one that has not got the new epoch yet
                    yield from self._judge_context(move.new, moment.state, is_new=before is None)

    def _judge_lifeform(self, old: Lifeform, new: Lifeform) -> Iterator[str]:
        before, after = old.status, new.status
        if old.metadata.uid != new.metadata.uid:
            return
        if after.epoch < before.epoch:
            yield f"The epoch of {new.metadata.name} fell from {before.epoch} to {after.epoch}."
        if after.node != before.node and after.epoch <= before.epoch:
            yield f"{new.metadata.name} went to {after.node} in its old epoch {after.epoch}."

    def _judge_context(self, context: Context, state: State, *, is_new: bool) -> Iterator[str]:
        uid, epoch, name = context.spec.lifeform_uid, context.spec.epoch, context.metadata.name
        highest = self._contexts.get(uid, 0)
        if epoch < highest:
            yield f"{name} is of epoch {epoch}, and there was {highest}."
        self._contexts[uid] = max(epoch, highest)
        lifeform = state.lifeforms.get(uid)
        if lifeform is not None and (epoch > lifeform.status.epoch or is_new) and epoch != lifeform.status.epoch:
            yield f"{name} is of epoch {epoch}, and its lifeform is in {lifeform.status.epoch}."


class Choices(Checker):
    """A lifeform goes only where it may: a ready node, not cordoned, with its labels, beside what it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[str, list[tuple[float, Node]]] = defaultdict(list)
        self._lifeforms: dict[str, list[tuple[float, Lifeform | None]]] = defaultdict(list)

    def judge(self, moment: Moment) -> Iterator[str]:
        for move in moment.moves:
            about = move.either
            if isinstance(move.new, Node):
                self._nodes[about.metadata.name].append((moment.time_s, move.new))
            elif isinstance(about, Lifeform):
                new = move.new if isinstance(move.new, Lifeform) else None
                if new is not None and _is_placement(move):
                    yield from self._judge_choice(new, moment.time_s)
                self._lifeforms[about.metadata.uid].append((moment.time_s, new))

    def _judge_choice(self, lifeform: Lifeform, now_s: float) -> Iterator[str]:
        name, where = lifeform.metadata.name, lifeform.status.node
        versions = self._nodes.get(where, [])
        nodes = [node for index, (_, node) in enumerate(versions) if _still_counts(versions, index, now_s)]
        if not nodes:
            yield f"{name} went to {where}, which is not there."
        elif all(node.spec.unschedulable for node in nodes):
            yield f"{name} went to {where}, which is cordoned."
        elif not any(is_ready(node) for node in nodes):
            yield f"{name} went to {where}, which is not ready."
        elif not any(lifeform.spec.node_selector.items() <= node.metadata.labels.items() for node in nodes):
            yield f"{name} went to {where}, which has not the labels {lifeform.spec.node_selector}."
        if lifeform.spec.colocate_with is not None and not self._has_company(lifeform, now_s):
            yield f"{name} went to {where}, where nobody is whom it wants to be with."

    def _has_company(self, lifeform: Lifeform, now_s: float) -> bool:
        for uid, versions in self._lifeforms.items():
            for index, (_, other) in enumerate(versions):
                if (
                    uid != lifeform.metadata.uid
                    and other is not None
                    and other.status.node == lifeform.status.node
                    and attracts(lifeform, other)
                    and _still_counts(versions, index, now_s)
                ):
                    return True
        return False


def _most(versions: Sequence[tuple[float, Sum]], now_s: float) -> Sum:
    """The most of each that there was in the time that counts."""
    recent = [each for index, (_, each) in enumerate(versions) if _still_counts(versions, index, now_s)]
    return Sum(
        max((each.cpu for each in recent), default=0),
        max((each.memory for each in recent), default=0),
        max((each.contexts for each in recent), default=0),
    )


def is_ready(node: Node) -> bool:
    """Whether it says so, and is not being deleted."""
    ready = [condition.status for condition in node.status.conditions if condition.type == "Ready"]
    return ready == ["True"] and node.metadata.deletion_timestamp is None


def attracts(lifeform: Lifeform, other: Lifeform) -> bool:
    """Whether the first asks to be beside the second."""
    selector = lifeform.spec.colocate_with
    return (
        selector is not None
        and other.metadata.namespace == lifeform.metadata.namespace
        and selector.match_labels.items() <= other.metadata.labels.items()
    )


def checkers() -> list[Checker]:
    """A fresh one of each."""
    return [Capacity(), Togetherness(), Ownership(), Epochs(), Choices()]


def _is_placement(move: Move) -> bool:
    """A lifeform gets a node."""
    if not isinstance(move.new, Lifeform):
        return False
    before = move.old.status.node if isinstance(move.old, Lifeform) else ""
    return move.new.status.node not in ("", before)


def _is_as_wanted(lifeform: Lifeform, contexts: Iterable[Context]) -> bool:
    """Whether a change has reached every context it concerns: only then is it judged."""
    templates = {template.name: template for template in lifeform.spec.contexts}
    return all(templates.get(each.spec.template.name) == each.spec.template for each in contexts)


def _is_decision(move: Move) -> bool:
    """A controller has made or changed a context; a node only tells its status."""
    if not isinstance(move.new, Context):
        return False
    return not isinstance(move.old, Context) or move.old.spec != move.new.spec


def _still_counts(versions: Sequence[tuple[float, object]], index: int, now_s: float) -> bool:
    """Whether this version was the true one at some time of the last LATENESS_S."""
    return index + 1 == len(versions) or versions[index + 1][0] >= now_s - LATENESS_S
