"""What a client accepts and sends: the few media types that matter, read from its headers. Pure."""

from __future__ import annotations

from primordia.api.errors import RequestError

JSON = "application/json"
YAML = ("application/yaml", "application/x-yaml", "text/yaml")
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_REFUSED_PATCHES = {
    "application/strategic-merge-patch+json": "a strategic merge patch",
    "application/apply-patch+yaml": "a server-side apply",
    "application/apply-patch+cbor": "a server-side apply",
}


def wants_table(header: str) -> bool:
    """Whether the first of the client's media types that we can give is a Table. Raises RequestError 406."""
    if not header.strip():
        return False
    for entry in header.split(",")[:32]:
        media, *parameters = [part.strip().lower() for part in entry.split(";")]
        options = dict(part.partition("=")[::2] for part in parameters)
        if media not in ("*/*", "application/*", JSON):
            continue
        wanted = options.get("as", "")
        if not wanted:
            return False
        if wanted == "table" and options.get("g") == "meta.k8s.io" and options.get("v") == "v1":
            return True
    raise RequestError(406, f"Nothing of {header[:200]!r} can be given.", remedy=f"Accept {JSON}.")


def body_is_yaml(content_type: str) -> bool:
    """Whether a body is YAML and not JSON. Raises RequestError 415 when it is neither."""
    if content_type in YAML:
        return True
    if content_type in (JSON, "application/octet-stream", ""):  # the second is what a missing header counts as
        return False
    raise RequestError(415, f"A body of type {content_type[:80]!r} is not read here.", remedy=f"Send {JSON} or {YAML[0]}.")


def patch_is_merge(content_type: str) -> bool:
    """Whether a patch is a merge patch and not a JSON patch. Raises RequestError 415 when it is neither."""
    if content_type == MERGE_PATCH:
        return True
    if content_type == JSON_PATCH:
        return False
    what = _REFUSED_PATCHES.get(content_type, f"a patch of type {content_type[:80]!r}")
    raise RequestError(
        415, f"This API does not take {what}.", remedy=f"Send {MERGE_PATCH} or {JSON_PATCH} (kubectl patch --type=merge)."
    )
