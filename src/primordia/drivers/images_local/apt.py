"""The machine's own apt configuration, cut down to what a build in a fresh root needs. Pure.

Only the distribution's own suites are used: a user's third source (a vendor's repository, say) may be slow, be gone, or
replace a package of the distribution, and none of it belongs into an image. Where no source names them (a company mirror
with suites of its own) every source is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_ONE_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)")
_ALIASES = ("oldstable", "stable", "testing", "unstable", "sid")
_POCKETS = ("", "-updates", "-security", "/updates")
_SETTINGS = re.compile(
    r"^Acquire::(?:http|https|Retries|Check-Valid-Until|Check-Date|Min-ValidTime|Max-ValidTime|ForceIPv[46]|Allow\w+|Send-\w+"
    r"|Max-FutureTime|By-Hash|PDiffs)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sources:
    """Package sources in apt's two formats; either text may be empty."""

    one_line: str
    deb822: str


def select_sources(lists: Iterable[str], deb822_files: Iterable[str], codename: str) -> Sources:
    """The distribution's own sources out of the texts of *.list and *.sources files."""
    lines = [line.strip() for text in lists for line in text.splitlines() if _ONE_LINE.match(line.strip())]
    stanzas = [stanza for text in deb822_files for stanza in _stanzas(text)]
    suites = {name + pocket for name in (codename, *_ALIASES) for pocket in _POCKETS}
    own_lines = [line for line in lines if _suite(line) in suites]
    own_stanzas = [stanza for stanza in stanzas if suites & set(_field(stanza, "suites").split())]
    if not own_lines and not own_stanzas:
        own_lines, own_stanzas = lines, stanzas
    return Sources("".join(f"{line}\n" for line in own_lines), "\n".join(own_stanzas))


def select_settings(dump: str) -> str:
    """Of `apt-config dump`, what decides how packages are fetched: proxies, retries, dates, certificates."""
    return "".join(f"{line}\n" for line in dump.splitlines() if _SETTINGS.match(line))


def _suite(line: str) -> str:
    match = _ONE_LINE.match(line)
    return match["suite"] if match else ""


def _stanzas(text: str) -> list[str]:
    """The enabled stanzas for binary packages, without comments; each ends with a newline."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    stanzas = [part.strip("\n") + "\n" for part in re.split(r"\n[ \t]*\n", "\n".join(lines)) if part.strip()]
    return [
        stanza
        for stanza in stanzas
        if "deb" in _field(stanza, "types").split() and _field(stanza, "enabled").lower() not in ("no", "false", "without", "0")
    ]


def _field(stanza: str, name: str) -> str:
    """A field's value with its continuation lines, as one line; empty when it is not there."""
    match = re.search(rf"^{name}:(.*(?:\n[ \t]+.*)*)", stanza, re.IGNORECASE | re.MULTILINE)
    return " ".join(match[1].split()) if match else ""
