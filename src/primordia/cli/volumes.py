"""`volume ls` and `volume destroy`. The one command that deletes data says first what is lost."""

from __future__ import annotations

from argparse import Namespace

from primordia.cli import orphans, printing
from primordia.cli.image import confirm
from primordia.cli.output import Progress
from primordia.cli.session import client
from primordia.cli.volume_names import volume_named
from primordia.client import answers
from primordia.kit.errors import PermanentError
from primordia.kit.units import human_bytes
from primordia.wire.resources import Volume


async def list_(options: Namespace) -> int:
    """Volumes: where they are, and how good their copies are."""
    where = printing.Where(options.namespace, options.all_namespaces)
    if options.orphans:
        return await orphans.list_(options)
    async with client(options) as soup:
        if options.output in ("json", "yaml", "name"):
            await printing.show_objects(soup, [(Volume, "")], where, options.output)
        else:
            await printing.show_tables(soup, [(Volume, "")], where, wide=options.output == "wide")
    return 0


async def destroy(options: Namespace) -> int:
    """Delete a volume and every copy of it. Raises PermanentError when nobody agreed."""
    async with client(options) as soup:
        name = await volume_named(soup, options.name, options.namespace)
        volume = await soup.get(Volume, name, namespace=options.namespace)
        if not options.yes and not confirm(f"{loss_of(volume)} Destroy it?"):
            raise PermanentError("Nothing was changed.", remedy="Say --yes to agree beforehand.")
        await soup.delete(Volume, name, namespace=options.namespace, uid=volume.metadata.uid)
        if options.wait:
            with Progress(quiet=options.quiet) as progress:
                progress(f"wait until volume {name} is gone everywhere")
                await soup.wait(Volume, name, answers.deleted, namespace=options.namespace, timeout_s=options.timeout)
    if not options.quiet:
        print(f"volume/{name} {'destroyed' if options.wait else 'is being destroyed'}")
    return 0


def loss_of(volume: Volume) -> str:
    """What goes with a volume, in sentences."""
    spec, status = volume.spec, volume.status
    whose = f", the data of lifeform {spec.lifeform} (context {spec.context})" if spec.lifeform else ""
    used = f", {human_bytes(status.used_bytes)} used" if status.used_bytes else ""
    said = [f"Volume {volume.metadata.namespace}/{volume.metadata.name}{whose}: {spec.size}{used}."]
    if status.node:
        copies = f" and {len(status.replicas)} on {', '.join(status.replicas)}" if status.replicas else ", the only one"
        said.append(f"There is a copy on {status.node}{copies}: all of them go, for good.")
    if status.number:
        said.append(f"With them go all snapshots, the newest number {status.number}.")
    if status.checkpoints:
        said.append(f"And the checkpoints {', '.join(each.name for each in status.checkpoints)}.")
    return " ".join(said)
