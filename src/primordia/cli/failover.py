"""`failover`: what waits after nodes have died, and the two words that only a person may say: that data may be lost, and that
much of the soup really is off.

Each word counts once: a loss for the epoch that it was allowed in, the lifting of the hold for five minutes.
"""

from __future__ import annotations

import datetime
from argparse import Namespace
from collections.abc import Iterable, Sequence

from primordia.cli import printing
from primordia.cli.image import confirm
from primordia.cli.output import Progress, table
from primordia.cli.session import client
from primordia.client.aio import AsyncClient
from primordia.kit.errors import ConflictError, InvalidError, PermanentError
from primordia.wire.conditions import FAILOVER_HELD, RECOVERED, find
from primordia.wire.meta import ANNOTATION_ALLOW_LOSS, ANNOTATION_FAILOVER_ALL
from primordia.wire.resources import Lifeform, Node, Recovered, Soup, Volume
from primordia.wire.tables import volume_protection
from primordia.wire.volume_rules import uses

SOUP = "soup"
AT_RISK = "At risk"
PARKED = "Parked"


async def failover(options: Namespace) -> int:
    """Show what waits, or let it go on."""
    if options.all and (options.names or options.allow_loss):
        raise InvalidError("--all", "lifts the hold of the whole soup; it takes no names.", remedy="Leave one of the two out.")
    if options.allow_loss and not options.names:
        raise InvalidError("--allow-loss", "whose data may be lost has to be said.", remedy="Name the lifeforms.")
    async with client(options) as soup:
        if options.all:
            return await _lift(soup, options)
        if options.allow_loss:
            return await _allow(soup, options)
        listing = await soup.list(Lifeform, all_namespaces=not options.namespace, namespace=options.namespace)
    found = [each for each in listing.items if waits(each) and (not options.names or each.metadata.name in options.names)]
    if options.output in ("json", "yaml"):
        printing.print_objects(found, options.output, as_list=True)
    else:
        print(waiting_text(found))
    return 0


async def _lift(soup: AsyncClient, options: Namespace) -> int:
    held = held_nodes((await soup.list(Node)).items)
    if not held:
        print("No node is held: there is nothing to lift.")
        return 0
    names = ", ".join(node.metadata.name for node in held)
    if not options.yes and not confirm(f"Are {names} really off? What still runs there would be started a second time."):
        raise PermanentError("Nothing was changed.", remedy="Say --yes to agree beforehand.")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    await soup.patch(Soup, SOUP, {"metadata": {"annotations": {ANNOTATION_FAILOVER_ALL: now}}})
    print(f"the hold is lifted for five minutes: {names} {'is' if len(held) == 1 else 'are'} failed over")
    return 0


async def _allow(soup: AsyncClient, options: Namespace) -> int:
    for name in options.names:
        before = await soup.get(Lifeform, name, namespace=options.namespace)
        if not waits(before):
            where = f"{before.status.phase} on {before.status.node}" if before.status.node else before.status.phase
            raise ConflictError(
                f"Lifeform {name} waits for no failover: it is {where}.", remedy="`primordia failover` shows what waits."
            )
        said = {ANNOTATION_ALLOW_LOSS: str(before.status.epoch)}
        await soup.patch(Lifeform, name, {"metadata": {"annotations": said}}, namespace=options.namespace)
        if not options.wait:
            print(f"lifeform/{name} may lose data, once")
            continue
        epoch = before.status.epoch

        def goes_on(now: Lifeform | None, epoch: int = epoch) -> bool:
            return now is None or now.status.epoch > epoch or not waits(now)

        with Progress(quiet=options.quiet) as progress:
            progress(f"wait until {name} goes on elsewhere")
            after = await soup.wait(Lifeform, name, goes_on, namespace=options.namespace, timeout_s=options.timeout)
        recovered = after.status.recovered if after is not None else None
        words = recovered_words(recovered) if recovered is not None and recovered.epoch > epoch else "goes on"
        print(f"lifeform/{name} {words}")
    return 0


# ---------------------------------------------------------------- pure


def waits(lifeform: Lifeform) -> bool:
    """Whether its node is dead, or held, and it has not been started elsewhere."""
    said = find(lifeform.status.conditions, RECOVERED)
    return lifeform.status.phase == PARKED or (said is not None and said.status != "True")


def what_for(lifeform: Lifeform) -> tuple[str, str]:
    """The reason why it waits, and what for."""
    said = find(lifeform.status.conditions, RECOVERED)
    if said is None or said.status == "True":
        return "Recovering", "Its node is dead; it is being started elsewhere."
    return said.reason, said.message


def held_nodes(nodes: Iterable[Node]) -> list[Node]:
    """Those whose death is not declared, for too much went at once."""
    ready = [(node, find(node.status.conditions, "Ready")) for node in nodes]
    return [node for node, said in ready if said is not None and said.reason == FAILOVER_HELD]


def waiting_text(lifeforms: Sequence[Lifeform]) -> str:
    """What waits, and for what."""
    if not lifeforms:
        return "Nothing waits for a failover."
    rows = [
        [each.metadata.namespace, each.metadata.name, each.status.node or "-", str(each.status.epoch), *what_for(each)]
        for each in lifeforms
    ]
    return table(["NAMESPACE", "NAME", "NODE", "EPOCH", "REASON", "WAITS FOR"], rows)


def recovered_words(recovered: Recovered) -> str:
    """The last failover, as the tail of a sentence."""
    parts = [
        f"{each.name} from snapshot {each.restored_from}" if each.restored_from else f"{each.name} empty"
        for each in recovered.volumes
    ]
    data = f": {', '.join(parts)}, at most {recovered.lost_seconds:.1f} s lost" if parts else ""
    return f"came from {recovered.from_node}, which died, in epoch {recovered.epoch}{data}"


def survival_counts(lifeforms: Iterable[Lifeform], volumes: Iterable[Volume]) -> dict[str, int]:
    """How many lifeforms are Parked and, of the others that have data, Protected, Degraded, or At risk."""
    by_namespace: dict[str, list[Volume]] = {}
    for volume in volumes:
        by_namespace.setdefault(volume.metadata.namespace, []).append(volume)
    counts: dict[str, int] = {}
    for each in lifeforms:
        state = _state(each, [one for one in by_namespace.get(each.metadata.namespace, []) if uses(each, one)])
        if state:
            counts[state] = counts.get(state, 0) + 1
    return counts


def _state(lifeform: Lifeform, volumes: Sequence[Volume]) -> str:
    if waits(lifeform):
        return PARKED
    found = {volume_protection(volume) for volume in volumes}
    if not found:
        return ""
    if found == {"Protected"}:
        return "Protected"
    return AT_RISK if found - {"Protected", "Degraded"} else "Degraded"
