"""Kubernetes quantities (`250m`, `128Mi`, `1Gi`), durations (`1s`, `2m30s`) and how people read them."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?|\.\d+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")
_FACTOR = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
}
_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?$")
_LONGEST_TEXT = 32


def parse_quantity(text: str) -> Decimal:
    """The value of a quantity in its base unit (cores, bytes).

    Raises ValueError with a sentence when `text` is no quantity.
    """
    match = _QUANTITY.match(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(f"{text[:_LONGEST_TEXT]!r} is not a quantity such as 250m, 128Mi or 1Gi")
    return Decimal(match.group(1)) * _FACTOR[match.group(2) or ""]


def parse_bytes(text: str) -> int:
    """A quantity of bytes, rounded up to a whole byte."""
    return int(parse_quantity(text).to_integral_value(rounding="ROUND_CEILING"))


def bytes_quantity(count: int) -> str:
    """The shortest quantity that is exactly so many bytes: `128Mi`, `1Gi`, `1000`. The inverse of `parse_bytes`."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        factor = int(_FACTOR[unit])
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def parse_milli_cpu(text: str) -> int:
    """A quantity of cores in thousandths of a core, rounded up."""
    return int((parse_quantity(text) * 1000).to_integral_value(rounding="ROUND_CEILING"))


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `500ms`, `1s`, `2m30s`, `1h`.

    Raises ValueError with a sentence when `text` is no duration.
    """
    if len(text) <= _LONGEST_TEXT:
        if re.fullmatch(r"\d+ms", text):
            return int(text[:-2]) / 1000
        match = _DURATION.match(text)
        if match is not None and any(match.groups()):
            hours, minutes, seconds = match.groups()
            return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
    raise ValueError(f"{text[:_LONGEST_TEXT]!r} is not a duration such as 500ms, 10s or 2m30s")


def human_bytes(count: float) -> str:
    """A size for people: `0 B`, `58 KiB`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the loop returns at its last unit")


def human_age(seconds: float) -> str:
    """An age as kubectl prints it: `5s`, `3m20s`, `4h`, `2d`."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 48:
        return f"{hours}h"
    return f"{hours // 24}d"
