"""The ranking: whatever has happened to it, placement from it is the placement that looks at every node."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from primordia.domain.placement import Demand, NodeView, Request, free_share, place, refusal_of
from primordia.domain.ranking import Ranking

GI = 2**30


def random_node(rng: random.Random, name: str) -> NodeView:
    room = Demand(rng.choice((4000, 8000)), rng.choice((8, 8, 8, 16, 64)) * GI, 50)
    return NodeView(
        name,
        {"rack": f"r{rng.randrange(12)}", "segment": f"s{rng.randrange(2)}"},
        ready=rng.random() < 0.9,
        unschedulable=rng.random() < 0.1,
        allocatable=room,
        used=Demand(rng.randrange(room.cpu_milli), rng.randrange(room.memory_bytes // GI) * GI, rng.randrange(50)),
    )


def random_request(rng: random.Random, names: list[str]) -> Request:
    selector = rng.choice(({}, {}, {"rack": f"r{rng.randrange(13)}"}, {"rack": "r1", "segment": "s1"}, {"segment": "s0"}))
    beside = frozenset(rng.sample(names, min(len(names), rng.randrange(4)))) if rng.random() < 0.3 else None
    return Request(Demand(rng.choice((250, 2000)), rng.randrange(1, 9) * GI, 1), selector, beside)


def best_share(request: Request, nodes: list[NodeView]) -> float | None:
    """The definition: the largest share that a node which fits would keep."""
    return max(
        (free_share(node, request.demand.memory_bytes) for node in nodes if refusal_of(request, node) is None), default=None
    )


@pytest.mark.parametrize("seed", range(20))
def test_placement_is_the_same_as_by_looking_at_every_node(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"n{number}" for number in range(rng.choice((1, 5, 60)))]
    nodes = {name: random_node(rng, name) for name in names}
    ranking = Ranking(nodes.values())
    for _ in range(300):
        name = rng.choice(names)
        if rng.random() < 0.05:
            nodes.pop(name, None)
            ranking.remove(name)
        else:
            nodes[name] = random_node(rng, name)
            ranking.put(nodes[name])
        request = random_request(rng, names)
        chosen = place(request, ranking)
        wanted = best_share(request, list(nodes.values()))
        if wanted is None:
            assert chosen.node == ""
        else:
            assert refusal_of(request, nodes[chosen.node]) is None
            assert free_share(nodes[chosen.node], request.demand.memory_bytes) == pytest.approx(wanted, abs=1e-12)


def test_among_equals_the_first_name_wins() -> None:
    node = NodeView("n9", {}, True, False, Demand(8000, 8 * GI, 50))
    ranking = Ranking([node, replace(node, name="n2"), replace(node, name="n5")])
    assert place(Request(Demand(0, GI, 1)), ranking).node == "n2"


def test_a_choice_among_many_equals_looks_at_two() -> None:
    """What makes it fast: a soup in balance is not walked through."""
    room = Demand(64_000, 64 * GI, 500)
    ranking = Ranking(NodeView(f"n{number:04}", {}, True, False, room, Demand(0, GI, 1)) for number in range(1000))
    seen: list[str] = []

    class Counted:
        most_memory = ranking.most_memory

        def candidates(self, request: Request):  # type: ignore[no-untyped-def]
            for node in ranking.candidates(request):
                seen.append(node.name)
                yield node

        all = ranking.all

    assert place(Request(Demand(100, GI, 1)), Counted()).node == "n0000"
    assert len(seen) <= 2
