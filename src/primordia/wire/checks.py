"""What single values must look like: names, labels, paths, quantities. Each check adds its problems to a collector.

The forms are those of Kubernetes (RFC 1123 names, qualified label keys), so that its tools agree with us.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal

from primordia.kit.units import human_bytes, parse_bytes, parse_quantity
from primordia.wire.problems import Problems, show

LABEL_LENGTH = 63
SUBDOMAIN_LENGTH = 253
_LARGEST_ANNOTATIONS_BYTES = 256 * 1024
_MOST_LABELS = 200
_LONGEST_PATH = 1024
_LONGEST_ARGUMENTS_BYTES = 128 * 1024
_MOST_ARGUMENTS = 1000

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ENV = re.compile(r"[-._A-Za-z][-._A-Za-z0-9]*")
_FILE = re.compile(r"[-._A-Za-z0-9]+")
_USER = re.compile(r"([a-z_][-a-z0-9_]*\$?|[0-9]{1,10})(:([a-z_][-a-z0-9_]*\$?|[0-9]{1,10}))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_label(text: str) -> bool:
    """Whether it is an RFC 1123 label: what names of lifeforms, contexts and namespaces are."""
    return len(text) <= LABEL_LENGTH and _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Whether it is RFC 1123 labels with dots between."""
    return len(text) <= SUBDOMAIN_LENGTH and all(_LABEL.fullmatch(part) for part in text.split("."))


def check_label(out: Problems, field: str, text: str) -> None:
    """An RFC 1123 label."""
    if not text:
        out.required(field)
    elif not is_label(text):
        out.invalid(
            field,
            f"{show(text)} is not a name of lower-case letters, digits and '-', "
            f"beginning and ending with a letter or digit, at most {LABEL_LENGTH} long",
        )


def check_subdomain(out: Problems, field: str, text: str) -> None:
    """An RFC 1123 subdomain."""
    if not text:
        out.required(field)
    elif not is_subdomain(text):
        out.invalid(
            field,
            f"{show(text)} is not a name of lower-case letters, digits, '-' and '.', "
            f"beginning and ending with a letter or digit, at most {SUBDOMAIN_LENGTH} long",
        )


def check_key(out: Problems, field: str, key: str) -> None:
    """The key of a label, annotation or finalizer: `[PREFIX/]NAME`."""
    prefix, slash, name = key.rpartition("/")
    if (slash and not is_subdomain(prefix)) or len(name) > LABEL_LENGTH or _QUALIFIED.fullmatch(name) is None:
        out.invalid(field, f"the key {show(key)} is not of the form [PREFIX/]NAME, as app or example.org/role")


def check_label_value(out: Problems, field: str, value: str) -> None:
    """A label's value, which may be empty."""
    if value and (len(value) > LABEL_LENGTH or _QUALIFIED.fullmatch(value) is None):
        out.invalid(
            field,
            f"{show(value)} is not a label's value: letters, digits, '-', '_' and '.', "
            f"beginning and ending with a letter or digit, at most {LABEL_LENGTH} long",
        )


def check_labels(out: Problems, field: str, labels: Mapping[str, str]) -> None:
    """Labels, or the labels that a selector wants."""
    out.too_many(field, len(labels), _MOST_LABELS, "labels")
    for key, value in labels.items():
        check_key(out, field, key)
        check_label_value(out, f"{field}[{show(key)}]", value)


def check_annotations(out: Problems, field: str, annotations: Mapping[str, str]) -> None:
    """Annotations: keys as labels have them, any text as values."""
    for key in annotations:
        check_key(out, field, key.lower() if "/" in key else key)
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size > _LARGEST_ANNOTATIONS_BYTES:
        out.invalid(field, f"are {human_bytes(size)}, and at most {human_bytes(_LARGEST_ANNOTATIONS_BYTES)} are accepted")


def check_path(out: Problems, field: str, path: str) -> None:
    """An absolute path without `.`, `..`, doubled slashes or a slash at its end."""
    if not path:
        out.required(field)
    elif not path.startswith("/"):
        out.invalid(field, f"{show(path)} is not an absolute path")
    elif len(path) > _LONGEST_PATH or _CONTROL.search(path):
        out.invalid(field, f"{show(path)} is longer than {_LONGEST_PATH} or has control characters in it")
    elif path != "/" and any(part in ("", ".", "..") for part in path[1:].split("/")):
        out.invalid(field, f"{show(path)} is not clean: no '.', '..', '//' and no '/' at its end")


def check_text(out: Problems, field: str, text: str, longest: int) -> None:
    """Any text without NUL, up to a length in characters."""
    if "\0" in text:
        out.invalid(field, "must not have a NUL character in it")
    if len(text) > longest:
        out.invalid(field, f"is {len(text)} long, and at most {longest} is accepted")


def check_word(out: Problems, field: str, text: str, longest: int) -> None:
    """A text of printable characters without spaces."""
    if text and (len(text) > longest or any(each.isspace() or not each.isprintable() for each in text)):
        out.invalid(field, f"{show(text)} has spaces or control characters in it, or is longer than {longest}")


def check_command(out: Problems, field: str, words: tuple[str, ...] | None, *, first: bool = False) -> None:
    """The words of a command. With `first`, there must be one, and it must not be empty."""
    if words is None:
        return
    if first and not words:
        out.required(field, "must have at least the program's name in it; leave it out to use the image's")
    elif first and not words[0]:
        out.invalid(f"{field}[0]", "is empty, and should be a program")
    out.too_many(field, len(words), _MOST_ARGUMENTS)
    if sum(len(word) for word in words) > _LONGEST_ARGUMENTS_BYTES:
        out.invalid(field, f"is longer than {_LONGEST_ARGUMENTS_BYTES} in all")
    for index, word in enumerate(words):
        if "\0" in word:
            out.invalid(f"{field}[{index}]", "must not have a NUL character in it")


def check_user(out: Problems, field: str, text: str) -> None:
    """A user by name or number, with or without a group."""
    if _USER.fullmatch(text) is None:
        out.invalid(field, f"{show(text)} is not a user or number, with or without a group: redis, 1000, 1000:1000")


def check_time(out: Problems, field: str, text: str) -> None:
    """A moment as Kubernetes writes it (RFC 3339, with its offset from UTC)."""
    try:
        good = len(text) <= LABEL_LENGTH and datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        good = False
    if not good:
        out.invalid(field, f"{show(text)} is not a time such as 2026-01-31T12:00:00Z")


def check_env_name(out: Problems, field: str, name: str) -> None:
    """The name of an environment variable."""
    if not name:
        out.required(field)
    elif len(name) > SUBDOMAIN_LENGTH or _ENV.fullmatch(name) is None:
        out.invalid(field, f"{show(name)} is not the name of an environment variable: letters, digits, '_', '-' and '.'")


def check_file_name(out: Problems, field: str, name: str) -> None:
    """A key that becomes a file's name."""
    if len(name) > SUBDOMAIN_LENGTH or _FILE.fullmatch(name) is None or name in (".", ".."):
        out.invalid(field, f"the key {show(name)} is not a file's name of letters, digits, '-', '_' and '.'")


def check_port(out: Problems, field: str, port: int) -> None:
    """A TCP port."""
    if not 1 <= port <= 65535:
        out.invalid(field, f"{port} is not a port: 1 to 65535")


def check_range(out: Problems, field: str, value: float, low: float, high: float) -> None:
    """A number between two bounds, both included."""
    if not low <= value <= high:
        out.invalid(field, f"{show(value)} is not between {low:g} and {high:g}")


def check_bytes(out: Problems, field: str, text: str, low: str, high: str) -> None:
    """A quantity of bytes between two others, both included."""
    size = _quantity(out, field, text)
    if size is not None and not parse_bytes(low) <= math.ceil(size) <= parse_bytes(high):
        out.invalid(field, f"{show(text)} is not between {low} and {high}")


def check_cores(out: Problems, field: str, text: str, most: int) -> None:
    """A quantity of cores, above 0."""
    cores = _quantity(out, field, text)
    if cores is not None and not Decimal(0) < cores <= most:
        out.invalid(field, f"{show(text)} is not more than 0 and at most {most} cores")


def _quantity(out: Problems, field: str, text: str) -> Decimal | None:
    if text.isascii() and text == text.strip():
        with contextlib.suppress(ValueError):
            return parse_quantity(text)
    out.invalid(field, f"{show(text)} is not a quantity such as 250m, 128Mi or 1Gi")
    return None


def check_unique(out: Problems, values: Iterable[tuple[str, object]]) -> None:
    """`values` are (field, value): the second of two equal values is a problem."""
    seen = set()
    for field, value in values:
        if value in seen:
            out.duplicate(field, value)
        seen.add(value)
