"""One class out of several variants, by cooperative inheritance: each overrides a few seams and calls `super()` in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from . import registry
from .agent import Dreamer
from .config import ConfigError, hints

EXCLUSIVE = ("act",)
"""Seams that do not merge: at most one class of a combination may own each."""

SEAMS = (
    "spaces", "build", "build_behaviors", "scales", "prepare", "encode", "context", "latent", "predict", "reconstruct", "view",
    "view_width", "act", "imagine", "rewards", "model_losses", "report",
)  # fmt: skip
"""Methods of the base agent that variants override, in the order in which an update meets them."""


def owners(cls: type, seam: str) -> list[type]:
    """Classes between a variant and the base agent that define a seam, the nearest first."""
    return [c for c in cls.__mro__ if c is not Dreamer and issubclass(c, Dreamer) and seam in vars(c)]


def changed_seams(cls: type) -> list[str]:
    """Seams that a variant, or a class between it and the base agent, defines anew."""
    return [seam for seam in SEAMS if owners(cls, seam)]


def compose(parts: Sequence[tuple[str, type[Dreamer]]]) -> type[Dreamer]:
    """One agent class that inherits from all of the named ones, with one Config that has the knobs of all.

    Parts are taken in alphabetical order of their names, so the order in which a user writes them changes nothing. The first
    is the outermost: its seams call those of the next through `super()`. One that descends from a registered variant takes that
    one's place, whatever file it is in.
    Raises ConfigError for a part that is named twice or contained in another, for two owners of an exclusive seam, and for
    knobs that two parts declare or whose defaults they change in different ways.
    """
    parts = sorted(parts, key=lambda part: (registry.ancestor(part[1]) or part[0], part[0]))
    title = "+".join(name for name, _ in parts)
    for i, (name, cls) in enumerate(parts):
        for other, base in parts[:i] + parts[i + 1 :]:
            if cls is base:
                raise ConfigError(f"variant {title!r} names {name!r} twice" + (f" (as {other!r})" if other != name else ""))
            if issubclass(cls, base):
                raise ConfigError(f"variant {title!r}: {name!r} is already a {other!r}, so leave out {other!r}")
    for seam in EXCLUSIVE:
        found = {owner: name for name, cls in reversed(parts) for owner in owners(cls, seam)[:1]}
        if len(found) > 1:
            both = " and ".join(sorted(found.values()))
            raise ConfigError(f"variant {title!r}: {both} both own the seam {seam!r}, which only one of a combination may")
    try:
        config = _class_of(merge_configs([(name, cls.Config()) for name, cls in parts], Dreamer.Config(), title))
        classes = tuple(cls for _, cls in parts)
        body = {"__doc__": " + ".join(_headline(c) for c in classes), "__module__": __name__, "Config": config}
        return type("".join(c.__name__ for c in classes), classes, body)
    except TypeError as error:
        raise ConfigError(f"variant {title!r} cannot be built: {error}") from None


def _headline(cls: type) -> str:
    return (cls.__doc__ or cls.__name__).strip().partition("\n")[0]


# ---------------------------------------------------------------------------------------------------- configurations


def merge_configs(parts: Sequence[tuple[str, Any]], base: Any, title: str, path: str = "") -> Any:
    """One configuration out of several that extend `base`: the knobs of all, with the defaults that any of them changed.

    Groups are merged leaf by leaf. Raises ConfigError for a knob that two parts declare independently and for a default that
    two parts change differently. The result's class is the most special of theirs, or a new one that inherits from several.
    """
    kinds = list(dict.fromkeys(type(cfg) for _, cfg in parts))
    special = [k for k in kinds if not any(other is not k and issubclass(other, k) for other in kinds)]
    values: dict[str, Any] = {}
    for name in dict.fromkeys(f.name for kind in special for f in fields(kind)):
        holders = [(part, getattr(cfg, name)) for part, cfg in parts if hasattr(cfg, name)]
        if base is not None and hasattr(base, name):
            values[name] = _settle(holders, getattr(base, name), title, f"{path}{name}")
            continue
        declared = {_declares(type(cfg), name): part for part, cfg in reversed(parts) if hasattr(cfg, name)}
        if len(declared) > 1:
            raise ConfigError(f"variant {title!r}: {' and '.join(sorted(declared.values()))} both have a knob {path + name!r}")
        values[name] = _settle(holders, holders[0][1], title, f"{path}{name}")
    return (special[0] if len(special) == 1 else _joined(special))(**values)


def _settle(holders: list[tuple[str, Any]], base: Any, title: str, path: str) -> Any:
    """The one default that parts agree on: the base's own unless somebody changed it."""
    changed = [(part, value) for part, value in holders if value != base or type(value) is not type(base)]
    if not changed:
        return base
    if all(value == changed[0][1] and type(value) is type(changed[0][1]) for _, value in changed):
        return changed[0][1]
    if all(is_dataclass(value) for _, value in holders) and is_dataclass(base):
        return merge_configs(holders, base, title, f"{path}.")
    said = ", ".join(f"{part} says {value!r}" for part, value in changed)
    raise ConfigError(f"variant {title!r}: the default of {path!r} is changed in two ways: {said}")


def _declares(kind: type, name: str) -> type:
    """The class that declares a field first."""
    return next(c for c in reversed(kind.__mro__) if name in vars(c).get("__annotations__", {}))


def _joined(kinds: Sequence[type]) -> type:
    """A configuration class that inherits from several."""
    body = {"__doc__": " ".join(_headline(k) for k in kinds), "__module__": __name__, "__annotations__": {}}
    return dataclass(frozen=True, kw_only=True)(type("".join(k.__name__ for k in kinds), tuple(kinds), body))


def _class_of(cfg: Any) -> type:
    """The class of a configuration whose defaults are its values, made where there is none yet."""
    kind: Any = type(cfg)
    usual: Any = kind()
    changed = {f.name: getattr(cfg, f.name) for f in fields(kind) if getattr(cfg, f.name) != getattr(usual, f.name)}
    changed |= {f.name: getattr(cfg, f.name) for f in fields(kind) if type(getattr(cfg, f.name)) is not type(getattr(usual, f.name))}
    if not changed:
        return kind
    body: dict[str, Any] = {"__doc__": kind.__doc__, "__module__": __name__}
    body |= {name: field(default_factory=partial(_same, value)) for name, value in changed.items()}
    body["__annotations__"] = {name: hints(kind)[name] for name in changed}
    made: type = dataclass(frozen=True, kw_only=True)(type(kind.__name__, (kind,), body))
    # Comments and types of a knob are looked up at the class that declares it, which is not this one.
    made.__annotations__ = {}
    return made


def _same(value: Any) -> Any:
    return value
