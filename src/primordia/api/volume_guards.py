"""When a volume may be deleted: on purpose, and while no lifeform has it.

Deleting manifests keeps data (G8), whichever program does it. So a DELETE of a Volume is taken only with its uid as the
precondition, which shows that whoever asks has looked at this very one; never as one of many; and not while it is in use.
"""

from __future__ import annotations

from primordia.api.errors import RequestError
from primordia.kit.errors import ConflictError, NotFoundError
from primordia.registry.registry import Registry
from primordia.wire.resources import Lifeform, Volume
from primordia.wire.volume_rules import lifeform_named_by, uses

_TRIES = 8


async def destroy(registry: Registry, name: str, namespace: str, *, uid: str, resource_version: str) -> Volume:
    """Ask for the end of a volume: each node that holds anything of it deletes that, then the object goes.

    Raises RequestError 403 without `uid`, ConflictError while a lifeform has it, NotFoundError.
    """
    for _ in range(_TRIES):
        volume = await registry.get(Volume, name, namespace)
        await judge(registry, volume, uid)
        # Its version as it was judged: a lifeform that takes it up meanwhile writes it, and so wins.
        judged = resource_version or volume.metadata.resource_version
        try:
            return await registry.delete(Volume, name, namespace, uid=uid, resource_version=judged)
        except ConflictError:
            if resource_version or volume.metadata.uid != uid:
                raise
    raise ConflictError(f"Volume {namespace}/{name} was not destroyed: it keeps changing.", remedy="Try again.")


async def judge(registry: Registry, volume: Volume, uid: str) -> None:
    """Raise what `destroy` would."""
    meta, lifeform_name = volume.metadata, lifeform_named_by(volume)
    title = f"Volume {meta.namespace}/{meta.name}"
    if not uid:
        raise RequestError(
            403,
            f"{title} is not deleted like this: data goes only on purpose.",
            remedy=f"`primordia volume destroy {meta.name}` asks first; by the API, give its uid as precondition.",
        )
    try:
        lifeform = await registry.get(Lifeform, lifeform_name, meta.namespace) if lifeform_name else None
    except NotFoundError:
        return
    if lifeform is not None and uses(lifeform, volume):
        raise ConflictError(
            f"{title} was not destroyed: Lifeform {lifeform_name} has it.",
            remedy=f"Delete the lifeform first, its data stays: `primordia delete lifeform {lifeform_name}`.",
        )


def refuse_many() -> RequestError:
    """What a DELETE of a whole list of volumes is answered."""
    return RequestError(
        403,
        "Volumes are not deleted many at once: data goes only on purpose.",
        remedy="`primordia volume destroy NAME` for each.",
    )
