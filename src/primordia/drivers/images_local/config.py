"""What an image runs: the source's own word, with the user's laid over it as Docker lays it."""

from __future__ import annotations

from collections.abc import Sequence

from primordia.kit.errors import PermanentError
from primordia.wire.resources import EnvVar, ImageConfig

_LONGEST_TEXT = 128 * 1024  # the kernel's own limit for one argument (MAX_ARG_STRLEN)
_MOST_TEXTS = 4096


def overlay(source: ImageConfig, wanted: ImageConfig) -> ImageConfig:
    """`wanted` over `source`. An entrypoint that is given drops the source's CMD, whose words were meant for another."""
    inherited = source if wanted.entrypoint is None else ImageConfig()
    return ImageConfig(
        entrypoint=inherited.entrypoint if wanted.entrypoint is None else wanted.entrypoint,
        cmd=inherited.cmd if wanted.cmd is None else wanted.cmd,
        env=_merge_env(source.env, wanted.env),
        working_dir=wanted.working_dir or source.working_dir,
        user=wanted.user or source.user,
    )


def _merge_env(source: Sequence[EnvVar], wanted: Sequence[EnvVar]) -> tuple[EnvVar, ...]:
    merged = {variable.name: variable for variable in source}
    merged.update({variable.name: variable for variable in wanted})
    return tuple(merged.values())


def parse_env(lines: Sequence[str]) -> tuple[EnvVar, ...]:
    """`NAME=value` lines of an image's configuration; a line without `=` sets an empty value."""
    return tuple(EnvVar(name=name, value=value) for name, _, value in (line.partition("=") for line in lines) if name)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what no kernel would pass to a program: NUL bytes, texts too long or too many. PermanentError."""
    if len(texts) > _MOST_TEXTS:
        raise PermanentError(f"The image's configuration has {len(texts)} words and variables; {_MOST_TEXTS} is the limit.")
    for text in texts:
        if "\0" in text or len(text) > _LONGEST_TEXT:
            raise PermanentError(f"The image's configuration holds text that no program can be given: {text[:40]!r}.")
