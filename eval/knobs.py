"""Turning every knob that a variant adds: each must change something, and none may be without an explanation.

A combination, or a variant tried under settings, may also refuse a value that it would else take, by a ConfigError that names the
knob: silence would be a fault.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..core.agent import AgentConfig, Config, Dreamer
from ..core.config import ConfigError, Leaf, comments, leaves, override, walk
from ..core.promises import Promises
from .trial import Trial, differing


class Knob(NamedTuple):
    """A leaf that a variant adds, and its core group: the path of the group where it belongs to one of the core's own, else its own."""

    leaf: Leaf
    group: str


def added_knobs(cls: type[Dreamer]) -> list[Knob]:
    """Leaves of a variant's configuration that the base agent's does not have, in the order of the fields."""
    core, base = Dreamer.__module__.rpartition(".")[0], leaves(Config())
    found = []
    for leaf in walk(cls.Config()):
        if leaf.path not in base:
            home = leaf.path.rpartition(".")[0]
            ours = declaring(leaf).__module__.rpartition(".")[0] == core
            found.append(Knob(leaf, home if ours and home else leaf.path))
    return found


def declaring(leaf: Leaf) -> type:
    """The class in whose source a leaf stands."""
    return next(c for c in leaf.owner.__mro__ if leaf.name in c.__dict__.get("__annotations__", {}))


def knob_problems(trial: Trial, promises: Promises) -> list[str]:
    """One line for every knob that is not explained, does not change anything, or cannot be turned."""
    knobs = added_knobs(trial.cls)
    problems = [
        f"knob {k.leaf.path!r} has no comment beside it"
        for k in knobs
        if k.group == k.leaf.path and comments(declaring(k.leaf)).get(k.leaf.name, "") == "" and comments(declaring(k.leaf))
    ]
    usual: dict[str, dict[str, Tensor]] = {}
    for group in dict.fromkeys(k.group for k in knobs):
        if _exempt(group, promises):
            continue
        members = [k.leaf for k in knobs if k.group == group and not _exempt(k.leaf.path, promises)]
        found = [_turn(trial, leaf, promises, usual) for leaf in members[:1]] if len(members) == 1 else []
        if len(members) > 1:
            found = [_turn_any(trial, group, members, promises, usual)]
        problems += [line for lines in found for line in lines]
    return problems + [f"promises name {path!r}, which is no knob of the variant" for path in _strangers(trial, promises)]


def _exempt(path: str, promises: Promises) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in promises.exempt)


def _strangers(trial: Trial, promises: Promises) -> list[str]:
    """Paths in `turn`, `beside` and `neutral` that the configuration does not have."""
    named = [*promises.turn, *promises.beside, *promises.neutral, *(p for settings in promises.beside.values() for p in settings)]
    return [path for path in dict.fromkeys(named) if path not in leaves(trial.cls.Config())]


def _turn_any(trial: Trial, group: str, members: list[Leaf], promises: Promises, usual: dict[str, dict[str, Tensor]]) -> list[str]:
    """A group of the core's own kind, a head for instance, is in use when any of its knobs changes something."""
    for leaf in members:
        if not _turn(trial, leaf, promises, usual):
            return []
    return [f"no knob of the group {group!r} changes anything"]


def _turn(trial: Trial, leaf: Leaf, promises: Promises, usual: dict[str, dict[str, Tensor]]) -> list[str]:
    beside = promises.beside.get(leaf.path, {})
    before = usual.setdefault(repr(sorted(beside.items())), {})
    try:
        start = _set(trial.cfg, beside)
        if not before:
            before |= trial.outcome(start)
    except ConfigError as error:
        if _answered(trial, error, beside):
            return []
        raise
    value = leaves(start)[leaf.path]
    named = promises.turn.get(leaf.path)
    each = named is not None or typing.get_origin(leaf.kind) is Literal
    tried, failed = [], ""
    for other in named if named is not None else candidates(leaf.kind, value):
        try:
            changed = bool(differing(before, trial.outcome(override(start, leaf.path, other))))
        except (ValueError, ArithmeticError) as error:  # a guess may be a value that the variant refuses; what it promised may not
            if _answered(trial, error, [leaf.path]):
                tried.append(other)
                continue
            if each:
                return [f"knob {leaf.path!r} set to {other!r} raises {type(error).__name__}: {error}"]
            failed = f"; {other!r} raises {type(error).__name__}: {error}"
            continue
        tried.append(other)
        if changed and not each:
            return []
        if not changed and each:
            return [f"knob {leaf.path!r} changes nothing: {value!r} and {other!r} give the same losses, weights and actions"]
    if each and tried:
        return []
    if not tried:
        return [f"knob {leaf.path!r} ({value!r}) could not be turned: name values for it in promises.turn{failed}"]
    return [f"knob {leaf.path!r} changes nothing: {value!r} and {', '.join(map(repr, tried))} give the same losses, weights and actions"]


def _answered(trial: Trial, error: Exception, paths: Iterable[str]) -> bool:
    """Whether a combination, or a variant under settings, refused a value in so many words: a ConfigError that names a knob."""
    combined = any(sum(issubclass(base, Dreamer) for base in c.__bases__) > 1 for c in trial.cls.__mro__)
    return (combined or bool(trial.settings)) and isinstance(error, ConfigError) and any(path in str(error) for path in paths)


def _set(cfg: AgentConfig, settings: Mapping[str, Any]) -> AgentConfig:
    for path, value in settings.items():
        cfg = override(cfg, path, value)
    return cfg


def candidates(kind: Any, value: Any) -> list[Any]:
    """Other values that a knob of an annotated kind might have, the likeliest to matter first. Text has none."""
    return [other for other in dict.fromkeys(_others(kind, value)) if other != value or type(other) is not type(value)]


def _others(kind: Any, value: Any) -> Iterator[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        yield from arguments
    elif kind is bool:
        yield not value
    elif kind is int:
        yield from (value + 1, 2 * value, value // 2, 0, 1)
    elif kind is float:
        yield from (2.0 * value, 0.5 * value, 0.0, 1.0, 0.5, value + 1.0)
    elif origin is tuple and value:
        yield from (value[:-1], (*value, value[-1])) if arguments[-1] is Ellipsis else ()
        for other in candidates(arguments[0], value[0]):
            yield (other, *value[1:])
    elif origin is not None:  # X | None
        for inner in arguments:
            if inner is NoneType:
                yield None
            else:
                yield from _others(inner, {int: 1, float: 1.0}.get(inner, value) if value is None else value)
