"""The pure parts of the API: paths, queries, media types, roles, errors, splicing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primordia.api.auth import ADMINS, NODES, User, authorize, guard_change, user_of
from primordia.api.errors import RequestError, status_of
from primordia.api.listing import Token, decode_token, encode_token
from primordia.api.negotiate import body_is_yaml, patch_is_merge, wants_table
from primordia.api.objects import list_json, with_version
from primordia.api.paths import STREAMS, Target, dry_run, field_validation, list_query, parse
from primordia.kit.errors import (
    AlreadyExistsError,
    CapacityError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermanentError,
    TemporaryError,
)
from primordia.ports.guest import GuestError, GuestGoneError
from primordia.ports.store import CompactedError, StoreUnavailableError
from primordia.registry.codec import encode
from primordia.wire.meta import ObjectMeta
from primordia.wire.problems import InvalidResourceError, Problem
from primordia.wire.resources import (
    Context,
    ContextTemplate,
    Event,
    Lifeform,
    LifeformSpec,
    Node,
    NodeSpec,
    Port,
    Resource,
    Soup,
)

ROOT = "/apis/primordia.dev/v1alpha1"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (f"{ROOT}/lifeforms", Target(Lifeform)),
        (f"{ROOT}/namespaces/a/lifeforms", Target(Lifeform, "a")),
        (f"{ROOT}/namespaces/a/lifeforms/x", Target(Lifeform, "a", "x")),
        (f"{ROOT}/namespaces/a/lifeforms/x/status", Target(Lifeform, "a", "x", "status")),
        (f"{ROOT}/namespaces/a/contexts/x.y/exec", Target(Context, "a", "x.y", "exec")),
        (f"{ROOT}/nodes/n%31", Target(Node, "", "n1")),
        (f"{ROOT}/nodes/n1/orphans", Target(Node, "", "n1", "orphans")),
        (f"{ROOT}/lifeforms/x/orphans", None),
        ("/internal/v1/volumes/orphans", Target(Node, subresource="orphans", here=True)),
        ("/api/v1/namespaces/a/events/e", Target(Event, "a", "e")),
        ("/api/v1/events", Target(Event)),
    ],
)
def test_paths(path: str, target: Target | None) -> None:
    assert parse(path) == target


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/api",
        "/api/v1",
        "/api/v1/namespaces",
        "/api/v1/namespaces/a",
        "/api/v1/lifeforms",
        f"{ROOT}/events",
        f"{ROOT}/nonesuch",
        f"{ROOT}/lifeforms/x",
        f"{ROOT}/lifeforms/",
        f"{ROOT}/namespaces/a/nodes/n",
        f"{ROOT}/namespaces/a/lifeforms/",
        f"{ROOT}/namespaces/a/lifeforms/x/nonesuch",
        f"{ROOT}/namespaces/a/lifeforms/x/status/y",
        f"{ROOT}/namespaces/a/secrets/x/status",
        f"{ROOT}/nodes/n/exec",
        f"{ROOT}/namespaces/a/lifeforms/x%2Fy",
        f"{ROOT}/namespaces/a/lifeforms/x%00y",
        "/apis/primordia.dev/v2/lifeforms",
    ],
)
def test_paths_that_name_nothing(path: str) -> None:
    assert parse(path) is None


def test_a_namespace_that_cannot_be() -> None:
    with pytest.raises(RequestError) as caught:
        parse(f"{ROOT}/namespaces/a%2Fb/lifeforms")
    assert caught.value.code == 404


@given(
    st.lists(
        st.sampled_from(["apis", "api", "v1", "primordia.dev", "v1alpha1", "namespaces", "lifeforms", "x", "", "%2F", "%"])
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_path_is_parsed_or_refused(parts: list[str]) -> None:
    try:
        target = parse("/" + "/".join(parts))
    except RequestError:
        return
    assert target is None or target.methods()


def test_queries() -> None:
    asked = {"labelSelector": "a=b", "limit": "5", "resourceVersion": "7", "watch": "1", "allowWatchBookmarks": "true"}
    query = list_query(asked)
    assert (query.labels, query.limit, query.revision, query.watch, query.bookmarks) == ("a=b", 5, 7, True, True)
    assert list_query({}).watch is False
    assert list_query({"watch": ""}).watch is True
    assert field_validation({}) == field_validation({"fieldValidation": ""}) == "Strict"
    assert dry_run({"dryRun": "All"}) is True
    for bad in ({"limit": "-1"}, {"limit": "x"}, {"resourceVersion": "9" * 30}, {"watch": "maybe"}, {"limit": "٣"}):
        with pytest.raises(RequestError, match=next(iter(bad))):
            list_query(bad)
    with pytest.raises(RequestError, match="dryRun"):
        dry_run({"dryRun": "Some"})


@pytest.mark.parametrize(
    ("accept", "table"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        (
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            True,
        ),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", False),
        ("application/vnd.kubernetes.protobuf,application/json", False),
        ("application/json;q=0.5", False),
    ],
)
def test_what_is_accepted(accept: str, table: bool) -> None:
    assert wants_table(accept) is table


def test_media_types_that_are_not_ours() -> None:
    with pytest.raises(RequestError) as refused:
        wants_table("application/vnd.kubernetes.protobuf")
    assert refused.value.code == 406
    assert body_is_yaml("application/yaml")
    assert not body_is_yaml("application/octet-stream")
    assert patch_is_merge("application/merge-patch+json")
    assert not patch_is_merge("application/json-patch+json")
    for kind in ("application/strategic-merge-patch+json", "application/apply-patch+yaml", "text/plain"):
        with pytest.raises(RequestError, match="merge-patch") as caught:
            patch_is_merge(kind)
        assert caught.value.code == 415
    with pytest.raises(RequestError):
        body_is_yaml("image/png")


# ---------------------------------------------------------------- roles

ADMIN, NODE = User("a", frozenset([ADMINS])), User("n", frozenset([NODES]))


def test_who_a_certificate_names() -> None:
    cert = {"subject": ((("commonName", "ada"),), (("organizationName", ADMINS),), (("organizationName", "x"),))}
    assert user_of(cert) == User("ada", frozenset([ADMINS, "x"]))
    for bad, code in ((None, 401), ({}, 401), ({"subject": ((("commonName", "eve"),),)}, 403)):
        with pytest.raises(RequestError) as caught:
            user_of(bad)
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", Target(Context, "d", "x"), True),
        ("DELETE", Target(Context, "d", "x"), True),
        ("POST", Target(Context, "d"), False),
        ("PUT", Target(Context, "d", "x"), False),
        ("PATCH", Target(Context, "d", "x", "status"), False),
        ("GET", Target(Context, "d", "x", "exec"), True),
        ("POST", Target(Context, "d", "x", "exec"), True),
        ("PUT", Target(Context, "d", "x", "files"), True),
        ("POST", Target(Node), False),
        ("PATCH", Target(Node, "", "n"), True),
        ("PUT", Target(Node, "", "n", "status"), False),
        ("DELETE", Target(Soup, "", "soup"), False),
        ("POST", Target(Lifeform, "d"), True),
        ("PUT", Target(Lifeform, "d", "x", "status"), True),
    ],
)
def test_what_users_may(method: str, target: Target, allowed: bool) -> None:
    if target.subresource not in STREAMS:
        authorize(NODE, method, target)
    if allowed:
        authorize(ADMIN, method, target)
        return
    with pytest.raises(RequestError) as caught:
        authorize(ADMIN, method, target)
    assert caught.value.code == 403


def test_nodes_reach_into_contexts_by_their_own_path_and_nobody_else_does() -> None:
    internal = parse("/internal/v1/contexts/123-abc/exec")
    assert internal == Target(Context, subresource="exec", uid="123-abc")
    assert internal.methods() == STREAMS["exec"]
    authorize(NODE, "GET", internal)
    with pytest.raises(RequestError, match="for the soup's nodes alone"):
        authorize(ADMIN, "GET", internal)
    for subresource in STREAMS:
        with pytest.raises(RequestError, match="by uid"):
            authorize(NODE, "GET", Target(Context, "d", "x", subresource))
    for path in ("", "/x", "/x/status", "/x/exec/y", "//exec", "/a%2Fb/exec"):
        assert parse("/internal/v1/contexts" + path) is None


def test_what_users_may_change_of_a_node() -> None:
    old = Node(metadata=ObjectMeta(name="n"), spec=NodeSpec(pod_cidr="10.0.0.0/24"))
    cordoned = msgspec.structs.replace(old, spec=NodeSpec(pod_cidr="10.0.0.0/24", unschedulable=True))
    guard_change(ADMIN, old, cordoned)
    moved = msgspec.structs.replace(old, spec=NodeSpec(pod_cidr="10.9.0.0/24"))
    guard_change(NODE, old, moved)
    with pytest.raises(RequestError):
        guard_change(ADMIN, old, moved)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (RequestError(413, "x"), 413, "RequestEntityTooLarge"),
        (NotFoundError("x"), 404, "NotFound"),
        (AlreadyExistsError("x"), 409, "AlreadyExists"),
        (ConflictError("x"), 409, "Conflict"),
        (InvalidError("f", "x"), 422, "Invalid"),
        (CapacityError("x"), 422, "InsufficientCapacity"),
        (CompactedError("x"), 410, "Expired"),
        (StoreUnavailableError("x"), 503, "ServiceUnavailable"),
        (GuestGoneError("x"), 503, "ServiceUnavailable"),
        (GuestError("x", reason="ENOENT"), 404, "NotFound"),
        (GuestError("x", reason="EACCES"), 422, "Invalid"),
        (TemporaryError("x", retry_after_s=7), 503, "ServiceUnavailable"),
        (PermanentError("x"), 422, "Invalid"),
        (TimeoutError(), 504, "Timeout"),
    ],
)
def test_errors_as_status(error: Exception, code: int, reason: str) -> None:
    status = status_of(error, Lifeform, "shop")
    assert (status.code, status.reason, status.status) == (code, reason, "Failure")
    assert status.message
    assert status.details is not None
    assert (status.details.kind, status.details.name) == ("lifeforms", "shop")


def test_a_bug_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    status = status_of(ValueError("secret detail"))
    assert status.code == 500
    assert "secret detail" not in status.message
    assert "secret detail" in caplog.text


def test_causes_name_fields_as_kubectl_prints_them() -> None:
    error = InvalidResourceError(
        "Lifeform", "shop", [Problem("spec.x", "is wrong"), Problem("spec.y", "is missing", "FieldValueRequired")]
    )
    details = status_of(error, Lifeform).details
    assert details is not None
    assert (details.kind, details.name) == ("Lifeform", "shop")
    assert [(each.field, each.reason) for each in details.causes] == [
        ("spec.x", "FieldValueInvalid"),
        ("spec.y", "FieldValueRequired"),
    ]
    after = status_of(TemporaryError("x", retry_after_s=7)).details
    assert after is not None
    assert after.retry_after_seconds == 7


# ---------------------------------------------------------------- bytes


def _lifeform(name: str = "shop", namespace: str = "default", **ports: int) -> Lifeform:
    contexts = [
        ContextTemplate(name=key, image="x", ports=(Port(container_port=1, publish=port),)) for key, port in ports.items()
    ]
    return Lifeform(metadata=ObjectMeta(name=name, namespace=namespace), spec=LifeformSpec(contexts=tuple(contexts)))


@pytest.mark.parametrize("obj", [_lifeform(), Node(metadata=ObjectMeta(name="n")), Event(metadata=ObjectMeta(name="e"))])
def test_splicing_gives_what_decoding_gives(obj: Resource) -> None:
    stored = encode(obj)
    spliced = with_version(type(obj), stored, 42)
    assert spliced is not None
    expected = msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, resource_version="42"))
    assert msgspec.json.decode(spliced, type=type(obj)) == expected


def test_splicing_of_foreign_bytes() -> None:
    other_order = b'{"metadata": {"name": "n"}, "kind": "Node"}'
    spliced = with_version(Node, other_order, 7)
    assert spliced is not None
    assert msgspec.json.decode(spliced, type=Node).metadata.resource_version == "7"
    assert with_version(Node, b'{"kind":"Node","metadata":{}}', 7) is not None
    assert with_version(Node, b"{", 7) is None


def test_list_json() -> None:
    body = msgspec.json.decode(list_json(Node, [b'{"a":1}', b'{"b":2}'], 9, "t", 3))
    assert body == {
        "kind": "NodeList",
        "apiVersion": "primordia.dev/v1alpha1",
        "metadata": {"resourceVersion": "9", "continue": "t", "remainingItemCount": 3},
        "items": [{"a": 1}, {"b": 2}],
    }


def test_tokens() -> None:
    text = encode_token(Token(5, "/primordia/lifeforms/a/b"))
    assert decode_token(text, "/primordia/lifeforms/") == Token(5, "/primordia/lifeforms/a/b")
    for bad in ("", "x", "ü", "!!!!", text[:-3], encode_token(Token(0, "/primordia/lifeforms/x"))):
        with pytest.raises(RequestError):
            decode_token(bad, "/primordia/lifeforms/")
    with pytest.raises(RequestError, match="another list"):
        decode_token(text, "/primordia/secrets/")
