"""How long the plan for a lost rack takes: a tenth of a thousand nodes, and of a hundred thousand lifeforms, all with data.

All objects are real, and read as the leader reads them; what is measured is what it does with them, from the dead nodes'
pages to an action for each lifeform, by CPU time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

from primordia.bench.figures import Figure, figure
from primordia.bench.ground import Progress
from primordia.control.lifebook import Page
from primordia.control.lost import Estate, lost_of
from primordia.control.scheduler import view_of
from primordia.domain.failover import plan
from primordia.domain.lost import Action, DeadNode, Recover, View
from primordia.domain.placement import Demand, one_context
from primordia.domain.timings import Timings
from primordia.registry.lives import Death, Held, Holding
from primordia.sim.objects import make_lifeform, make_node
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Lifeform, LifeformStatus, Node, Volume
from primordia.wire.volumes import LastSync, VolumeCopy, VolumeSpec, VolumeStatus

RACKS = 10
_AT = "2026-01-01T00:00:00Z"
_NEED = one_context(100, 128 * 2**20)


class Loss:
    """`nodes` nodes on ten racks, `lifeforms` lifeforms with one volume and two copies each; rack 0 is lost."""

    def __init__(self, nodes: int, lifeforms: int, seed: int = 1) -> None:
        dice = random.Random(seed)
        self._nodes = [
            make_node(f"n{number:04}", rack=f"r{number % RACKS}", cpu="256", memory="64Gi", contexts=5000, pool="10Ti")
            for number in range(nodes)
        ]
        racks: list[list[Node]] = [self._nodes[rack::RACKS] for rack in range(RACKS)]
        self._used = {node.metadata.name: Demand() for node in self._nodes}
        self._pages = {
            node.metadata.name: Page(node.metadata.name, 0.0, seen=True, life=7, death=Death(7, "node", at=_AT))
            for node in racks[0]
        }
        self._owned: dict[str, list[tuple[Lifeform, Volume]]] = {name: [] for name in self._pages}
        held: dict[tuple[str, str], dict[str, Held]] = {}
        for number in range(lifeforms):
            owner = self._nodes[number % nodes].metadata.name
            self._used[owner] += _NEED
            if owner in self._pages:
                first, second = dice.sample(range(1, RACKS), 2)
                copies = [dice.choice(racks[rack]).metadata.name for rack in (first, second)]
                lifeform, volume = _pair(number, owner, copies)
                self._owned[owner].append((lifeform, volume))
                for place, behind in zip(copies, (0, dice.randrange(3)), strict=True):
                    held.setdefault((owner, place), {})[volume.metadata.uid] = Held(1, 100 - behind, "root", _AT)
        for (owner, place), volumes in held.items():
            self._pages[owner].holdings[place] = Holding(7, volumes)
        self.lost = sum(map(len, self._owned.values()))

    def plan(self) -> tuple[Action, ...]:
        """An action for each lifeform of the rack, as the leader makes them."""
        away = self._pages.keys()
        views = {
            node.metadata.name: view_of(node, self._used[node.metadata.name])
            for node in self._nodes
            if node.metadata.name not in away
        }
        dead = {name: DeadNode(name, 0.0, 0.0, frozenset(page.holdings)) for name, page in self._pages.items()}
        lost = [
            lost_of(Estate(lifeform, {"main": volume}, {}, self._pages[name]), None)
            for name, owned in self._owned.items()
            for lifeform, volume in owned
        ]
        return plan(lost, View(views, dead, _NOBODY), Timings(), 100.0)


_NOBODY: Mapping[str, int] = {}


def _pair(number: int, owner: str, copies: list[str]) -> tuple[Lifeform, Volume]:
    name = f"l{number:06}"
    made = make_lifeform(name, memory="128Mi", cpu="100m", data="1Gi")
    meta = ObjectMeta(name=name, namespace="default", uid=f"lifeform-{number}", creation_timestamp=_AT)
    lifeform = Lifeform(metadata=meta, spec=made.spec, status=LifeformStatus(node=owner, epoch=1))
    status = VolumeStatus(
        node=owner,
        epoch=1,
        replicas=tuple(copies),
        size_bytes=2**30,
        number=100,
        last_sync=LastSync(epoch=1, number=98),
        copies=tuple(VolumeCopy(node=each, epoch=1, number=100, state="InSync") for each in copies),
    )
    volume_meta = ObjectMeta(name=f"{name}.main", namespace="default", uid=f"volume-{number}", creation_timestamp=_AT)
    return lifeform, Volume(metadata=volume_meta, spec=VolumeSpec(size="1Gi", lifeform=name, context="main"), status=status)


def measure(nodes: int, lifeforms: int, rounds: int, progress: Progress) -> Figure:
    """CPU seconds of one plan. RuntimeError when it is no plan: then the figure would say nothing."""
    progress("scale: a rack is lost")
    loss = Loss(nodes, lifeforms)
    taken_s = []
    for _ in range(rounds):
        begun = time.process_time()
        actions = loss.plan()
        taken_s.append(time.process_time() - begun)
        if len(actions) != loss.lost or not any(isinstance(each, Recover) for each in actions):
            raise RuntimeError("the plan does not cover what was lost")
    return figure("rack_loss_plan", "s", taken_s)
