"""`get apply delete wait events`: objects as such."""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from primordia.cli import manifests, printing
from primordia.cli.output import Progress
from primordia.cli.session import client, references
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.client.answers import Until
from primordia.client.templates import template_settled
from primordia.kit.errors import NotFoundError, PermanentError, PrimordiaError
from primordia.wire.resources import Event, Lifeform, Resource, Template, Volume


async def get(options: Namespace) -> int:
    """List objects or show some."""
    wanted = references(options.kind, options.names)
    where = printing.Where(options.namespace, options.all_namespaces, options.selector, options.field_selector)
    async with client(options) as soup:
        if options.watch:
            if len(wanted) != 1:
                raise PermanentError("Only one kind or object can be watched.", remedy="Leave out the others.")
            kind, name = wanted[0]
            await printing.watch(soup, kind, where.only(name), options.output, headers=not options.no_headers)
            return 0
        if options.output in ("json", "yaml", "name"):
            await printing.show_objects(soup, wanted, where, options.output)
        else:
            await printing.show_tables(soup, wanted, where, wide=options.output == "wide", headers=not options.no_headers)
    return 0


async def events(options: Namespace) -> int:
    """What happened, in the order in which it did."""
    fields = ""
    if options.about:
        ((kind, name),) = references(options.about, []) if "/" in options.about else [(Lifeform, options.about)]
        fields = f"involvedObject.kind={kind.KIND},involvedObject.name={name}"
    where = printing.Where(options.namespace, options.all_namespaces, "", fields)
    async with client(options) as soup:
        if options.watch:
            await printing.watch(soup, Event, where, options.output)
        elif options.output in ("json", "yaml", "name"):
            await printing.show_objects(soup, [(Event, "")], where, options.output)
        else:
            await printing.show_tables(soup, [(Event, "")], where, wide=options.output == "wide")
    return 0


# ---------------------------------------------------------------- apply


async def apply(options: Namespace) -> int:
    """Apply every manifest; the first that is refused ends it, naming its file."""
    found = manifests.load(options.filename)
    async with client(options) as soup:
        await apply_all(soup, found, options.namespace, dry_run=options.dry_run, output=options.output)
        if options.wait and not options.dry_run:
            with Progress() as progress:
                await wait_ready(soup, found, options.namespace, options.timeout, progress)
    return 0


async def apply_all(
    soup: AsyncClient, found: list[manifests.Manifest], namespace: str, *, dry_run: bool = False, output: str = "table"
) -> None:
    """Apply manifests in order and say what became of each."""
    done = []
    for manifest in found:
        check_namespace(manifest, namespace)
        try:
            applied = await soup.apply(manifest.content, namespace=manifest.namespace or namespace, dry_run=dry_run)
        except PrimordiaError as error:
            error.args = (f"{manifest.source}: {error.message}",)
            error.message = error.args[0]
            raise
        done.append(applied.object)
        if output in ("table", "wide"):
            name = f"{applied.object.KIND.lower()}/{applied.object.metadata.name}"
            print(f"{name} {applied.outcome}{' (dry run)' if dry_run else ''}", flush=True)
    if output in ("json", "yaml", "name"):
        printing.print_objects(done, output, as_list=len(done) != 1)


def check_namespace(manifest: manifests.Manifest, namespace: str) -> None:
    """A manifest's own namespace and the command line's must not contradict each other."""
    if namespace and manifest.namespace and manifest.namespace != namespace:
        raise PermanentError(
            f"{manifest.source}: metadata.namespace: {manifest.namespace!r} is not {namespace!r}.",
            remedy="Leave out --namespace, or change the manifest.",
        )


async def wait_ready(
    soup: AsyncClient, found: list[manifests.Manifest], namespace: str, timeout_s: float, progress: Callable[[str], None]
) -> None:
    """Wait until every lifeform and template among the manifests is as it wishes to be. Raises WaitTimeoutError."""
    deadline = time.monotonic() + timeout_s
    for manifest in found:
        left = max(0.1, deadline - time.monotonic())
        if manifest.kind is Lifeform:
            progress(f"wait for lifeform {manifest.name}")
            await soup.wait(Lifeform, manifest.name, settled, namespace=manifest.namespace or namespace, timeout_s=left)
        elif manifest.kind is Template:
            progress(f"wait for template {manifest.name}")
            await soup.wait(Template, manifest.name, template_settled, timeout_s=left)


def settled(obj: Lifeform | None) -> bool:
    """It is as its spec wants: ready, or suspended."""
    if obj is not None and obj.spec.operating_mode == "Suspended":
        return answers.phase("Suspended")(obj)
    return answers.ready(obj)


# ---------------------------------------------------------------- delete and wait


@dataclass(frozen=True)
class Found:
    """An object that exists, or may: its kind, namespace and name."""

    kind: type[Resource]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.KIND.lower()}/{self.name}"


async def delete(options: Namespace) -> int:
    """Delete by name, by manifest or by selector, and wait until all are gone."""
    async with client(options) as soup:
        doomed = await _doomed(soup, options)
        begun = []
        for found in doomed:
            try:
                await soup.delete(found.kind, found.name, namespace=found.namespace)
            except NotFoundError:
                if not options.ignore_not_found and not _selected(options):
                    raise
                continue
            begun.append(found)
        if options.wait:
            with Progress(quiet=options.quiet) as progress:
                progress(f"wait until {len(begun)} are gone" if len(begun) != 1 else f"wait until {begun[0]} is gone")
                await asyncio.gather(*(_gone(soup, found, options.timeout) for found in begun))
        if not options.quiet:
            for found in begun:
                print(f"{found} {'deleted' if options.wait else 'is being deleted'}")
    return 0


def _selected(options: Namespace) -> bool:
    return bool(options.selector or options.field_selector or options.all)


async def _doomed(soup: AsyncClient, options: Namespace) -> list[Found]:
    if options.filename:
        if options.kind or options.names or _selected(options):
            raise PermanentError("--filename says what to delete already.", remedy="Leave out kinds, names and selectors.")
        loaded = reversed(manifests.load(options.filename))
        doomed = [Found(each.kind, each.namespace or options.namespace, each.name) for each in loaded]
        for each in doomed:
            if each.kind is Volume:
                print(f"{each} stays: `primordia volume destroy {each.name}` deletes data", file=sys.stderr)
        return [each for each in doomed if each.kind is not Volume]
    if not options.kind:
        raise PermanentError("What is to be deleted?", remedy="Name KIND NAME, or --filename.")
    wanted = references(options.kind, options.names)
    if all(name for _, name in wanted):
        if _selected(options):
            raise PermanentError("Names and selectors exclude each other.", remedy="Leave one out.")
        return [Found(kind, options.namespace, name) for kind, name in wanted]
    if not _selected(options):
        raise PermanentError("This would delete everything of that kind.", remedy="Name objects, or say --all or --selector.")
    found = []
    for kind, _ in wanted:
        listed = await soup.list(
            kind,
            namespace=options.namespace,
            all_namespaces=options.all_namespaces,
            labels=options.selector,
            fields=options.field_selector,
        )
        found += [Found(kind, item.metadata.namespace, item.metadata.name) for item in listed.items]
    return found


async def _gone(soup: AsyncClient, found: Found, timeout_s: float) -> None:
    await soup.wait(found.kind, found.name, answers.deleted, namespace=found.namespace, timeout_s=timeout_s)


async def wait(options: Namespace) -> int:
    """Wait for a condition, a phase or the end of objects."""
    until, words = parse_condition(options.condition)
    wanted = references(options.kind, options.names)
    async with client(options) as soup:
        found = [Found(kind, options.namespace, name) for kind, name in wanted if name]
        for kind, name in wanted:
            if not name:
                listed = await soup.list(
                    kind,
                    namespace=options.namespace,
                    all_namespaces=options.all_namespaces,
                    labels=options.selector,
                    fields=options.field_selector,
                )
                found += [Found(kind, item.metadata.namespace, item.metadata.name) for item in listed.items]
        if not found and until is not answers.deleted:
            raise NotFoundError(f"There are no {wanted[0][0].PLURAL} to wait for.", remedy="Check names and selectors.")

        async def one(each: Found) -> None:
            await soup.wait(each.kind, each.name, until, namespace=each.namespace, timeout_s=options.timeout)
            print(f"{each} {words}", flush=True)

        with Progress(sys.stderr) as progress:
            progress(f"wait until {words}")
            await asyncio.gather(*(one(each) for each in found))
    return 0


def parse_condition(text: str) -> tuple[Until, str]:
    """What `--for` means, and the words for it when it came true. Raises PermanentError."""
    what, _, value = text.partition("=")
    if text == "delete":
        return answers.deleted, "deleted"
    if what == "phase" and value:
        return answers.phase(value), f"phase {value}"
    if what == "condition" and value:
        name, _, status = value.partition("=")
        return answers.condition(name, status or "True"), f"condition {name}{'=' + status if status else ''} met"
    raise PermanentError(f"--for {text}: this can not be waited for.", remedy="Write condition=Ready, phase=Running or delete.")
