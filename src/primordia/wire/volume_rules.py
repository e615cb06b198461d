"""What a volume's spec may hold, and a lifeform's `data` and `replication`, which become one."""

from __future__ import annotations

import contextlib

from primordia.domain.lifeforms import context_object_name
from primordia.kit.units import parse_bytes, parse_duration_s
from primordia.wire import checks
from primordia.wire.problems import Problems, show
from primordia.wire.resources import Lifeform, LifeformSpec, Volume
from primordia.wire.volumes import Data, Replication, SnapshotPolicy, VolumeSpec

LEAST_SIZE = {"ext4": "16Mi", "xfs": "300Mi"}
"""mkfs.xfs makes nothing smaller."""
MOST_SIZE = "16Ti"
_MOST_COPIES = 16
_MOST_KEPT = 10_000
_LEAST_INTERVAL_S = 0.1
_MOST_INTERVAL_S = 7 * 86400.0
_LEAST_BANDWIDTH = "64Ki"
_MOST_BANDWIDTH = "1Ti"

_SYSTEM = ("/proc", "/sys", "/dev", "/run")
_PROGRAMS = ("/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr", "/usr/bin", "/usr/lib")


def uses(lifeform: Lifeform, volume: Volume) -> bool:
    """Whether the lifeform has, or is to have, this volume: they are called so, and nothing else binds them."""
    name, namespace = lifeform.metadata.name, lifeform.metadata.namespace
    wanted = {context_object_name(name, context) for context in _data_of(lifeform.spec)}
    return volume.metadata.namespace == namespace and volume.metadata.name in wanted


def lifeform_named_by(volume: Volume) -> str:
    """The lifeform that a volume of this name can be of; empty when it can be of none."""
    name, dot, _ = volume.metadata.name.partition(".")
    return name if dot else ""


def check_volume(out: Problems, spec: VolumeSpec) -> None:
    """A volume's spec."""
    _check_size(out, "spec.size", spec.size, spec.filesystem)
    for field, name in (("spec.lifeform", spec.lifeform), ("spec.context", spec.context)):
        if name:
            checks.check_label(out, field, name)
    if spec.context and not spec.lifeform:
        out.required("spec.lifeform", "must be given with spec.context")
    if spec.replication is not None:
        check_replication(out, "spec.replication", spec.replication)
    _check_snapshots(out, "spec.snapshots", spec.snapshots)


def check_data(out: Problems, field: str, data: Data, secrets: tuple[str, ...] = ()) -> None:
    """A context's data. `secrets` are the folders where its secrets are mounted."""
    _check_size(out, f"{field}.size", data.size, data.filesystem)
    path = data.mount_path
    checks.check_path(out, f"{field}.mountPath", path)
    if path in _PROGRAMS or any(_within(path, taken) for taken in _SYSTEM):
        out.invalid(
            f"{field}.mountPath", f"{show(path)} belongs to the system or the image's programs; choose another, as /data"
        )
    for secret in secrets:
        if _within(path, secret) or _within(secret, path):
            out.invalid(
                f"{field}.mountPath", f"{show(path)} and the secret's mountPath {show(secret)} are one inside the other"
            )
    _check_snapshots(out, f"{field}.snapshots", data.snapshots)


def check_replication(out: Problems, field: str, replication: Replication) -> None:
    """How copies are kept."""
    mirror = replication.layout.mirror
    if mirror is not None:
        checks.check_range(out, f"{field}.layout.mirror", mirror, 0, _MOST_COPIES)
    checks.check_range(out, f"{field}.acks", replication.acks, 1, _MOST_COPIES)
    if mirror is not None and 0 < mirror < replication.acks:
        out.invalid(f"{field}.acks", f"{replication.acks} is more than the {mirror} copies that layout.mirror asks for")
    if replication.interval:
        _check_interval(out, f"{field}.interval", replication.interval)
    if replication.bandwidth:
        checks.check_bytes(out, f"{field}.bandwidth", replication.bandwidth, _LEAST_BANDWIDTH, _MOST_BANDWIDTH)


def check_volume_change(out: Problems, old: Volume, new: Volume) -> None:
    """What a volume keeps."""
    _check_growth(out, "spec.size", old.spec.size, new.spec.size)
    _check_kept(out, "spec.filesystem", old.spec.filesystem, new.spec.filesystem)


def check_lifeform_change(out: Problems, old: Lifeform, new: Lifeform) -> None:
    """What the data of a lifeform keeps."""
    before = _data_of(old.spec)
    for index, context in enumerate(new.spec.contexts):
        was, data = before.get(context.name), context.data
        if was is not None and data is not None:
            field = f"spec.contexts[{index}].data"
            _check_growth(out, f"{field}.size", was.size, data.size)
            _check_kept(out, f"{field}.filesystem", was.filesystem, data.filesystem)
            _check_kept(out, f"{field}.mountPath", was.mount_path, data.mount_path)


def _data_of(spec: LifeformSpec) -> dict[str, Data]:
    return {context.name: context.data for context in spec.contexts if context.data is not None}


def _check_growth(out: Problems, field: str, before: str, after: str) -> None:
    with contextlib.suppress(ValueError):  # a bad quantity is told of by its own check
        if parse_bytes(after) < parse_bytes(before):
            out.forbidden(field, f"cannot shrink from {before} to {after}: a volume only grows")


def _check_kept(out: Problems, field: str, before: str, after: str) -> None:
    if before != after:
        out.forbidden(field, f"cannot change (it is {show(before)}) while the volume exists")


def _check_size(out: Problems, field: str, size: str, filesystem: str) -> None:
    checks.check_bytes(out, field, size, LEAST_SIZE[filesystem], MOST_SIZE)


def _check_snapshots(out: Problems, field: str, policy: SnapshotPolicy) -> None:
    _check_interval(out, f"{field}.interval", policy.interval)
    checks.check_range(out, f"{field}.last", policy.last, 1, _MOST_KEPT)
    checks.check_range(out, f"{field}.hourly", policy.hourly, 0, _MOST_KEPT)
    checks.check_range(out, f"{field}.daily", policy.daily, 0, _MOST_KEPT)


def _check_interval(out: Problems, field: str, text: str) -> None:
    try:
        seconds = parse_duration_s(text)
    except ValueError:
        out.invalid(field, f"{show(text)} is not a duration such as 500ms, 1s or 2m30s")
        return
    if not _LEAST_INTERVAL_S <= seconds <= _MOST_INTERVAL_S:
        out.invalid(field, f"{show(text)} is not between 100ms and 7 days")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
