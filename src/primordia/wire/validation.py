"""Whether an object may be stored: pure rules that find every problem and name its field.

`structure` has made sure of the types. Here are the values, the rules between them and, with the object as it was
(`old`), what must not change. Rules that need other objects (a published port in use) are the registry's claims.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from collections.abc import Callable
from typing import Any

import msgspec

from primordia.kit.units import human_bytes
from primordia.wire import checks, lifeform_rules, template_rules, volume_rules
from primordia.wire.meta import ObjectMeta
from primordia.wire.problems import InvalidResourceError, Problem, Problems, show
from primordia.wire.resources import (
    Context,
    Event,
    Image,
    Lifeform,
    Node,
    Resource,
    Secret,
    Soup,
    Template,
    Volume,
)

SOUP_NAME = "soup"
_LARGEST_SECRET_BYTES = 512 * 1024
_MOST_FINALIZERS = 32
_MOST_OWNERS = 32
_MOST_PACKAGES = 500
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9][A-Za-z0-9.+:~-]*)?")
_OCI = re.compile(
    r"([A-Za-z0-9.-]+(:[0-9]{1,5})?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_LONGEST_REFERENCE = 512
_LONGEST_MESSAGE = 4096


def check(obj: Resource, old: Resource | None = None) -> None:
    """Raise InvalidResourceError with every problem of the object, as the successor of `old` if there is one."""
    found = problems_of(obj, old)
    if found:
        raise InvalidResourceError(obj.KIND, obj.metadata.name, found)


def problems_of(obj: Resource, old: Resource | None = None) -> tuple[Problem, ...]:
    """Every problem of the object."""
    out = Problems()
    if getattr(obj, "api_version", obj.API_VERSION) != obj.API_VERSION:
        out.invalid("apiVersion", f"{show(getattr(obj, 'api_version', ''))} should be {show(obj.API_VERSION)}")
    _check_meta(out, obj)
    rule = _RULES.get(type(obj))
    if rule is not None:
        rule(out, obj)
    if old is not None:
        _check_changes(out, obj, old)
    return tuple(out.found)


# ---------------------------------------------------------------- metadata


def _check_meta(out: Problems, obj: Resource) -> None:
    meta = obj.metadata
    check_name = checks.check_label if isinstance(obj, Lifeform | Node | Template) else checks.check_subdomain
    if meta.name or not meta.generate_name:
        check_name(out, "metadata.name", meta.name)
    else:
        check_name(out, "metadata.generateName", meta.generate_name + "x" * 5)
    if obj.NAMESPACED:
        checks.check_label(out, "metadata.namespace", meta.namespace)
    elif meta.namespace:
        out.forbidden("metadata.namespace", f"a {obj.KIND} has no namespace")
    checks.check_labels(out, "metadata.labels", meta.labels)
    checks.check_annotations(out, "metadata.annotations", meta.annotations)
    out.too_many("metadata.finalizers", len(meta.finalizers), _MOST_FINALIZERS)
    for index, finalizer in enumerate(meta.finalizers):
        checks.check_key(out, f"metadata.finalizers[{index}]", finalizer)
    _check_owners(out, meta)


def _check_owners(out: Problems, meta: ObjectMeta) -> None:
    out.too_many("metadata.ownerReferences", len(meta.owner_references), _MOST_OWNERS)
    for index, owner in enumerate(meta.owner_references):
        field = f"metadata.ownerReferences[{index}]"
        for name, value in (("kind", owner.kind), ("name", owner.name), ("uid", owner.uid), ("apiVersion", owner.api_version)):
            if not value:
                out.required(f"{field}.{name}")
            checks.check_word(out, f"{field}.{name}", value, checks.SUBDOMAIN_LENGTH)
    if sum(owner.controller for owner in meta.owner_references) > 1:
        out.invalid("metadata.ownerReferences", "more than one owner is the controller")


# ---------------------------------------------------------------- kinds


def _check_lifeform(out: Problems, obj: Lifeform) -> None:
    lifeform_rules.check_lifeform(out, obj.spec)


def _check_context(out: Problems, obj: Context) -> None:
    lifeform_rules.check_context(out, obj.spec)


def _check_volume(out: Problems, obj: Volume) -> None:
    volume_rules.check_volume(out, obj.spec)


def _check_node(out: Problems, obj: Node) -> None:
    checks.check_word(out, "spec.podCIDR", obj.spec.pod_cidr, 64)
    until = obj.spec.maintenance.until if obj.spec.maintenance is not None else ""
    if until and not _is_moment(until):
        out.invalid("spec.maintenance.until", f"{show(until)} is no time with a zone, as 2030-01-31T12:00:00Z")


def _is_moment(text: str) -> bool:
    try:
        return datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _check_soup(out: Problems, obj: Soup) -> None:
    if obj.metadata.name != SOUP_NAME:
        out.invalid("metadata.name", f"there is one Soup, and its name is {show(SOUP_NAME)}")


def _check_image(out: Problems, obj: Image) -> None:
    spec = obj.spec
    if (spec.debian is None) == (spec.oci is None):
        out.invalid("spec", "must have exactly one of debian and oci")
    if spec.debian is not None:
        out.too_many("spec.debian.packages", len(spec.debian.packages), _MOST_PACKAGES, "packages")
        for index, package in enumerate(spec.debian.packages):
            if len(package) > checks.SUBDOMAIN_LENGTH or _PACKAGE.fullmatch(package) is None:
                out.invalid(f"spec.debian.packages[{index}]", f"{show(package)} is not the name of a Debian package")
    if spec.oci is not None:
        _check_reference(out, "spec.oci.reference", spec.oci.reference)
    config = spec.config
    checks.check_command(out, "spec.config.entrypoint", config.entrypoint)
    checks.check_command(out, "spec.config.cmd", config.cmd)
    for index, variable in enumerate(config.env):
        checks.check_env_name(out, f"spec.config.env[{index}].name", variable.name)
        checks.check_text(out, f"spec.config.env[{index}].value", variable.value, 32 * 1024)
    if config.working_dir:
        checks.check_path(out, "spec.config.workingDir", config.working_dir)
    checks.check_word(out, "spec.config.user", config.user, checks.SUBDOMAIN_LENGTH)


def _check_template(out: Problems, obj: Template) -> None:
    template_rules.check_template(out, obj.spec)


def _check_reference(out: Problems, field: str, reference: str) -> None:
    if not reference:
        out.required(field)
    elif len(reference) > _LONGEST_REFERENCE:
        out.invalid(field, f"is longer than {_LONGEST_REFERENCE}")
    elif reference.startswith("oci:"):
        checks.check_path(out, field, reference.removeprefix("oci:").partition(":")[0])
    elif _OCI.fullmatch(reference) is None:
        out.invalid(field, f"{show(reference)} is not of the form HOST[:PORT]/NAME[:TAG][@DIGEST], nor oci:FOLDER[:TAG]")


def _check_secret(out: Problems, obj: Secret) -> None:
    size = 0
    for key, value in obj.data.items():
        checks.check_file_name(out, "data", key)
        try:
            size += len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            out.invalid(f"data[{show(key)}]", "is not base64; text goes into stringData")
    for key, text in obj.string_data.items():
        checks.check_file_name(out, "stringData", key)
        size += len(text.encode())
    if size > _LARGEST_SECRET_BYTES:
        out.invalid("data", f"is {human_bytes(size)}, and at most {human_bytes(_LARGEST_SECRET_BYTES)} are accepted")
    checks.check_word(out, "type", obj.type, checks.SUBDOMAIN_LENGTH)


def _check_event(out: Problems, obj: Event) -> None:
    about = obj.involved_object
    if about.namespace and about.namespace != obj.metadata.namespace:
        out.invalid("involvedObject.namespace", f"{show(about.namespace)} is not the event's own namespace")
    checks.check_word(out, "reason", obj.reason, 128)
    checks.check_text(out, "message", obj.message, _LONGEST_MESSAGE)
    if obj.type not in ("Normal", "Warning"):
        out.invalid("type", f"{show(obj.type)} is not one of Normal, Warning")


_RULES: dict[type[Resource], Callable[[Problems, Any], None]] = {
    Lifeform: _check_lifeform,
    Context: _check_context,
    Volume: _check_volume,
    Node: _check_node,
    Soup: _check_soup,
    Image: _check_image,
    Template: _check_template,
    Secret: _check_secret,
    Event: _check_event,
}


# ---------------------------------------------------------------- changes

# What an object keeps for its whole life. Empty before, it may be given once.
_KEPT: dict[type[Resource], tuple[str, ...]] = {
    Context: ("lifeform", "lifeform_uid", "node", "parent", "parent_uid", "depth", "from_template"),
    Node: ("pod_cidr",),
    Soup: ("pod_cidr", "domain"),
}


def _check_changes(out: Problems, obj: Resource, old: Resource) -> None:
    for name in _KEPT.get(type(obj), ()):
        before, after = (getattr(each.spec, name) for each in (old, obj))  # type: ignore[attr-defined]  # all of these have one
        if name == "node" and isinstance(obj, Context) and isinstance(old, Context) and obj.spec.epoch > old.spec.epoch:
            continue  # its lifeform went to another node: by a move, or because this one had died
        if before and before != after:
            out.forbidden(
                f"spec.{_camel(old, name)}", f"cannot change (it is {show(before)}); delete the {obj.KIND} and create it anew"
            )
    if isinstance(obj, Lifeform) and isinstance(old, Lifeform):
        volume_rules.check_lifeform_change(out, old, obj)
    if isinstance(obj, Volume) and isinstance(old, Volume):
        volume_rules.check_volume_change(out, old, obj)
    if isinstance(obj, Secret) and isinstance(old, Secret) and obj.type != old.type:
        out.forbidden("type", f"cannot change (it is {show(old.type)}); delete the Secret and create it anew")


def _camel(obj: Any, name: str) -> str:
    fields = msgspec.structs.fields(type(obj.spec))
    return next(field.encode_name for field in fields if field.name == name)


def fold_string_data(secret: Secret) -> Secret:
    """A Secret with its `stringData` moved into `data`, as it is stored."""
    if not secret.string_data:
        return secret
    folded = {key: base64.b64encode(text.encode()).decode() for key, text in secret.string_data.items()}
    return msgspec.structs.replace(secret, data={**secret.data, **folded}, string_data={})
