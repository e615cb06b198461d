"""What a lifeform's spec may hold. A context's spec repeats most of it, a template's some, and are held to the same."""

from __future__ import annotations

from primordia.wire import checks, volume_rules
from primordia.wire.problems import Problem, Problems, show
from primordia.wire.resources import (
    ContextSpec,
    ContextTemplate,
    EnvVar,
    LabelSelector,
    LifeformNetwork,
    LifeformSpec,
    Port,
    Probe,
    TemplateSpec,
)

LEAST_MEMORY = "80Mi"
"""Below it the guest's kernel does not come up: 35 MiB are its own, and it wants 24 MiB more to start."""
MOST_MEMORY = "1Ti"
_MOST_CORES = 1024
_MOST_CONTEXTS = 32
_MOST_PORTS = 64
_MOST_PUBLISHED = 128  # each is a key of the engine, written in the transaction that writes the lifeform
_MOST_VARIABLES = 1000
_MOST_SECRETS = 32
_MOST_PEERS = 100
_LONGEST_VALUE = 32 * 1024
_LONGEST_IMAGE = 512
_LONGEST_S = 3600.0
_MOST_PRIORITY = 1000

_TAKEN_PATHS = ("/proc", "/sys", "/dev", "/run/primordia.sock")


def check_lifeform(out: Problems, spec: LifeformSpec) -> None:
    """A lifeform's spec."""
    if not spec.contexts:
        out.required("spec.contexts", "must have at least one context")
    out.too_many("spec.contexts", len(spec.contexts), _MOST_CONTEXTS, "contexts")
    for index, context in enumerate(spec.contexts[: _MOST_CONTEXTS + 1]):
        check_template(out, f"spec.contexts[{index}]", context)
    named = [(f"spec.contexts[{index}].name", context.name) for index, context in enumerate(spec.contexts)]
    checks.check_unique(out, [(field, name) for field, name in named if name])
    _check_published(out, spec)
    checks.check_labels(out, "spec.nodeSelector", spec.node_selector)
    if spec.colocate_with is not None:
        _check_selector(out, "spec.colocateWith", spec.colocate_with)
        if not spec.colocate_with.match_labels:
            out.required("spec.colocateWith.matchLabels", "must name at least one label")
    _check_network(out, "spec.network", spec.network)
    checks.check_range(out, "spec.terminationGracePeriodSeconds", spec.termination_grace_period_seconds, 0, _LONGEST_S)
    if spec.replication is not None:
        volume_rules.check_replication(out, "spec.replication", spec.replication)
    if spec.recovery is not None:
        checks.check_range(out, "spec.recovery.priority", spec.recovery.priority, -_MOST_PRIORITY, _MOST_PRIORITY)


def check_context(out: Problems, spec: ContextSpec) -> None:
    """A context's spec. A box or fork has no lifeform, any other says which one it is of."""
    if spec.lifeform or spec.lifeform_uid or not (spec.parent or spec.from_template):
        checks.check_label(out, "spec.lifeform", spec.lifeform)
        if not spec.lifeform_uid:
            out.required("spec.lifeformUid")
    for field, name in (("spec.parent", spec.parent), ("spec.fromTemplate", spec.from_template), ("spec.volume", spec.volume)):
        if name:
            checks.check_subdomain(out, field, name)
    if bool(spec.parent) != bool(spec.parent_uid):
        out.required("spec.parentUid" if spec.parent else "spec.parent", "a fork has both parent and parentUid")
    if bool(spec.volume) != bool(spec.volume_uid):
        out.required("spec.volumeUid" if spec.volume else "spec.volume", "a context with data has both volume and volumeUid")
    if spec.expires_at:
        checks.check_time(out, "spec.expiresAt", spec.expires_at)
    checks.check_label(out, "spec.node", spec.node)
    check_template(out, "spec.template", spec.template)
    _check_network(out, "spec.network", spec.network)
    checks.check_labels(out, "spec.lifeformLabels", spec.lifeform_labels)
    checks.check_range(out, "spec.terminationGracePeriodSeconds", spec.termination_grace_period_seconds, 0, _LONGEST_S)
    checks.check_range(out, "spec.epoch", spec.epoch, 0, 2**53)
    checks.check_range(out, "spec.depth", spec.depth, 0, 1000)


def check_template(out: Problems, field: str, context: ContextTemplate) -> None:
    """One context of a lifeform."""
    checks.check_label(out, f"{field}.name", context.name)
    checks.check_command(out, f"{field}.command", context.command, first=True)
    checks.check_command(out, f"{field}.args", context.args)
    check_surroundings(out, field, context)
    _check_ports(out, f"{field}.ports", context.ports)
    if context.readiness_probe is not None:
        _check_probe(out, f"{field}.readinessProbe", context.readiness_probe)
    _check_secrets(out, f"{field}.secrets", context)
    if context.data is not None:
        places = tuple(secret.mount_path for secret in context.secrets)
        volume_rules.check_data(out, f"{field}.data", context.data, places)


def check_surroundings(out: Problems, field: str, of: ContextTemplate | TemplateSpec) -> None:
    """What a program runs in, the same for a context and a template: image, environment, folder, user and size."""
    if not of.image:
        out.required(f"{field}.image", "must name an Image, or an OCI reference")
    checks.check_word(out, f"{field}.image", of.image, _LONGEST_IMAGE)
    _check_env(out, f"{field}.env", of.env)
    if of.working_dir:
        checks.check_path(out, f"{field}.workingDir", of.working_dir)
    if of.user:
        checks.check_user(out, f"{field}.user", of.user)
    if of.lifecycle is not None and of.lifecycle.post_fork is not None:
        checks.check_command(out, f"{field}.lifecycle.postFork.exec.command", of.lifecycle.post_fork.exec.command, first=True)
    checks.check_cores(out, f"{field}.resources.cpu", of.resources.cpu, _MOST_CORES)
    checks.check_bytes(out, f"{field}.resources.memory", of.resources.memory, LEAST_MEMORY, MOST_MEMORY)


def _check_env(out: Problems, field: str, env: tuple[EnvVar, ...]) -> None:
    out.too_many(field, len(env), _MOST_VARIABLES, "variables")
    for index, variable in enumerate(env):
        checks.check_env_name(out, f"{field}[{index}].name", variable.name)
        checks.check_text(out, f"{field}[{index}].value", variable.value, _LONGEST_VALUE)
    names = ((f"{field}[{index}].name", variable.name) for index, variable in enumerate(env))
    checks.check_unique(out, names)


def _check_ports(out: Problems, field: str, ports: tuple[Port, ...]) -> None:
    out.too_many(field, len(ports), _MOST_PORTS, "ports")
    for index, port in enumerate(ports):
        checks.check_port(out, f"{field}[{index}].containerPort", port.container_port)
        if port.name:
            checks.check_label(out, f"{field}[{index}].name", port.name)
        if port.publish:
            checks.check_port(out, f"{field}[{index}].publish", port.publish)
        if port.protocol != "TCP":
            out.found.append(_unsupported_protocol(f"{field}[{index}].protocol", port.protocol))
    checks.check_unique(out, ((f"{field}[{i}].containerPort", port.container_port) for i, port in enumerate(ports)))
    checks.check_unique(out, ((f"{field}[{i}].name", port.name) for i, port in enumerate(ports) if port.name))


def _check_published(out: Problems, spec: LifeformSpec) -> None:
    """A published port leads to one context."""
    published = [
        (f"spec.contexts[{i}].ports[{j}].publish", port.publish)
        for i, context in enumerate(spec.contexts)
        for j, port in enumerate(context.ports)
        if port.publish
    ]
    out.too_many("spec.contexts", len(published), _MOST_PUBLISHED, "published ports")
    checks.check_unique(out, published)


def _check_probe(out: Problems, field: str, probe: Probe) -> None:
    actions = [probe.tcp_socket, probe.exec, probe.http_get]
    count = sum(action is not None for action in actions)
    if count != 1:
        out.invalid(field, f"has {count or 'none'} of tcpSocket, exec and httpGet, and should have exactly one")
    if probe.tcp_socket is not None:
        checks.check_port(out, f"{field}.tcpSocket.port", probe.tcp_socket.port)
    if probe.exec is not None:
        checks.check_command(out, f"{field}.exec.command", probe.exec.command, first=True)
    if probe.http_get is not None:
        checks.check_port(out, f"{field}.httpGet.port", probe.http_get.port)
        if not probe.http_get.path.startswith("/"):
            out.invalid(f"{field}.httpGet.path", f"{show(probe.http_get.path)} does not begin with '/'")
        checks.check_word(out, f"{field}.httpGet.path", probe.http_get.path, 1024)
    checks.check_range(out, f"{field}.initialDelaySeconds", probe.initial_delay_seconds, 0, _LONGEST_S)
    checks.check_range(out, f"{field}.periodSeconds", probe.period_seconds, 0.1, _LONGEST_S)
    checks.check_range(out, f"{field}.timeoutSeconds", probe.timeout_seconds, 0.1, _LONGEST_S)
    checks.check_range(out, f"{field}.successThreshold", probe.success_threshold, 1, 100)
    checks.check_range(out, f"{field}.failureThreshold", probe.failure_threshold, 1, 1000)


def _check_secrets(out: Problems, field: str, context: ContextTemplate) -> None:
    out.too_many(field, len(context.secrets), _MOST_SECRETS, "secrets")
    for index, secret in enumerate(context.secrets):
        checks.check_subdomain(out, f"{field}[{index}].name", secret.name)
        place = f"{field}[{index}].mountPath"
        checks.check_path(out, place, secret.mount_path)
        if secret.mount_path == "/" or any(_within(secret.mount_path, taken) for taken in _TAKEN_PATHS):
            out.invalid(place, f"{show(secret.mount_path)} belongs to the system; choose another, as /run/secrets")
    places = ((f"{field}[{index}].mountPath", secret.mount_path) for index, secret in enumerate(context.secrets))
    checks.check_unique(out, places)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _check_network(out: Problems, field: str, network: LifeformNetwork) -> None:
    out.too_many(f"{field}.allowFrom", len(network.allow_from), _MOST_PEERS, "peers")
    for index, peer in enumerate(network.allow_from):
        for name, selector in (("namespaceSelector", peer.namespace_selector), ("podSelector", peer.pod_selector)):
            if selector is not None:
                _check_selector(out, f"{field}.allowFrom[{index}].{name}", selector)


def _check_selector(out: Problems, field: str, selector: LabelSelector) -> None:
    checks.check_labels(out, f"{field}.matchLabels", selector.match_labels)


def _unsupported_protocol(field: str, protocol: str) -> Problem:
    return Problem(field, f"{show(protocol)} is not supported, only TCP is", "FieldValueNotSupported")
