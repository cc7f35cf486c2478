"""Variants and tasks by name, through entry points: ours are registered the same way as a stranger's, imported when chosen."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from .config import ConfigError

GROUPS = ("polydream.variants", "polydream.tasks")


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of everything installed in a group, not yet imported.

    In a checkout that was never installed the entry points are read from its pyproject.toml.
    Raises RuntimeError where two packages claim one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in [*entry_points(group=group), *_from_checkout(group)]:
        if entry.name in found and found[entry.name].value != entry.value:
            raise RuntimeError(f"two packages offer {entry.name!r} in {group}: {found[entry.name].value} and {entry.value}")
        found[entry.name] = entry
    return dict(sorted(found.items()))


def _from_checkout(group: str) -> list[EntryPoint]:
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    if not pyproject.is_file():
        return []
    import tomllib

    declared = tomllib.loads(pyproject.read_text())["project"].get("entry-points", {}).get(group, {})
    return [EntryPoint(name, value, group) for name, value in declared.items()]


def lookup(group: str, name: str) -> Any:
    """The object behind a registered name, or behind `module:attribute` for code that is not registered.

    Raises KeyError naming the nearest installed names.
    """
    if ":" in name:
        return _load_path(name)
    known = registered(group)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"installed: {', '.join(known)}"
        raise KeyError(f"no {group.split('.')[-1][:-1]} named {name!r}; {hint}")
    return known[name].load()


def _load_path(path: str) -> Any:
    """`module:attribute`, with the current folder importable, so that a user's own file needs no installation."""
    module, _, attribute = path.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    target = importlib.import_module(module)
    if not hasattr(target, attribute):
        near = get_close_matches(attribute, dir(target), n=1)
        raise KeyError(f"{module} has no {attribute!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return getattr(target, attribute)


def variant(name: str) -> Any:
    """The class of a variant, by name or by `module:Class`; of several joined by + the class that combines them.

    The same names in any order give the same class. Raises KeyError naming the nearest installed names, and ConfigError where
    variants do not combine.
    """
    names = [part.strip() for part in name.split("+")]
    return _combined(tuple(sorted(names))) if len(names) > 1 else lookup("polydream.variants", name)


def ancestor(cls: type) -> str:
    """Name of the registered variant that a class is or descends from, empty where there is none."""
    names = {entry.value: name for name, entry in registered("polydream.variants").items()}
    return next((names[key] for c in cls.__mro__ if (key := f"{c.__module__}:{c.__qualname__}") in names), "")


@cache
def _combined(names: tuple[str, ...]) -> Any:
    # Imported here because tasks use this module, too, and know nothing of agents.
    from .agent import Dreamer
    from .compose import compose

    parts = [(name, lookup("polydream.variants", name)) for name in names]
    for name, found in parts:
        if not (isinstance(found, type) and issubclass(found, Dreamer)):
            raise ConfigError(f"variant {name!r} is {found!r}, not a class that inherits from polydream.core.agent.Dreamer")
    return compose(parts)


def task(name: str, **options: Any) -> Any:
    """Make one environment by `family/name` (`dmc/cartpole_balance`, `gym/CartPole-v1`, `world/fourrooms`) or `module:factory`.

    options: `seed`, and what the family's maker takes (`repeat`, `obs`, `size`, `camera`). Returns a Task.
    """
    if ":" in name:
        return lookup("polydream.tasks", "module")(name, **options)
    family, _, rest = name.partition("/")
    return lookup("polydream.tasks", family)(rest, **options)
