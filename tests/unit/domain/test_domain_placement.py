"""Placement: who fits, who wins, and the sentence that says why not."""

from dataclasses import replace

import pytest

from primordia.domain.placement import Demand, NodeView, Request, one_context, place
from primordia.domain.ranking import Ranking

GI = 2**30
ROOMY = NodeView("n1", {"rack": "r1"}, True, False, Demand(8000, 8 * GI, 100))


def want(memory: int = GI, cpu: int = 1000, **more: object) -> Request:
    return Request(Demand(cpu, memory, 1), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "nodes", "message"),
    [
        (want(), [], "There are no nodes."),
        (
            want(64 * GI),
            [replace(ROOMY, used=Demand(0, int(4.8 * GI), 0))],
            "0/1 nodes fit: 1 has not enough memory (wants 64Gi, has 3.2Gi free).",
        ),
        (want(cpu=9000), [ROOMY], "0/1 nodes fit: 1 has not enough cpu (wants 9, has 8 free)."),
        (
            want(),
            [replace(ROOMY, used=Demand(0, 0, 100))],
            "0/1 nodes fit: 1 has no room for more contexts (wants 1, has 0 free).",
        ),
        (want(), [replace(ROOMY, ready=False)], "0/1 nodes fit: 1 is not ready."),
        (want(), [replace(ROOMY, unschedulable=True)], "0/1 nodes fit: 1 is cordoned."),
        (want(node_selector={"rack": "r2"}), [ROOMY], "0/1 nodes fit: 1 does not match nodeSelector rack=r2."),
        (want(beside=frozenset()), [ROOMY], "0/1 nodes fit: 1 runs no lifeform that colocateWith asks for."),
        (
            want(),
            [
                replace(ROOMY, unschedulable=True),
                replace(ROOMY, name="n2", ready=False),
                replace(ROOMY, name="n3", ready=False),
            ],
            "0/3 nodes fit: 2 are not ready, 1 is cordoned.",
        ),
        (
            want(6 * GI),
            [
                replace(ROOMY, used=Demand(0, 4 * GI, 0)),
                replace(ROOMY, name="n2", used=Demand(0, 3 * GI, 0)),
                replace(ROOMY, name="n3", used=Demand(0, 0, 100)),
            ],
            "0/3 nodes fit: 2 have not enough memory (wants 6Gi, at most 5Gi free), "
            "1 has no room for more contexts (wants 1, has 0 free).",
        ),
    ],
)
def test_refusals_say_why(request_: Request, nodes: list[NodeView], message: str) -> None:
    placement = place(request_, Ranking(nodes))
    assert (placement.node, placement.message) == ("", message)


def test_the_node_with_most_free_memory_wins_whatever_the_order() -> None:
    busy = replace(ROOMY, name="n0", used=Demand(0, 4 * GI, 4))
    twin = replace(ROOMY, name="n2")
    for nodes in ([busy, ROOMY, twin], [twin, ROOMY, busy]):
        assert place(want(), Ranking(nodes)).node == "n1"


def test_a_choice_says_whom_it_passed_over() -> None:
    full = replace(ROOMY, name="n2", used=Demand(8000, 0, 1))
    placement = place(want(), Ranking([full, replace(ROOMY, used=Demand(0, 4 * GI, 1))]))
    assert placement.node == "n1"
    assert placement.message == (
        "of the nodes that fit, it keeps the most memory free, 38% (passed over: 1 has not enough cpu (wants 1, has 0 free))."
    )


def test_selectors_and_neighbours_narrow_the_choice() -> None:
    other = replace(ROOMY, name="n2", labels={"rack": "r2"}, used=Demand(0, 4 * GI, 1))
    assert place(want(node_selector={"rack": "r2"}), Ranking([ROOMY, other])).node == "n2"
    assert place(want(beside=frozenset({"n2"})), Ranking([ROOMY, other])).node == "n2"


def test_an_exact_fit_fits() -> None:
    demand = one_context(8000, 8 * GI)
    assert place(Request(demand), Ranking([replace(ROOMY, allocatable=demand)])).node == "n1"
    assert place(Request(demand + Demand(0, 1, 0)), Ranking([replace(ROOMY, allocatable=demand)])).node == ""
