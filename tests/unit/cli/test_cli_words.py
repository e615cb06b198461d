"""What people write on a command line, and what it means."""

from __future__ import annotations

import datetime
from argparse import ArgumentTypeError

import pytest

from primordia.cli import image, inside, objects, run, session, tree
from primordia.cli.describe import age, text_of
from primordia.client import answers
from primordia.kit.errors import PrimordiaError
from primordia.wire.meta import Condition, ObjectMeta
from primordia.wire.resources import (
    ContextSummary,
    ContextTemplate,
    Event,
    Image,
    Lifeform,
    LifeformSpec,
    LifeformStatus,
    Node,
    Secret,
)


def test_references_by_kind_and_by_pair() -> None:
    assert session.references("lf", ["a", "b"]) == [(Lifeform, "a"), (Lifeform, "b")]
    assert session.references("lifeform/a", ["node/n1"]) == [(Lifeform, "a"), (Node, "n1")]
    assert session.references("kbl,no", []) == [(Lifeform, ""), (Node, "")]


@pytest.mark.parametrize(("kind", "names"), [("lf/a", ["b"]), ("lf/", []), ("lf/a/b", []), ("lf,no", ["a"]), ("lifefrom", [])])
def test_bad_references(kind: str, names: list[str]) -> None:
    with pytest.raises(PrimordiaError) as problem:
        session.references(kind, names)
    assert problem.value.remedy


def test_targets() -> None:
    assert session.inside("web") == session.Inside("web")
    assert session.inside("web/redis") == session.Inside("web", "redis")
    assert session.inside("lf/web", "redis") == session.Inside("web", "redis")
    assert session.inside("context/py-x7") == session.inside("ctx/py-x7") == session.Inside("py-x7", alone=True)
    assert session.inside("lf/context/a") == session.Inside("context", "a")
    for bad in ("", "web/", "web/a/b", "context/", "context/a/b"):
        with pytest.raises(PrimordiaError):
            session.inside(bad)
    with pytest.raises(PrimordiaError):
        session.inside("web/a", "b")


def test_places_of_cp() -> None:
    assert inside.place("web/redis:/data") == inside.Place("/data", session.Inside("web", "redis"))
    for here in ("/tmp/a:b", "./a:b", "plain", ".."):
        assert inside.place(here).inside is None
    with pytest.raises(PrimordiaError):
        inside.place("web:")


def test_paths_in_a_context_are_made_clean() -> None:
    assert [inside.clean(path) for path in ("/tmp/", "//a//b/../c/.", "/", "/..")] == ["/tmp", "/a/c", "/", "/"]
    with pytest.raises(PrimordiaError, match="not absolute"):
        inside.clean("tmp")


def test_what_follows_two_dashes_is_the_guests() -> None:
    options = tree.parse(["exec", "-it", "web", "--", "sh", "-c", "echo -- $0", "--", "-n"])
    assert (options.stdin, options.tty, options.program) == (True, True, ["sh", "-c", "echo -- $0", "--", "-n"])
    assert tree.parse(["run", "-d", "busybox", "--", "sleep", "9"]).program == ["sleep", "9"]


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("0.5", 0.5), ("2m", 120), ("500ms", 0.5), ("1h", 3600)])
def test_timeouts(text: str, seconds: float) -> None:
    assert tree.seconds(text) == seconds


def test_bad_timeout() -> None:
    with pytest.raises(ArgumentTypeError, match="not a duration"):
        tree.seconds("soon")


def test_run_flags_become_a_manifest() -> None:
    flags = "-d --name cache -p 16379:6379 -e A=b=c -l app=x --cpus 500m --memory 64Mi --rack r2"
    options = tree.parse(
        ["run", *flags.split(), "--secret", "pw:/run/secrets", "--egress", "redis", "--", "--maxmemory", "32mb"]
    )
    manifest = run.manifest_of(options, waiting=False)
    assert manifest["metadata"] == {"name": "cache", "labels": {"app": "x"}}
    (context,) = manifest["spec"]["contexts"]
    assert context == {
        "name": "main",
        "image": "redis",
        "resources": {"cpu": "500m", "memory": "64Mi"},
        "args": ["--maxmemory", "32mb"],
        "env": [{"name": "A", "value": "b=c"}],
        "ports": [{"containerPort": 6379, "publish": 16379}],
        "secrets": [{"name": "pw", "mountPath": "/run/secrets"}],
    }
    assert manifest["spec"]["restartPolicy"] == "Always"
    assert manifest["spec"]["nodeSelector"] == {"topology.primordia.dev/rack": "r2"}
    assert manifest["spec"]["network"] == {"egress": True}


def test_attached_programs_are_not_restarted() -> None:
    assert run.manifest_of(tree.parse(["run", "busybox"]), waiting=False)["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("flags", [["-p", "80"], ["-p", "0:80"], ["-p", "a:b"], ["-e", "A"], ["--secret", "pw"], ["-l", "=x"]])
def test_bad_run_flags(flags: list[str]) -> None:
    with pytest.raises(PrimordiaError) as problem:
        run.manifest_of(tree.parse(["run", *flags, "busybox"]), waiting=False)
    assert flags[1] in str(problem.value)
    assert problem.value.remedy


@pytest.mark.parametrize(
    ("reference", "start"),
    [
        ("redis", "redis-"),
        ("registry.example:5000/team/My_App:v2@sha256:00", "my-app-"),
        ("oci:/tmp/layout:x", "layout-"),
        ("!", "lifeform-"),
    ],
)
def test_default_names_are_valid(reference: str, start: str) -> None:
    name = run.default_name(reference)
    assert name.startswith(start)
    assert name.replace("-", "").isalnum()


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("redis", "redis"),
        ("host:5000/team/app:v2", "app-v2"),
        ("app:latest", "app"),
        ("oci:/tmp/layout:x", "layout-x"),
        ("a@sha256:00", "a"),
    ],
)
def test_image_names(reference: str, name: str) -> None:
    assert image.name_of(reference) == name


def test_conditions_to_wait_for() -> None:
    assert objects.parse_condition("delete")[0] is answers.deleted
    ready = Lifeform(
        metadata=ObjectMeta(name="a"),
        spec=LifeformSpec(contexts=()),
        status=LifeformStatus(phase="Running", conditions=(Condition(type="Ready", status="True"),)),
    )
    assert objects.parse_condition("condition=Ready")[0](ready)
    assert not objects.parse_condition("condition=Ready=False")[0](ready)
    assert objects.parse_condition("phase=Running")[0](ready)
    for bad in ("ready", "phase=", "condition"):
        with pytest.raises(PrimordiaError):
            objects.parse_condition(bad)


# ---------------------------------------------------------------- describe

NOW = datetime.datetime(2026, 1, 1, 12, 0, tzinfo=datetime.UTC)


def test_describe_tells_state_conditions_contexts_and_events() -> None:
    web = Lifeform(
        metadata=ObjectMeta(name="web", namespace="default", labels={"app": "web"}, creation_timestamp="2026-01-01T11:58:00Z"),
        spec=LifeformSpec(contexts=(ContextTemplate(name="redis", image="redis", args=("--port", "1")),)),
        status=LifeformStatus(
            phase="Running",
            node="n1",
            rack="r1",
            segment="s1",
            epoch=3,
            conditions=(Condition(type="Ready", status="True", last_transition_time="2026-01-01T11:59:00Z"),),
            contexts=(ContextSummary(name="redis", phase="Running", ready=True, ip="10.128.0.2"),),
        ),
    )
    event = Event(
        metadata=ObjectMeta(name="e"), reason="Started", message="booted\x1b[2J", last_timestamp="2026-01-01T11:59:30Z"
    )
    text = text_of(web, [event], NOW)
    for words in ("web", "app=web", "n1 rack r1 segment s1", "Ready", "10.128.0.2", "--port 1", "Started", "30s", "2m"):
        assert words in text, words
    assert "\x1b" not in text


def test_describe_shows_no_secret() -> None:
    text = text_of(Secret(metadata=ObjectMeta(name="pw", namespace="default"), data={"password": "aHVudGVyMg=="}), [], NOW)
    assert "aHVudGVyMg" not in text
    assert "password" in text


def test_describe_every_kind_of_emptiness() -> None:
    for obj in (Node(metadata=ObjectMeta(name="n1")), Image(metadata=ObjectMeta(name="i"), spec=_empty_image())):
        assert "Events: none" in text_of(obj, [], NOW)


def _empty_image():  # type: ignore[no-untyped-def]
    from primordia.wire.resources import DebianSource, ImageSpec

    return ImageSpec(debian=DebianSource(packages=("a",)))


def test_ages() -> None:
    assert age("2026-01-01T11:59:30Z", NOW) == "30s"
    assert age("", NOW) == age(None, NOW) == age("yesterday", NOW) == "unknown"


def test_a_terminal_in_an_image_without_a_shell_names_the_way_around() -> None:
    told = "Lifeform a does not run: /bin/sh cannot be started: The guest refused: No such file or directory."
    error = run.without_shell(told, "tiny")
    assert error is not None
    assert "tiny has no /bin/sh" in error.message
    assert "exec -it" in error.remedy
    assert run.without_shell("Lifeform a does not run: /bin/app cannot be started: No such file.", "tiny") is None
