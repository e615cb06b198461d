"""The kinds of `primordia.dev/v1alpha1` and core/v1 Event, as they cross the API and lie in the store.

Types only: what a field may hold is checked in `wire/validation.py`, what it means is decided in `domain/`. The parts of
volumes are in `wire/volumes.py`.
Quantities and durations stay the text the user wrote; `kit/units.py` reads them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from primordia.wire.meta import API_VERSION, Condition, ObjectMeta, Wire, always
from primordia.wire.volumes import Data, PoolSummary, Replication, VolumeSpec, VolumeStatus


class Resource(Wire, frozen=True, kw_only=True):
    """An object with identity. `apiVersion` and `kind` are always written."""

    API_VERSION: ClassVar[str] = API_VERSION
    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    SHORT: ClassVar[tuple[str, ...]] = ()
    NAMESPACED: ClassVar[bool] = True

    metadata: ObjectMeta


# ---------------------------------------------------------------- Lifeform


class Resources(Wire, frozen=True, kw_only=True):
    """`cpu` in cores (`250m`), `memory` in bytes (`128Mi`): what the microVM has, and no more."""

    cpu: str = "1"
    memory: str = "128Mi"


class Port(Wire, frozen=True, kw_only=True):
    """`publish` is the port on every node's address that leads here; 0 is none."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"
    publish: int = 0


class TcpSocketAction(Wire, frozen=True, kw_only=True):
    port: int


class ExecAction(Wire, frozen=True, kw_only=True):
    command: tuple[str, ...]


class HttpGetAction(Wire, frozen=True, kw_only=True):
    port: int
    path: str = "/"


class Probe(Wire, frozen=True, kw_only=True):
    """Exactly one of tcpSocket, exec and httpGet."""

    tcp_socket: TcpSocketAction | None = None
    exec: ExecAction | None = None
    http_get: HttpGetAction | None = None
    initial_delay_seconds: float = 0
    period_seconds: float = 5
    timeout_seconds: float = 2
    success_threshold: int = 1
    failure_threshold: int = 3


class LifecycleHandler(Wire, frozen=True, kw_only=True):
    exec: ExecAction


class Lifecycle(Wire, frozen=True, kw_only=True):
    """`postFork` runs in each fork of a guest in which programs of the image have run, once the fork is who it is to be, and
    before it is given to anybody: for what only user space knows, as the state of its random generators. It runs with the
    program's environment, folder and user, and must end with exit code 0, else there is no such fork."""

    post_fork: LifecycleHandler | None = None


class EnvVar(Wire, frozen=True, kw_only=True):
    name: str
    value: str = ""


class SecretMount(Wire, frozen=True, kw_only=True):
    """Each key of the Secret becomes a file of `mount_path`, on a tmpfs."""

    name: str
    mount_path: str


class ContextTemplate(Wire, frozen=True, kw_only=True):
    """One context of a lifeform. `command` replaces the image's ENTRYPOINT, `args` its CMD."""

    name: str
    image: str
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[EnvVar, ...] = ()
    working_dir: str = ""
    user: str = ""
    tty: bool = False
    resources: Resources = Resources()
    ports: tuple[Port, ...] = ()
    readiness_probe: Probe | None = None
    lifecycle: Lifecycle | None = None
    data: Data | None = None
    secrets: tuple[SecretMount, ...] = ()


class LabelSelector(Wire, frozen=True, kw_only=True):
    match_labels: dict[str, str] = {}


class Peer(Wire, frozen=True, kw_only=True):
    """Who may connect: lifeforms with these labels (`podSelector`) in namespaces with these names or labels.

    Without `namespace_selector` the lifeform's own namespace; with an empty one every namespace.
    """

    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None


class LifeformNetwork(Wire, frozen=True, kw_only=True):
    """Default deny: no egress, and nobody but the lifeform's own contexts may connect."""

    egress: bool = False
    allow_from: tuple[Peer, ...] = ()


class Recovery(Wire, frozen=True, kw_only=True):
    """What becomes of the lifeform when its node dies.

    `seed`: start from a copy where it lies (local), make one on a node with room first (network), or whichever is ready first.
    `allow_loss`: start also from a snapshot older than the last sync, or with empty data where no copy is left. Higher
    `priority` is recovered first.
    """

    seed: Literal["auto", "local", "network"] = "auto"
    allow_loss: bool = False
    priority: int = 0


class RecoveredVolume(Wire, frozen=True, kw_only=True):
    """A volume that was taken over: from snapshot `restored_from` (0: it began empty), with `synced_number` its last sync.

    `lost_seconds` is the most that can have been lost: from that snapshot to the dead owner's last sign of life.
    """

    name: str
    restored_from: int
    synced_number: int = 0
    lost_seconds: float = 0


class Recovered(Wire, frozen=True, kw_only=True):
    """The last time the lifeform was started elsewhere because its node had died: `from_node`, in which life, when (RFC 3339).

    `epoch` is the one that began with it; `lost_seconds` the most that any of its volumes lost.
    """

    from_node: str
    epoch: int
    at: str
    reason: str = ""
    volumes: tuple[RecoveredVolume, ...] = ()
    lost_seconds: float = 0


class Moving(Wire, frozen=True, kw_only=True):
    """A move to the node `to` that is under way: from `from_node`, where the lifeform was in `epoch`.

    `phase` is Seeding (its data is brought there, and it runs), Stopping, HandingOver (the last of its data), Starting (it is
    there, in the next epoch, which `epoch` then is) or GivenUp (it stayed); `message` says what is waited for, or why.
    `since` is when the move began, `stopped_at` when its contexts were told to stop (RFC 3339). `wish` is what was asked for.
    """

    phase: Literal["Seeding", "Stopping", "HandingOver", "Starting", "GivenUp"]
    to: str = ""
    from_node: str = ""
    epoch: int = 0
    since: str = ""
    stopped_at: str = ""
    message: str = ""
    wish: str = ""


class Moved(Wire, frozen=True, kw_only=True):
    """The last move that was made: `epoch` began with it; for `blackout_seconds` no context was ready."""

    from_node: str
    to: str
    at: str
    epoch: int
    blackout_seconds: float = 0


class LifeformSpec(Wire, frozen=True, kw_only=True):
    """`keep_memory`: a suspension keeps what its programs have in memory, and they go on from there where that is possible."""

    contexts: tuple[ContextTemplate, ...]
    operating_mode: Literal["Running", "Suspended"] = always("Running")
    keep_memory: bool = False
    node_selector: dict[str, str] = {}
    colocate_with: LabelSelector | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    network: LifeformNetwork = LifeformNetwork()
    termination_grace_period_seconds: float = 10
    replication: Replication | None = None
    recovery: Recovery | None = None


class ContextSummary(Wire, frozen=True, kw_only=True):
    """A context as its lifeform's status shows it."""

    name: str
    phase: str = always("Pending")
    ready: bool = False
    ip: str = ""
    restarts: int = 0
    image_digest: str = ""
    message: str = ""


class LifeformStatus(Wire, frozen=True, kw_only=True):
    """`phase` is Pending, Starting, Running, Moving (it stands still for a move), Suspended, Succeeded, Failed, Terminating,
    Unknown (its node is silent) or Parked (its node is dead, and the condition Recovered says what it waits for). Every later
    epoch is above `epoch_base`."""

    phase: str = always("Pending")
    node: str = ""
    rack: str = ""
    segment: str = ""
    epoch: int = 0
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    contexts: tuple[ContextSummary, ...] = ()
    recovered: Recovered | None = None
    moving: Moving | None = None
    moved: Moved | None = None
    epoch_base: int = 0


class Lifeform(Resource, tag_field="kind", tag="Lifeform", frozen=True, kw_only=True):
    """A named, stateful unit: one or more co-located contexts, on one node, with one epoch."""

    KIND: ClassVar[str] = "Lifeform"
    PLURAL: ClassVar[str] = "lifeforms"
    SHORT: ClassVar[tuple[str, ...]] = ("lf", "kbl")

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: LifeformSpec
    status: LifeformStatus = LifeformStatus()


# ---------------------------------------------------------------- Context


class ContextSpec(Wire, frozen=True, kw_only=True):
    """One microVM, bound to a node by the system. `wanted` is what the node makes true.

    `template` repeats the lifeform's context with every default filled in. A box or fork has no `lifeform`. A fork has a
    `parent`, another Context by name with its `parent_uid`; `depth` counts the forks above it. `lifetime` parent ends it with
    its parent, keep does not. `from_template` is the Template that a box was claimed from. `expires_at` (RFC 3339) ends it.
    `volume` is the Volume with its data, by name with its `volume_uid`; both are empty where it has none. `recovered` is its
    lifeform's, if its epoch began so. `keep_memory`: what it has in memory when it is Stopped is kept. `next_node` is about to
    have it, and makes ready for it.
    """

    lifeform: str = ""
    lifeform_uid: str = ""
    node: str
    epoch: int
    template: ContextTemplate
    wanted: Literal["Running", "Stopped"] = always("Running")
    keep_memory: bool = False
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    network: LifeformNetwork = LifeformNetwork()
    termination_grace_period_seconds: float = 10
    lifeform_labels: dict[str, str] = {}
    parent: str = ""
    parent_uid: str = ""
    depth: int = 0
    lifetime: Literal["parent", "keep"] = "parent"
    from_template: str = ""
    expires_at: str = ""
    volume: str = ""
    volume_uid: str = ""
    recovered: Recovered | None = None
    next_node: str = ""


STARTING_PHASES = ("Pending", "Preparing", "Booting")
"""Of a context whose start is under way."""


class ContextStatus(Wire, frozen=True, kw_only=True):
    """`phase` is Pending, Preparing, Booting, Running, Stopping, Stopped, Succeeded, Failed or BackOff.

    It is Unknown for a box or fork whose node is silent. `observed_generation` is the spec's that the node had when it said
    so. `started_from` is warm (a fork that waited), cold (a fork made for it), memory (what was kept when it was suspended) or
    boot; `confirmed` is what the guest itself confirmed of its identity.
    """

    phase: str = always("Pending")
    observed_generation: int = 0
    reason: str = ""
    message: str = ""
    ready: bool = False
    ip: str = ""
    pid: int = 0
    restarts: int = 0
    exit_code: int | None = None
    started_at: str = ""
    finished_at: str = ""
    started_because: str = ""
    started_from: str = ""
    confirmed: tuple[str, ...] = ()
    image_digest: str = ""
    boot_ms: float = 0
    conditions: tuple[Condition, ...] = ()


class Context(Resource, tag_field="kind", tag="Context", frozen=True, kw_only=True):
    """One microVM (what Kubernetes calls a Pod): of a lifeform, or by itself a box or a fork."""

    KIND: ClassVar[str] = "Context"
    PLURAL: ClassVar[str] = "contexts"
    SHORT: ClassVar[tuple[str, ...]] = ("ctx",)

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: ContextSpec
    status: ContextStatus = ContextStatus()


# ---------------------------------------------------------------- Volume


class Volume(Resource, tag_field="kind", tag="Volume", frozen=True, kw_only=True):
    """A disk with a lifeform's data, on one node, and its copies on others. It outlives the lifeform."""

    KIND: ClassVar[str] = "Volume"
    PLURAL: ClassVar[str] = "volumes"
    SHORT: ClassVar[tuple[str, ...]] = ("vol",)

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: VolumeSpec
    status: VolumeStatus = VolumeStatus()


# ---------------------------------------------------------------- Node


class NodeCapacity(Wire, frozen=True, kw_only=True):
    """What the node offers to contexts. `cpu` in cores, the rest in bytes, as quantities."""

    cpu: str = "0"
    memory: str = "0"
    disk: str = "0"
    contexts: int = 0


class Maintenance(Wire, frozen=True, kw_only=True):
    """Somebody works on the node: its silence is no death. Over at `until` (RFC 3339; empty: when it is taken back)."""

    until: str = ""


class NodeSpec(Wire, frozen=True, kw_only=True):
    """`unschedulable`: it takes no more lifeforms and copies. `evacuating`: the copies on it are to lie elsewhere."""

    unschedulable: bool = False
    evacuating: bool = False
    maintenance: Maintenance | None = None
    pod_cidr: str = msgspec.field(name="podCIDR", default="")


class NodeStatus(Wire, frozen=True, kw_only=True):
    """`allocatable` is what contexts may be promised: capacity less the reserve, with CPU overcommitted.

    `address` is where other nodes reach it; `api_endpoint` where clients do. `pool` is where its volumes and copies lie.
    `expecting` are the uids of contexts that are about to be moved there, and for whose start all is ready.
    """

    capacity: NodeCapacity = NodeCapacity()
    allocatable: NodeCapacity = NodeCapacity()
    allocated: NodeCapacity = NodeCapacity()
    conditions: tuple[Condition, ...] = ()
    address: str = ""
    api_endpoint: str = ""
    version: str = ""
    boot_id: str = ""
    accelerator: str = ""
    accelerator_reason: str = ""
    vmm_version: str = ""
    kernel_version: str = ""
    images: tuple[str, ...] = ()
    pool: PoolSummary = PoolSummary()
    expecting: tuple[str, ...] = ()


class Node(Resource, tag_field="kind", tag="Node", frozen=True, kw_only=True):
    """One metal machine; in a local soup one set of processes in its own network namespace."""

    KIND: ClassVar[str] = "Node"
    PLURAL: ClassVar[str] = "nodes"
    SHORT: ClassVar[tuple[str, ...]] = ("no",)
    NAMESPACED: ClassVar[bool] = False

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


# ---------------------------------------------------------------- Soup


class SoupSpec(Wire, frozen=True, kw_only=True):
    """Settings of the whole installation, written by `up`. `pod_cidr` is cut into one range for each node."""

    pod_cidr: str = msgspec.field(name="podCIDR", default="10.128.0.0/9")
    domain: str = "soup.internal"
    nodes: int = 1


class SoupStatus(Wire, frozen=True, kw_only=True):
    incarnation: int = 1
    created_by_version: str = ""
    conditions: tuple[Condition, ...] = ()


class Soup(Resource, tag_field="kind", tag="Soup", frozen=True, kw_only=True):
    """The whole installation; there is one, named `soup`."""

    KIND: ClassVar[str] = "Soup"
    PLURAL: ClassVar[str] = "soups"
    NAMESPACED: ClassVar[bool] = False

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: SoupSpec = SoupSpec()
    status: SoupStatus = SoupStatus()


# ---------------------------------------------------------------- Image


class DebianSource(Wire, frozen=True, kw_only=True):
    """Built from the packages of the machine's own distribution and package sources."""

    packages: tuple[str, ...]


class OciSource(Wire, frozen=True, kw_only=True):
    """`reference` is `HOST[:PORT]/NAME[:TAG][@DIGEST]`, or `oci:FOLDER[:TAG]` for a local OCI layout on the node."""

    reference: str
    tls_verify: bool = True


class ImageConfig(Wire, frozen=True, kw_only=True):
    """What runs when the lifeform does not say; laid over what the source itself says."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[EnvVar, ...] = ()
    working_dir: str = ""
    user: str = ""


class ImageSpec(Wire, frozen=True, kw_only=True):
    """Exactly one of debian and oci."""

    debian: DebianSource | None = None
    oci: OciSource | None = None
    config: ImageConfig = ImageConfig()


class ImageStatus(Wire, frozen=True, kw_only=True):
    """`phase` is Pending, Building, Ready or Failed. `digest` names the content, `size_bytes` its root on disk."""

    phase: str = always("Pending")
    message: str = ""
    progress: str = ""
    digest: str = ""
    size_bytes: int = 0
    config: ImageConfig = ImageConfig()
    built_at: str = ""
    observed_generation: int = 0
    nodes: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Image(Resource, tag_field="kind", tag="Image", frozen=True, kw_only=True):
    """A root file system that contexts share, and what to run in it."""

    KIND: ClassVar[str] = "Image"
    PLURAL: ClassVar[str] = "images"
    SHORT: ClassVar[tuple[str, ...]] = ("img",)
    NAMESPACED: ClassVar[bool] = False

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: ImageSpec = ImageSpec()
    status: ImageStatus = ImageStatus()


# ---------------------------------------------------------------- Template


class WarmUp(Wire, frozen=True, kw_only=True):
    """Exactly one of the two: a `command` that makes /run/primordia/ready and stays alive, or `python` code that is run in an
    interpreter, which then waits for more."""

    command: tuple[str, ...] | None = None
    python: str = ""


class WarmRange(Wire, frozen=True, kw_only=True):
    """How many forks wait, paused, on each node. `max` may be taken while there is room; 0 is as `min`."""

    min: int = 0
    max: int = 0

    @property
    def most(self) -> int:
        """The larger bound."""
        return max(self.min, self.max)


class TemplateSpec(Wire, frozen=True, kw_only=True):
    """What is booted and frozen. Without `warm_up` nothing of the image has run in it."""

    image: str
    warm_up: WarmUp | None = None
    resources: Resources = Resources()
    warm: WarmRange = WarmRange()
    env: tuple[EnvVar, ...] = ()
    user: str = ""
    working_dir: str = ""
    lifecycle: Lifecycle | None = None


class TemplateNode(Wire, frozen=True, kw_only=True):
    """A template on one node: `digest` names what is frozen there, `warm` counts the forks that wait."""

    node: str
    digest: str = ""
    warm: int = 0
    size_bytes: int = 0


class TemplateStatus(Wire, frozen=True, kw_only=True):
    """`phase` is Pending, Building, Ready or Failed, of the spec of `observed_generation`."""

    phase: str = always("Pending")
    message: str = ""
    observed_generation: int = 0
    nodes: tuple[TemplateNode, ...] = ()
    conditions: tuple[Condition, ...] = ()


class Template(Resource, tag_field="kind", tag="Template", frozen=True, kw_only=True):
    """A booted, frozen microVM that boxes are forked from."""

    KIND: ClassVar[str] = "Template"
    PLURAL: ClassVar[str] = "templates"
    SHORT: ClassVar[tuple[str, ...]] = ("tpl",)
    NAMESPACED: ClassVar[bool] = False

    api_version: str = always(API_VERSION, name="apiVersion")
    spec: TemplateSpec
    status: TemplateStatus = TemplateStatus()


# ---------------------------------------------------------------- Secret


class Secret(Resource, tag_field="kind", tag="Secret", frozen=True, kw_only=True):
    """`data` is base64; `string_data` is text, written only, and becomes `data`."""

    KIND: ClassVar[str] = "Secret"
    PLURAL: ClassVar[str] = "secrets"

    api_version: str = always(API_VERSION, name="apiVersion")
    type: str = "Opaque"
    data: dict[str, str] = {}
    string_data: dict[str, str] = {}


# ---------------------------------------------------------------- core/v1 Event


class ObjectReference(Wire, frozen=True, kw_only=True):
    api_version: str = msgspec.field(name="apiVersion", default="")
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class EventSource(Wire, frozen=True, kw_only=True):
    component: str = ""
    host: str = ""


class Event(Resource, tag_field="kind", tag="Event", frozen=True, kw_only=True):
    """What happened to an object, for people. Equal ones are counted, not repeated; old ones are dropped."""

    API_VERSION: ClassVar[str] = "v1"
    KIND: ClassVar[str] = "Event"
    PLURAL: ClassVar[str] = "events"
    SHORT: ClassVar[tuple[str, ...]] = ("ev",)

    api_version: str = always("v1", name="apiVersion")
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    type: str = always("Normal")
    count: int = always(1)
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
    source: EventSource = EventSource()
    reporting_component: str = ""
    reporting_instance: str = ""


KINDS: tuple[type[Resource], ...] = (Soup, Node, Image, Template, Lifeform, Context, Volume, Secret, Event)
BY_PLURAL: dict[str, type[Resource]] = {kind.PLURAL: kind for kind in KINDS}
BY_KIND: dict[str, type[Resource]] = {kind.KIND: kind for kind in KINDS}
