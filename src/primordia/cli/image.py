"""`image build pull ls inspect rm prune`."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import Namespace

import msgspec

from primordia.cli import printing
from primordia.cli.output import Progress, colourful, table
from primordia.cli.pairs import pair
from primordia.cli.session import client
from primordia.client import answers
from primordia.client.aio import AsyncClient
from primordia.kit.errors import ConflictError, PermanentError
from primordia.kit.units import human_bytes
from primordia.wire.catalogue import builtin_image, builtin_names
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Context, DebianSource, EnvVar, Image, ImageConfig, ImageSpec, Lifeform, OciSource, Template


async def build(options: Namespace) -> int:
    """An image from Debian packages, or by a known name alone."""
    known = builtin_image(options.name)
    packages = tuple(word for word in options.packages.replace(",", " ").split() if word)
    if packages:
        spec = ImageSpec(debian=DebianSource(packages=packages))
    elif known is not None:
        spec = known.spec
    else:
        raise PermanentError(
            f"Of which packages is {options.name!r} to be made?",
            remedy=f"Say --packages A,B. Known without: {', '.join(builtin_names())}.",
        )
    return await _make(options, options.name, spec)


async def pull(options: Namespace) -> int:
    """An image from a registry or a local OCI layout."""
    name = options.name or name_of(options.reference)
    oci = OciSource(reference=options.reference, tls_verify=not options.insecure)
    return await _make(options, name, ImageSpec(oci=oci))


def name_of(reference: str) -> str:
    """An image's name from its reference: the last part of the path, and the tag unless it is `latest`."""
    plain = reference.removeprefix("oci:").partition("@")[0].rstrip("/")
    last = plain.rpartition("/")[2]
    base, _, tag = last.partition(":")
    word = f"{base}-{tag}" if tag and tag != "latest" else base
    return re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:63].rstrip("-") or "image"


def config_of(options: Namespace, base: ImageConfig) -> ImageConfig:
    """What the flags lay over a source's own configuration."""
    changes: dict[str, object] = {}
    if getattr(options, "cmd", ""):
        changes["cmd"] = words_of(options.cmd, "--cmd")
        # As with Docker, a command that is given does not become arguments of a known entrypoint.
        changes["entrypoint"] = None
    if getattr(options, "entrypoint", ""):
        changes["entrypoint"] = words_of(options.entrypoint, "--entrypoint")
    if options.env:
        changes["env"] = tuple(EnvVar(name=name, value=value) for name, value in (pair(each, "--env") for each in options.env))
    if options.workdir:
        changes["working_dir"] = options.workdir
    if options.user:
        changes["user"] = options.user
    return msgspec.structs.replace(base, **changes)


def words_of(text: str, flag: str) -> tuple[str, ...]:
    """A command on one line as its words, split as a shell would. Raises PermanentError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise PermanentError(f"{flag} {text!r} cannot be split into words ({error}).", remedy="Check its quotes.") from error


async def _make(options: Namespace, name: str, spec: ImageSpec) -> int:
    wanted = Image(metadata=ObjectMeta(name=name), spec=msgspec.structs.replace(spec, config=config_of(options, spec.config)))
    async with client(options) as soup:
        await soup.apply(wanted)
        if not options.wait:
            print(f"image/{name} is being made")
            return 0
        with Progress(quiet=options.quiet, all_steps=True) as progress:
            done = await made(soup, name, options.timeout, progress)
        print(f"image/{name} ready, {human_bytes(done.status.size_bytes)}")
    return 0


async def made(soup: AsyncClient, name: str, timeout_s: float, progress: Progress) -> Image:
    """Wait until an image is ready, showing what is done for it. Raises PermanentError when it cannot be made."""

    def over(obj: Image | None) -> bool:
        if obj is None or obj.status.observed_generation < obj.metadata.generation:
            return False
        if obj.status.phase == "Failed":
            raise PermanentError(
                f"Image {name} cannot be made: {obj.status.message}", remedy=f"See `primordia describe image {name}`."
            )
        progress(f"image {name}: {obj.status.progress or obj.status.phase}")
        return obj.status.phase == "Ready"

    progress(f"image {name}")
    found = await soup.wait(Image, name, over, timeout_s=timeout_s)
    assert found is not None
    return found


async def list_(options: Namespace) -> int:
    """Images, and how much they take."""
    async with client(options) as soup:
        if options.output in ("json", "yaml", "name"):
            await printing.show_objects(soup, [(Image, "")], printing.Where(), options.output)
            return 0
        await printing.show_tables(soup, [(Image, "")], printing.Where(), wide=options.output == "wide")
        images = (await soup.list(Image)).items
        # Images of equal content are one on the disk.
        sizes = {each.status.digest: each.status.size_bytes for each in images if each.status.digest}
        if sizes:
            print(f"{human_bytes(sum(sizes.values()))} in {len(sizes)} roots", file=sys.stderr)
    return 0


async def inspect(options: Namespace) -> int:
    """Images as they are."""
    async with client(options) as soup:
        found = [await soup.get(Image, name) for name in options.names]
    printing.print_objects(found, options.output, as_list=len(found) != 1)
    return 0


async def users_of(soup: AsyncClient) -> dict[str, list[str]]:
    """Who needs which image: lifeforms by their manifests (a suspended one too), templates, contexts as they run."""
    users: dict[str, list[str]] = {}
    for lifeform in (await soup.list(Lifeform, all_namespaces=True)).items:
        for template in lifeform.spec.contexts:
            users.setdefault(template.image, []).append(f"lifeform {lifeform.metadata.name}")
    for frozen in (await soup.list(Template)).items:
        users.setdefault(frozen.spec.image, []).append(f"template {frozen.metadata.name}")
    for context in (await soup.list(Context, all_namespaces=True)).items:
        users.setdefault(context.spec.template.image, []).append(f"context {context.metadata.name}")
    return users


async def remove(options: Namespace) -> int:
    """Remove images that nothing uses."""
    async with client(options) as soup:
        users = await users_of(soup)
        for name in options.names:
            if name in users:
                raise ConflictError(f"Image {name} is used by {users[name][0]}.", remedy="Delete that first.")
        for name in options.names:
            await soup.delete(Image, name)
            await soup.wait(Image, name, answers.deleted, timeout_s=60)
            print(f"image/{name} removed")
    return 0


async def prune(options: Namespace) -> int:
    """Remove every image that nothing uses, after asking."""
    async with client(options) as soup:
        users = await users_of(soup)
        idle = [image for image in (await soup.list(Image)).items if image.metadata.name not in users]
        if not idle:
            print("Every image is in use.")
            return 0
        rows = [[image.metadata.name, human_bytes(image.status.size_bytes)] for image in idle]
        print(table(["UNUSED", "SIZE"], rows, colour=colourful(sys.stdout)))
        if not options.yes and not confirm(f"Remove {len(idle)}?"):
            raise PermanentError("Nothing was removed.", remedy="Say --yes to agree beforehand.")
        for image in idle:
            await soup.delete(Image, image.metadata.name)
        for image in idle:
            await soup.wait(Image, image.metadata.name, answers.deleted, timeout_s=60)
        print(f"{len(idle)} removed, {human_bytes(sum(image.status.size_bytes for image in idle))}")
    return 0


def confirm(question: str) -> bool:
    """Ask; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
