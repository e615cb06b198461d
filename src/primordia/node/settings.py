"""The node's own figures: deadlines, limits and reserves. All times are seconds, all sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass

_MI = 2**20
_GI = 2**30


@dataclass(frozen=True)
class NodeSettings:
    """Defaults suit a loaded machine without KVM, where a boot that takes 3 s alone may take a minute in a crowd."""

    boot_deadline_s: float = 120.0
    """From the start of the VMM to the agent's hello and a running program."""

    adopt_parallel: int = 8
    """Microvms of an earlier daemon that are looked at together."""

    start_parallel: int = 0
    """Boots at once; more only make each other slow. 0 is twice the CPUs, at least four."""

    call_deadline_s: float = 30.0
    """For one answer of a guest that should come at once."""

    shutdown_margin_s: float = 5.0
    """What a guest gets beyond its program's grace to sync and power off, before it is killed."""

    greeting_s: float = 5.0
    """For one try to be greeted by an agent; then the channel is opened anew. A port that was full of output when its last
    reader went may stay dumb for the first connection after it."""

    reconnect_first_s: float = 0.2
    """Between tries to reach the agent of a running microVM; doubles."""

    reconnect_longest_s: float = 10.0
    """The longest pause between such tries."""

    scratch_bytes: int = 4 * _GI
    """The writable layer of a context; sparse, so only what is written takes room."""

    disk_reserve_bytes: int = 512 * _MI
    """With less than this free on the state disk nothing is started."""

    memory_reserve_bytes: int = 256 * _MI
    """What the machine keeps for itself; never promised to contexts."""

    check_interval_s: float = 30.0
    """Between looks at the machine's disk and memory."""

    most_contexts: int = 5000
    """Contexts that a node takes, whatever room is left."""

    plain_templates: bool = True
    """Whether lifeforms start as forks of a template of their image and size, which the node makes after the first boot."""

    plain_warm: int = 1
    """Forks of such a template that wait, while contexts of it were started within the last `plain_unused_s`."""

    plain_unused_s: float = 600.0
    """After so long without a start nothing waits for one any more."""

    template_unused_s: float = 24 * 3600.0
    """A template that nothing has used for so long is deleted; it is made again when it is wanted."""

    warm_up_deadline_s: float = 300.0
    """From the start of a warm-up to its /run/primordia/ready."""

    build_retry_s: float = 60.0
    """Between tries to build a template that could not be built."""

    claim_deadline_s: float = 15.0
    """For a fork to confirm its identity, from its resumption on. One that does not is destroyed. It takes milliseconds, but
    seconds where others keep an emulating host busy, and one that is late is better than none."""

    fork_deadline_s: float = 30.0
    """For a fork to be made, up to its agent's hello."""

    fork_parallel: int = 4
    """Forks that are made side by side."""

    births_parallel: int = 4
    """Forks that are told side by side who they are. More would take the processors from each other: past their deadline, and
    with clocks that were right when the host read its own."""

    pool_interval_s: float = 2.0
    """Between looks at the pool when nothing has changed."""

    most_forks: int = 500
    """Boxes, forks and warm forks of the node together."""

    most_forks_of_root: int = 200
    """Forks of one lifeform or box, with their descendants."""

    deepest_fork: int = 8
    """Generations of forks of forks."""

    dead_box_keep_s: float = 600.0
    """How long a box or fork that has ended can still be looked at, where nothing else ends it."""
