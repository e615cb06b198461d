"""Puts away what no context claims: folders whose record was never written, microVMs whose context is gone.

It runs once the registry has been read and every record has its worker. It asks the VMM to adopt what a run folder names:
so a microVM is ended only by the driver that can prove which process it is.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection

from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import NodePaths
from primordia.node.records import Records
from primordia.ports.vmm import Vmm

log = logging.getLogger(__name__)


async def sweep(paths: NodePaths, records: Records, vmm: Vmm, claimed: Collection[str]) -> tuple[str, ...]:
    """End and delete what belongs to no uid of `claimed`; returns the uids that were put away."""
    put_away = []
    for uid in sorted((records.uids() | _running(paths)) - set(claimed)):
        try:
            machine = await vmm.adopt(uid, paths.context_run(uid), uid)
            if machine is not None:
                log.warning("context %s is unknown to the registry: its microVM is ended", uid)
                await machine.kill()
            shutil.rmtree(paths.context_run(uid), ignore_errors=True)
            await records.remove(uid)
        except (PrimordiaError, OSError) as error:
            log.error("what is left of context %s cannot be put away: %s", uid, error)
        else:
            put_away.append(uid)
    return tuple(put_away)


def _running(paths: NodePaths) -> set[str]:
    root = paths.context_run("x").parent
    return {entry.name for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else set()
