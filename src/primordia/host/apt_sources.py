"""The user's package sources, read and never touched: which of them are the distribution's own, and what we add. Pure.

Both forms are read: deb822 stanzas (`*.sources`) and one-line entries (`*.list`), see sources.list(5). Only entries of the
machine's own release with the component `main` are kept, for a third party's source may be broken and is not needed;
mirror, keys and options stay as the user chose them. On Debian `CODENAME-backports` of the same mirror is added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

_OPTION_FIELDS = {
    "arch": "Architectures",
    "signed-by": "Signed-By",
    "trusted": "Trusted",
    "check-valid-until": "Check-Valid-Until",
}
_KEPT_FIELDS = ("Signed-By", "Trusted", "Check-Valid-Until", "Check-Date", "Architectures")
_LINE = re.compile(r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>[^#]*)")


@dataclass(frozen=True)
class Source:
    """Where packages come from. `options` are the further deb822 fields, as `Signed-By`."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = field(default=())

    def render(self) -> str:
        """The stanza in deb822 form."""
        lines = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
            *(f"{name}: {value}" for name, value in self.options),
        ]
        return "\n".join(lines) + "\n"


def parse_deb822(text: str) -> Iterator[Source]:
    """Every enabled binary source of a `*.sources` file; what is not understood is skipped."""
    for paragraph in re.split(r"\n[ \t]*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + "\n" + line
            else:
                name, _, value = line.partition(":")
                name = name.strip().title()
                fields[name] = value.strip()
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes").lower() in ("no", "false", "0"):
            continue
        uris, suites, components = (tuple(fields.get(name, "").split()) for name in ("Uris", "Suites", "Components"))
        options = tuple((name, fields[name]) for name in _KEPT_FIELDS if fields.get(name))
        yield Source(uris, suites, components, options)


def parse_one_line(text: str) -> Iterator[Source]:
    """Every binary source of a `*.list` file; what is not understood is skipped."""
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match is None:
            continue
        options = []
        for option in (match["options"] or "").split():
            name, _, value = option.partition("=")
            if name.lower() in _OPTION_FIELDS:
                options.append((_OPTION_FIELDS[name.lower()], value.replace(",", " ")))
        yield Source((match["uri"],), (match["suite"],), tuple(match["components"].split()), tuple(options))


def own_sources(sources: Iterable[Source], codename: str) -> tuple[Source, ...]:
    """Those of the release itself (`CODENAME`, `CODENAME-updates`, `-security`...), with the component main."""
    kept = []
    for source in sources:
        suites = tuple(suite for suite in source.suites if re.split(r"[-/]", suite)[0] == codename)
        if suites and "main" in source.components:
            kept.append(replace(source, suites=suites))
    return tuple(dict.fromkeys(kept))


def backports(sources: Iterable[Source], codename: str) -> Source | None:
    """`CODENAME-backports` of the mirror that has the release itself, unless the user has it already."""
    suite = f"{codename}-backports"
    main = None
    for source in sources:
        if suite in source.suites:
            return None
        if main is None and codename in source.suites:
            main = source
    return replace(main, suites=(suite,)) if main is not None else None


def newer(first: str, second: str) -> bool:
    """Whether one upstream version, as `10.0.2`, is newer than another; empty is the oldest."""

    def parts(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    return parts(first) > parts(second)
