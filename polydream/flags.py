"""Command line words: `--key value`, `--key=value`, bare `--key` for true; and the help text made from a configuration."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from .core.config import ConfigError, Option, unknown


class Words(NamedTuple):
    """A command line taken apart. A bare flag has the value None."""

    positional: list[str]
    flags: dict[str, str | None]


def parse(argv: Sequence[str], switches: Collection[str] = ()) -> Words:
    """Take a command line apart without knowing its keys. A word after `--key` is its value, negative numbers included.

    switches: keys that stand alone and take the next word only when it is true or false.
    Dashes inside a key read as underscores. Raises ConfigError for a key given twice and for one-letter options.
    """
    words = Words([], {})
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.positional.append(word)
            continue
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"unexpected {word!r}: options are written --key value")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if key in words.flags:
            raise ConfigError(f"--{key} is given twice")
        takes = rest and not rest[0].startswith("--") and (key not in switches or rest[0].lower() in ("true", "false"))
        words.flags[key] = value if equals else rest.pop(0) if takes else None
    return words


def known_only(flags: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that a command does not have, naming the nearest that it has."""
    known = list(known)
    for key in flags:
        if key not in known:
            raise unknown(key, known) if known else ConfigError(f"no option {key!r}: this command has none")


def one(positional: Sequence[str], what: str) -> str:
    """The single positional word that a command needs."""
    if len(positional) != 1:
        got = f"got {len(positional)}: {' '.join(positional)}" if positional else "got none"
        raise ConfigError(f"wants one {what}, {got}")
    return positional[0]


def none(positional: Sequence[str]) -> None:
    """Refuse positional words where a command has only options."""
    if positional:
        raise ConfigError(f"unexpected {positional[0]!r}: options are written --key value")


def filled(flags: Mapping[str, str | None]) -> dict[str, str]:
    """Flags that all must have values."""
    for key, value in flags.items():
        if value is None:
            raise ConfigError(f"--{key} needs a value")
    return {key: value for key, value in flags.items() if value is not None}


def explain(options: Sequence[Option], width: int = 0) -> str:
    """Help for a configuration: options by group, each with its value, what it is and what it wants."""
    width = width or max(80, min(140, shutil.get_terminal_size().columns))
    column = min(44, max(len(_head(o)) for o in options) + 2)
    lines: list[str] = []
    group = None
    for option in options:
        home = option.path.rpartition(".")[0]
        if home != group:
            lines += ["", f"{home}: {option.about}" if home else option.about]
            group = home
        head = _head(option)
        text = wrap(_text(option), width - column) or [""]
        if len(head) >= column:
            lines.append(head)
            head = ""
        lines += [f"{head:{column}}{text[0]}".rstrip(), *(" " * column + line for line in text[1:])]
    return "\n".join(lines).lstrip("\n")


def _head(option: Option) -> str:
    value = option.default
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    return f"  --{option.path} {shown or repr('')}"


def _text(option: Option) -> str:
    """The comment; for a choice also what there is to choose from."""
    choices = option.wants if option.wants.startswith("one of ") else ""
    return f"{option.comment} ({choices})" if option.comment and choices else option.comment or choices
