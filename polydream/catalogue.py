"""What `polydream list` prints: variants with their seams, knobs and combinations, task families, tables of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from .core import registry
from .core.agent import Dreamer
from .core.compose import changed_seams
from .core.config import ConfigError, Option, describe
from .core.presets import resolve
from .core.promises import promises_of
from .eval.knobs import added_knobs
from .flags import explain

INDENT = " " * 15


def variants(names: Iterable[str] = (), full: bool = False) -> str:
    """Text about variants, by default all that are registered. full: a line for every knob, with its comment, instead of a list."""
    lines = ["variants (--variant NAME, several as NAME+NAME, or module:Class of your own)"]
    for name in names or registry.registered("polydream.variants"):
        resolve({"variant": name})  # refuses what does not exist or is no agent, with the nearest name
        cls = registry.variant(name)
        lines += [f"  {name:12} {headline(cls)}", *_wrapped("changes", ", ".join(changed_seams(cls)) or "nothing")]
        if needs := promises_of(cls).requires:
            lines += _wrapped("needs from the task", ", ".join(needs))
        lines += _combinations(name) + _knobs(cls, full)
    return "\n".join(lines)


def _combinations(name: str) -> list[str]:
    """Which registered variants one combines with, and why not with others."""
    good, lines = [], []
    for other in registry.registered("polydream.variants"):
        if other in (name, "base") or name == "base" or other in name.split("+"):
            continue
        try:
            registry.variant(f"{name}+{other}")
            good.append(other)
        except ConfigError as error:
            lines += _wrapped(f"not with {other}", str(error))
    return (_wrapped("combines with", ", ".join(good)) if good else []) + lines


def _knobs(cls: type[Dreamer], full: bool) -> list[str]:
    """The knobs that a variant adds, with their defaults; groups of the core's own kind, such as heads, by their name."""
    knobs = added_knobs(cls)
    if not knobs:
        return []
    paths = [k.leaf.path for k in knobs]
    options = [o._replace(path=f"agent.{o.path}") for o in describe(cls.Config()) if o.path in paths]
    if full:
        return ["", explain(options)]
    lone = {k.leaf.path for k in knobs if k.group == k.leaf.path}
    groups = dict.fromkeys(k.group for k in knobs if k.leaf.path not in lone)
    shown = [f"{o.path.removeprefix('agent.')} {_value(o)}" for o in options if o.path.removeprefix("agent.") in lone]
    return _wrapped("knobs (--agent.KNOB VALUE)", ", ".join([*shown, *(f"{group}.*" for group in groups)]))


def _wrapped(title: str, text: str) -> list[str]:
    return wrap(f"{title}: {text}", 140, initial_indent=INDENT, subsequent_indent=f"{INDENT}  ", break_long_words=False)


def _value(option: Option) -> str:
    value = option.default
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def tables(named: Mapping[str, Sequence[str] | Mapping[str, Any]]) -> str:
    """Text about task families, and the names of other things to choose from."""
    lines = ["tasks (--task FAMILY/NAME, or module:factory of your own)"]
    for name, entry in registry.registered("polydream.tasks").items():
        if name != "module":
            lines.append(f"  {name + '/NAME':12} {headline(entry.load())}")
    for title, table in named.items():
        lines += ["", f"{title.lower()} (--{title[:-1].lower()} NAME)", f"  {', '.join(table)}"]
    return "\n".join(lines)


def headline(thing: Any) -> str:
    """First line of a docstring."""
    return (thing.__doc__ or "").strip().partition("\n")[0]
