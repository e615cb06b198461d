"""How long the certificates of this machine's soups are good: one that ends takes its node, or all of a soup, with it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from primordia.host.checks import Check
from primordia.host.soup import SoupFile, read_soup, soups_here
from primordia.kit import pki
from primordia.kit.errors import PrimordiaError
from primordia.kit.paths import SoupPaths

_SOON = datetime.timedelta(days=60)
_RENEW = "Run `primordia up --soup {soup}`, then `primordia soup restart`."
_JOIN_ANEW = "Drain the node, `primordia leave --soup {soup}`, and join again with a new token."


def look() -> tuple[Check, ...]:
    """One check for each soup whose certificates may be read: root's. Nothing for others."""
    found = []
    for name in soups_here():
        paths = SoupPaths.of(name)
        try:
            soup = read_soup(paths)
            if soup is not None:
                ends = {path: pki.expires(path.read_bytes()) for path in _certificates(soup, paths)}
                found += [check(soup, ends, datetime.datetime.now(datetime.UTC))] if ends else []
        except (PrimordiaError, OSError):
            continue  # `up` says what is wrong with it
    return tuple(found)


def check(soup: SoupFile, ends: dict[Path, datetime.datetime], now: datetime.datetime) -> Check:
    """What is to be said of a soup whose certificates end then. Pure."""
    path, end = min(ends.items(), key=lambda item: item[1])
    days = (end - now).days
    if end - now > _SOON:
        return Check("certificates", "ok", f"those of soup {soup.name} are good until {end:%Y-%m-%d}")
    said = f"{path} ends on {end:%Y-%m-%d}, in {days} days" if end > now else f"{path} ended on {end:%Y-%m-%d}"
    remedy = (_JOIN_ANEW if soup.joined else _RENEW).format(soup=soup.name)
    return Check("certificates", "warn" if end > now else "fail", said, "CertificateEnds", remedy)


def _certificates(soup: SoupFile, paths: SoupPaths) -> Iterator[Path]:
    """Of the administrator and of the nodes here; the authorities' last ten years."""
    wanted = [paths.state / "pki/admin.crt"]
    wanted += [paths.node(node.name).pki / name for node in soup.nodes for name in ("node.crt", "engine.crt")]
    yield from (path for path in wanted if path.exists())
