"""`run`: one lifeform of one context, made from flags, and attached to unless `-d`. A command alone gets a box (box.py).

Attached means: without -i and -t its output until its program ends, whose exit code is ours; with them a command of its
own beside a program that only waits, so that a shell has a terminal and the microVM does not end with it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from argparse import Namespace
from typing import Any

from primordia.cli import box, inside, printing
from primordia.cli.output import Progress
from primordia.cli.pairs import pair
from primordia.cli.session import Inside, client
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.kit import ids
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
from primordia.wire.meta import API_VERSION, LABEL_CONTEXT, LABEL_LIFEFORM, LABEL_RACK, LABEL_SEGMENT
from primordia.wire.resources import Context, Lifeform

CONTEXT = "main"
_LONGEST_NAME = 50
_WAITING = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]


async def run(options: Namespace) -> int:
    """Start it and attach to it; where a box will do, that is quicker."""
    if box.wants_box(options):
        return await box.run(options)
    if options.ttl:
        raise PermanentError("Only boxes have a --ttl.", remedy="Say --template T, or --rm IMAGE -- COMMAND.")
    attached_exec = not options.detach and (options.stdin or options.tty)
    if options.detach and options.rm:
        raise PermanentError("--detach and --rm exclude each other.", remedy="Delete it later with `primordia delete lf NAME`.")
    manifest = manifest_of(options, waiting=attached_exec)
    if options.dry_run:
        printing.print_plain(manifest, "yaml")
        return 0
    name = manifest["metadata"]["name"]
    async with client(options) as soup:
        await soup.create_manifest(_placed(manifest, options.namespace or soup.namespace))
        try:
            if options.detach:
                await _started(soup, name, options, until=answers.ready)
                print(name if options.quiet else f"lifeform/{name} is running")
                return 0
            if attached_exec:
                return await _shell(soup, name, options)
            return await _program(soup, name, options)
        finally:
            if options.rm:
                await asyncio.shield(_removed(soup, name, options.namespace))


# ---------------------------------------------------------------- the manifest


def manifest_of(options: Namespace, *, waiting: bool) -> dict[str, Any]:
    """The manifest that the flags describe; `waiting` gives it a program that only waits. Raises PermanentError."""
    context: dict[str, Any] = {
        "name": CONTEXT,
        "image": options.image,
        "resources": {"cpu": options.cpus, "memory": options.memory},
    }
    if waiting:
        context["command"] = _WAITING
    elif options.program:
        context["args"] = options.program
    if options.env:
        context["env"] = [dict(zip(("name", "value"), pair(text, "--env"), strict=True)) for text in options.env]
    if options.publish:
        context["ports"] = [_port(text) for text in options.publish]
    if options.data:
        context["data"] = _data(options.data)
    if options.secret:
        context["secrets"] = [_secret(text) for text in options.secret]
    spec: dict[str, Any] = {
        "contexts": [context],
        "restartPolicy": options.restart or ("Always" if options.detach else "Never"),
    }
    if options.mirror is not None:
        if not options.data:
            raise PermanentError("--mirror counts copies of data, and there is none.", remedy="Say --data SIZE too.")
        spec["replication"] = {"layout": {"mirror": options.mirror}}
    selector = {key: value for key, value in ((LABEL_RACK, options.rack), (LABEL_SEGMENT, options.segment)) if value}
    if selector:
        spec["nodeSelector"] = selector
    if options.egress:
        spec["network"] = {"egress": True}
    metadata: dict[str, Any] = {"name": options.name or default_name(options.image)}
    if options.label:
        metadata["labels"] = dict(pair(text, "--label") for text in options.label)
    return {"apiVersion": API_VERSION, "kind": Lifeform.KIND, "metadata": metadata, "spec": spec}


def default_name(image: str) -> str:
    """A name from an image's: its last part, and a suffix so that it is free."""
    last = re.split(r"[/]", image.partition("@")[0].rstrip("/"))[-1].partition(":")[0].lower()
    clean = re.sub(r"[^a-z0-9]+", "-", last).strip("-")[:_LONGEST_NAME].rstrip("-")
    return f"{clean or 'lifeform'}-{ids.suffix()}"


def _port(text: str) -> dict[str, int]:
    publish, _, inner = text.partition(":")
    if not (publish.isdecimal() and inner.isdecimal() and 0 < int(publish) < 65536 and 0 < int(inner) < 65536):
        raise PermanentError(
            f"--publish {text!r} is no PORT:PORT.", remedy="Write the node's port, a colon, the context's port."
        )
    return {"containerPort": int(inner), "publish": int(publish)}


def _data(text: str) -> dict[str, str]:
    size, colon, path = text.partition(":")
    if not size or (colon and not path.startswith("/")):
        raise PermanentError(
            f"--data {text!r} is no SIZE[:PATH].", remedy="Write a size as 1Gi, a colon, the absolute path to mount it at."
        )
    return {"size": size, "mountPath": path} if colon else {"size": size}


def _secret(text: str) -> dict[str, str]:
    name, _, path = text.partition(":")
    if not name or not path.startswith("/"):
        raise PermanentError(
            f"--secret {text!r} is no NAME:PATH.", remedy="Write a Secret's name, a colon, an absolute folder."
        )
    return {"name": name, "mountPath": path}


def _placed(manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}


# ---------------------------------------------------------------- attach


async def _started(soup: AsyncClient, name: str, options: Namespace, *, until: answers.Until) -> None:
    """Wait for it, saying what it is about; one that cannot run as it is ends the wait at once. Raises PermanentError."""

    def reached(obj: Lifeform | None) -> bool:
        if until(obj):
            return True
        if obj is not None and (problem := trouble(obj)):
            raise PermanentError(f"Lifeform {name} does not run: {problem}", remedy=f"See `primordia describe lf {name}`.")
        if obj is not None:
            progress(f"start {name}: {_state(obj)}")
        return False

    with Progress(quiet=options.quiet) as progress:
        progress(f"start {name}")
        await soup.wait(Lifeform, name, reached, namespace=options.namespace, timeout_s=options.timeout)


def trouble(obj: Lifeform) -> str:
    """Why it does not run and will not soon, in a sentence; empty while it may."""
    if obj.status.phase == "Failed":
        return next((each.message for each in obj.status.contexts if each.message), "its program failed.")
    return next((each.message for each in obj.status.contexts if each.phase == "BackOff" and each.message), "")


def _state(obj: Lifeform) -> str:
    first = next(iter(obj.status.contexts), None)
    if first is None:
        return obj.status.phase
    return f"{first.phase}, {first.message}" if first.message else first.phase


async def _shell(soup: AsyncClient, name: str, options: Namespace) -> int:
    try:
        await _started(soup, name, options, until=answers.phase("Running"))
    except PermanentError as error:
        raise (without_shell(error.message, options.image) or error) from error
    command = options.program or ["/bin/sh"]
    status = await inside.attach(
        soup, Inside(name), command, stdin=options.stdin, terminal=options.tty, namespace=options.namespace
    )
    if not options.rm and not options.quiet:
        print(f"lifeform/{name} goes on; delete it with: primordia delete lf {name}", file=sys.stderr)
    return status


def without_shell(message: str, image: str) -> PermanentError | None:
    """What to say instead when what failed is the waiting program of ours, of which the user knows nothing."""
    if f"{_WAITING[0]} cannot be started" not in message:
        return None
    return PermanentError(
        f"Image {image} has no {_WAITING[0]}, which `run` with -i or -t needs: it waits beside your command.",
        remedy=f"Start the image's own program with `primordia run -d --name NAME {image}`, "
        "then use `primordia exec -it NAME -- COMMAND`.",
    )


_OVER = answers.phase("Succeeded", "Failed")


async def _program(soup: AsyncClient, name: str, options: Namespace) -> int:
    """Its output, then its exit code."""
    await _started(soup, name, options, until=answers.phase("Running", "Succeeded", "Failed"))
    async for chunk in soup.logs(name, namespace=options.namespace, follow=options.restart in ("", "Never")):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    await soup.wait(Lifeform, name, _OVER, namespace=options.namespace, timeout_s=options.timeout)
    context = await context_of(soup, name, options.namespace)
    code, message = context.status.exit_code, context.status.message
    if code is None:
        raise PermanentError(f"Lifeform {name} did not run: {message or context.status.reason}")
    if code and message and not message.startswith("Exit code"):
        print(f"error: {message}", file=sys.stderr)
    return code


async def context_of(soup: AsyncClient, lifeform: str, namespace: str, context: str = "") -> Context:
    """A lifeform's context, by default its only one. Raises NotFoundError."""
    labels = f"{LABEL_LIFEFORM}={lifeform}" + (f",{LABEL_CONTEXT}={context}" if context else "")
    found = (await soup.list(Context, namespace=namespace, labels=labels)).items
    if not found:
        raise NotFoundError(f"Lifeform {lifeform} has no context {context}".rstrip() + ".", remedy="Is it suspended?")
    return found[0]


async def _removed(soup: AsyncClient, name: str, namespace: str) -> None:
    try:
        await soup.delete(Lifeform, name, namespace=namespace)
        await soup.wait(Lifeform, name, answers.deleted, namespace=namespace, timeout_s=60)
    except NotFoundError:
        return
    except PrimordiaError as error:
        print(f"warning: lifeform/{name} is not gone yet: {error}", file=sys.stderr)
