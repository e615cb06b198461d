"""Who may talk to whom, and which ports are published where: from the soup's contexts to one node's NetworkState. Pure.

The rules are those of a Kubernetes NetworkPolicy, made smaller: a lifeform's own contexts always reach each other, nobody
else does unless `allowFrom` names them, and nothing goes out unless `egress` says so.

What is doubtful is closed: an address that two contexts claim opens nothing to either, for a rule that was meant for one
would hold for the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from primordia.ports.network import Endpoint, Flow, NetworkState, Publication, PublicationFault
from primordia.wire.resources import Context, Peer

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""Every namespace carries its name under this label, as in Kubernetes."""


@dataclass(frozen=True)
class Member:
    """A context that takes part in the network, with the address it has."""

    context: Context
    address: str

    @property
    def namespace(self) -> str:
        return self.context.metadata.namespace

    @property
    def group(self) -> str:
        return self.context.spec.lifeform_uid or self.context.metadata.uid


@dataclass(frozen=True)
class Decision:
    """The state for one node, and the publications that were refused before any port was tried."""

    state: NetworkState
    faults: tuple[PublicationFault, ...] = ()


def decide(
    node: str,
    contexts: Iterable[Context],
    addresses: Mapping[str, str],
    namespaces: Mapping[str, Mapping[str, str]] | None = None,
    links: Mapping[str, str] | None = None,
    waiting: Iterable[Endpoint] = (),
) -> Decision:
    """The network of `node`.

    `contexts` are those of the whole soup; `addresses`, by uid, are the node's own word for its own contexts and go before
    their status, which follows later. `namespaces` gives labels of namespaces beside their name. `links` names the TAPs of
    contexts, by uid, where they are not their own; `waiting` are forks that are nobody yet: each alone, and going nowhere.
    """
    links = links or {}
    members = _members(node, contexts, addresses)
    local = [member for member in members if member.context.spec.node == node]
    publications, faults = _publications(members)
    return Decision(
        NetworkState(
            endpoints=(*(_endpoint(one, links.get(one.context.metadata.uid, "")) for one in local), *waiting),
            flows=_flows(node, members, namespaces or {}),
            publications=publications,
        ),
        faults,
    )


def _endpoint(member: Member, link: str) -> Endpoint:
    context = member.context
    return Endpoint(context.metadata.uid, member.address, member.group, context.spec.network.egress, link)


def _members(node: str, contexts: Iterable[Context], addresses: Mapping[str, str]) -> list[Member]:
    """The contexts that have an address. The node's own are believed before what others' status says of theirs."""
    local, remote = [], []
    for context in contexts:
        if context.spec.node == node:
            local.append(Member(context, addresses.get(context.metadata.uid, "")))
        else:
            remote.append(Member(context, context.status.ip))
    own = {member.address for member in local}
    found = [*local, *(member for member in remote if member.address not in own)]
    claims = Counter(member.address for member in found)
    return sorted(
        (member for member in found if member.address and claims[member.address] == 1),
        key=lambda one: (one.namespace, one.context.metadata.name, one.context.metadata.uid),
    )


def _flows(node: str, members: Sequence[Member], namespaces: Mapping[str, Mapping[str, str]]) -> tuple[Flow, ...]:
    """Flows to this node's contexts, and from them to those of others: both ends' nodes judge a packet.

    Destinations with the same rule share one tuple of sources, which keeps a soup where everybody allows everybody small.
    """
    directory = _Directory(members, namespaces)
    local = frozenset(member.address for member in members if member.context.spec.node == node)
    sources_of: dict[tuple[str, str, bool], tuple[str, ...]] = {}
    flows = []
    for member in members:
        peers = member.context.spec.network.allow_from
        if not peers:
            continue
        here = member.address in local
        # A Peer holds dicts and so is no key itself; its text says all of it.
        key = (member.namespace, repr(peers), here)
        if key not in sources_of:
            meant = directory.meant(peers, member.namespace)
            sources_of[key] = tuple(address for address in meant if here or address in local)
        if sources_of[key]:
            flows.append(Flow(member.address, sources_of[key]))
    return tuple(flows)


class _Directory:
    """Members by namespace and by label, so that a rule costs what it finds and not what there is."""

    def __init__(self, members: Sequence[Member], namespaces: Mapping[str, Mapping[str, str]]) -> None:
        self._members = members
        self._namespaces = namespaces
        self._by_namespace: dict[str, set[int]] = {}
        self._by_label: dict[tuple[str, str], set[int]] = {}
        for number, member in enumerate(members):
            self._by_namespace.setdefault(member.namespace, set()).add(number)
            for label in member.context.spec.lifeform_labels.items():
                self._by_label.setdefault(label, set()).add(number)

    def meant(self, peers: Iterable[Peer], owner_namespace: str) -> list[str]:
        """The addresses that a rule of a lifeform in `owner_namespace` names."""
        found: set[int] = set()
        for peer in peers:
            found |= self._meant_by(peer, owner_namespace)
        return [self._members[number].address for number in sorted(found)]

    def _meant_by(self, peer: Peer, owner_namespace: str) -> set[int]:
        labels = peer.pod_selector.match_labels if peer.pod_selector is not None else {}
        narrowed = [self._by_label.get(label, set()) for label in labels.items()]
        narrowed.append(self._of_namespaces(peer, owner_namespace))
        return set.intersection(*sorted(narrowed, key=len))

    def _of_namespaces(self, peer: Peer, owner_namespace: str) -> set[int]:
        if peer.namespace_selector is None:
            return self._by_namespace.get(owner_namespace, set())
        wanted = peer.namespace_selector.match_labels
        if set(wanted) == {NAMESPACE_NAME_LABEL}:
            return self._by_namespace.get(wanted[NAMESPACE_NAME_LABEL], set())
        return set().union(*(numbers for name, numbers in self._by_namespace.items() if self._has_labels(name, wanted)))

    def _has_labels(self, namespace: str, wanted: Mapping[str, str]) -> bool:
        labels = {**self._namespaces.get(namespace, {}), NAMESPACE_NAME_LABEL: namespace}
        return all(labels.get(key) == value for key, value in wanted.items())


def _publications(members: Sequence[Member]) -> tuple[tuple[Publication, ...], tuple[PublicationFault, ...]]:
    """Every node publishes every port of the soup. One port leads to one context: of two that want it, the older has it."""
    taken: dict[int, tuple[Publication, Context]] = {}
    faults = []
    by_age = sorted(members, key=lambda one: (one.context.metadata.creation_timestamp or "", one.context.metadata.uid))
    for member in by_age:
        if member.context.spec.wanted != "Running":
            continue
        for port in member.context.spec.template.ports:
            if not port.publish:
                continue
            wanted = Publication(port.publish, member.address, port.container_port, member.context.metadata.uid)
            if port.protocol.upper() != "TCP":
                faults.append(PublicationFault(wanted, f"Port {port.publish} is {port.protocol}: only TCP can be published."))
            elif port.publish in taken:
                _, holder = taken[port.publish]
                where = f"{holder.metadata.namespace}/{holder.metadata.name}"
                faults.append(PublicationFault(wanted, f"Port {port.publish} is already published by context {where}."))
            else:
                taken[port.publish] = (wanted, member.context)
    return tuple(publication for _, (publication, _) in sorted(taken.items())), tuple(faults)
