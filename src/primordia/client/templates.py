"""Templates as clients use them: the plain one of an image, and whether one can be claimed from."""

from __future__ import annotations

import hashlib
import re

from primordia.kit.errors import PermanentError
from primordia.wire.meta import LABEL_PLAIN, ObjectMeta
from primordia.wire.resources import Resources, Template, TemplateSpec

_LONGEST = 40
USUAL_SIZE = Resources()


def plain_template(image: str, resources: Resources = USUAL_SIZE) -> Template:
    """The template of an image in which nothing has run. Its name follows from image and size, so that it is made once."""
    whole = f"{image} {resources.cpu} {resources.memory}"
    words = re.sub(r"[^a-z0-9]+", "-", image.lower()).strip("-")[:_LONGEST].rstrip("-") or "image"
    plain = words == image and resources == USUAL_SIZE
    name = f"plain-{words}" if plain else f"plain-{words}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return Template(
        metadata=ObjectMeta(name=name, labels={LABEL_PLAIN: "true"}), spec=TemplateSpec(image=image, resources=resources)
    )


def template_settled(obj: Template | None) -> bool:
    """Whether boxes can be claimed from it as its spec now is. Raises PermanentError when it cannot be made."""
    if obj is None or obj.status.observed_generation < obj.metadata.generation:
        return False
    if obj.status.phase == "Failed":
        name = obj.metadata.name
        raise PermanentError(
            f"Template {name} cannot be made: {obj.status.message}", remedy=f"See `primordia template describe {name}`."
        )
    return obj.status.phase == "Ready"
