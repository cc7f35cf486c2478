"""Several tasks as one: `suite/<name>` or `suite/<file>`. Every episode is of one of them, whose number is the extra `task`.

| suite | tasks |
|---|---|
| world-grid4 | one 7 x 7 room, four corners that exclude each other |
| dmc-walker | stand, walk, run: one body |
| dmc-cartpole | balance, swingup, and both with sparse reward |
| dmc-cartpole-dense | balance and swingup |
| dmc-cheetah | run forwards, run backwards |
| dmc-mixed | cartpole swingup, reacher easy, cheetah run: three bodies |
| atari-3 | Battle Zone, Name This Game, Phoenix; `polydream[atari]`, `--env.obs pixels --env.repeat 4` |
| metaworld-mt10 | ten tasks of one arm; `polydream[metaworld]` |

A file (.toml, .yaml, .yml) lists `tasks`: names, or tables with `task`, and optionally `name`, `low`, `high`, `success` and
`settings.env.options`, as in the suites of `polydream benchmark`. It names installed tasks only, never code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core import registry
from ..core.config import ConfigError
from ..core.rng import seed_for
from ..core.specs import Member, Restorable, Space, Spec, Step, Task
from .base import hint

BESIDE = {"about", "name", "needs", "note", "scores", "seeds", "steps", "window", "learning", "settings", "published"}
"""What a file may say for the benchmark that means nothing here, or has to be said on the command line."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One task of a suite. low, high: returns that count as 0 and 1. success: return from which an episode is a success."""

    task: str
    name: str = ""
    low: float = 0.0
    high: float = 1.0
    success: float | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def title(self) -> str:
        """Its name, or that of the task without its family."""
        return self.name or self.task.rpartition("/")[2]


def _dmc(*tasks: tuple[str, float]) -> tuple[Entry, ...]:
    return tuple(Entry(task=f"dmc/{name}", low=low, high=1000.0) for name, low in tasks)


def _atari(**games: tuple[float, float]) -> tuple[Entry, ...]:
    # All 18 actions, so that each means the same in every game; no sticky actions; the engine repeats, the emulator does not.
    options = {"frameskip": 1, "repeat_action_probability": 0.0, "full_action_space": True}
    return tuple(Entry(task=f"gym/ALE/{name}-v5", name=name, low=low, high=high, options=options) for name, (low, high) in games.items())


def _metaworld(**scores: tuple[float, float]) -> tuple[Entry, ...]:
    names = {key: f"{key.replace('_', '-')}-v3" for key in scores}
    return tuple(
        Entry(task="gym/Meta-World/MT1", name=names[key], low=low, high=high, options={"env_name": names[key]})
        for key, (low, high) in scores.items()
    )


# Of dm_control low is a uniformly random policy at the usual action repeat of 2 (mean of 30 episodes), high the highest possible return.
# Of Atari the two are random play and a human tester (eval/data), the games the three that tell most of the 57's median (Aitchison et
# al. 2023). Of Meta-World they are random play and the package's scripted policies (`python -m benchmarks.scripted`).
SUITES: dict[str, tuple[Entry, ...]] = {
    "world-grid4": tuple(Entry(task="world/grid4", name=f"corner{g}", low=-0.36, success=1.0, options={"goal": g}) for g in range(4)),
    "dmc-walker": _dmc(("walker_stand", 133), ("walker_walk", 40), ("walker_run", 24)),
    "dmc-cartpole": _dmc(
        ("cartpole_balance", 327), ("cartpole_swingup", 43), ("cartpole_balance_sparse", 48), ("cartpole_swingup_sparse", 0)
    ),
    "dmc-cartpole-dense": _dmc(("cartpole_balance", 327), ("cartpole_swingup", 43)),
    "dmc-cheetah": (
        *_dmc(("cheetah_run", 8)),
        Entry(task="polydream.tasks.cheetah:backwards", name="cheetah_backwards", low=23.0, high=1000.0),
    ),
    "atari-3": _atari(BattleZone=(2360.0, 37187.5), NameThisGame=(2292.3, 8049.0), Phoenix=(761.4, 7242.6)),
    "metaworld-mt10": _metaworld(
        reach=(957, 4836),
        push=(25, 4029),
        pick_place=(7, 4534),
        door_open=(326, 4448),
        drawer_open=(674, 4036),
        drawer_close=(441, 4246),
        button_press_topdown=(208, 3583),
        peg_insert_side=(8, 3418),
        window_open=(225, 2107),
        window_close=(338, 3612),
    ),
    "dmc-mixed": _dmc(("cartpole_swingup", 43), ("reacher_easy", 49), ("cheetah_run", 8)),
}


def make(name: str, **common: Any) -> Several:
    """Several tasks as one, by suite or file: `make("dmc-walker", repeat=2)`; a task's own name makes a suite of that one.

    Options are those that all of its tasks take.

    Raises KeyError for an unknown suite, ConfigError for a file that is none, ValueError for tasks that do not fit together.
    """
    if Path(name).suffix in (".toml", ".yaml", ".yml"):
        return Several(f"suite/{Path(name).stem}", read(Path(name)), common)
    if "/" in name or ":" in name:
        return Several(f"suite/{name}", (Entry(task=name),), common)
    if name not in SUITES:
        raise KeyError(f"no suite/{name}; {hint(name, SUITES)}, or a .toml or .yaml file")
    return Several(f"suite/{name}", SUITES[name], common)


def read(path: Path) -> tuple[Entry, ...]:
    """The tasks of a user's suite. Raises ConfigError naming what a suite cannot have."""
    data = contents(path)
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list) or not data["tasks"]:
        raise ConfigError(f"{path}: a suite is a table with a list of `tasks`")
    _refuse(data, {"tasks"} | BESIDE, path)
    return tuple(_entry({"task": row} if isinstance(row, str) else row, path) for row in data["tasks"])


def _entry(row: Any, path: Path) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("task"), str):
        raise ConfigError(f"{path}: {row!r} is neither a task's name nor a table with `task`")
    known = {f.name for f in fields(Entry)} - {"options"}
    _refuse(row, known | BESIDE, path)
    if ":" in row["task"]:
        raise ConfigError(f"{path}: {row['task']!r} is code, which a file may not choose; register it under polydream.tasks")
    settings = row.get("settings", {})
    for key in _settings(settings):
        if key != "env.options" and not key.startswith("env.options."):
            raise ConfigError(f"{path}: {row['task']} sets {key}, which all tasks of one agent share: leave it out and say --{key}")
    options = settings.get("env.options", settings.get("env", {}).get("options", {})) if isinstance(settings, dict) else {}
    if not isinstance(options, dict):
        words = options if isinstance(options, list) else str(options).split(",")
        options = {k: _value(v) for k, _, v in (str(word).partition("=") for word in words)}
    numbers = {k: float(row[k]) for k in ("low", "high", "success") if k in row}
    entry = Entry(task=row["task"], name=str(row.get("name", "")), options=options, **numbers)
    if entry.low == entry.high:
        raise ConfigError(f"{path}: low and high of {entry.title}, the returns that count as 0 and 1, are both {entry.low:g}")
    return entry


def _settings(table: Any, prefix: str = "") -> list[str]:
    """Dotted names of the options of a table and of tables in it."""
    if not isinstance(table, dict):
        return []
    return [name for k, v in table.items() for name in (_settings(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"])]


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def _refuse(table: Mapping[str, Any], known: set[str], path: Path) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: no key {key!r}; {hint(str(key), known)}")


def contents(path: Path) -> Any:
    """What a suite's .toml or YAML file holds. Raises ConfigError where there is none and where it is neither; tags are refused."""
    import tomllib

    import yaml

    if not path.is_file():
        raise ConfigError(f"there is no suite file {path}")
    try:
        return tomllib.loads(path.read_text()) if path.suffix == ".toml" else yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable: {' '.join(str(error).split())}") from None


# ---------------------------------------------------------------------------------------------------- spaces


def union(name: str, specs: Mapping[str, Spec], entries: Sequence[Entry]) -> Spec:
    """The spec that holds all of several: the largest of every axis and of every number of classes, the keys of all.

    Raises ValueError, naming the tasks, where they cannot share one: kinds of a key, its axes, image sizes, action repeat, extras.
    """
    first, members = next(iter(specs)), {}
    for (title, spec), entry in zip(specs.items(), entries, strict=True):
        if spec.repeat != specs[first].repeat:
            raise ValueError(f"{name}: {title} repeats actions {spec.repeat} times, {first} {specs[first].repeat}: set env.repeat")
        if spec.extras or spec.tasks:
            raise ValueError(f"{name}: {title} has extras of its own ({', '.join(spec.extras)}), which a suite cannot share")
        members[title] = Member(obs=spec.obs, action=spec.action, limit=spec.limit, low=entry.low, high=entry.high, success=entry.success)
    limits = [spec.limit for spec in specs.values()]
    return Spec(
        obs=_join(name, {title: spec.obs for title, spec in specs.items()}),
        action=_join(name, {title: spec.action for title, spec in specs.items()}),
        extras={"task": Space(dtype="int32", classes=len(specs))},
        hidden=frozenset().union(*(spec.hidden for spec in specs.values())),
        repeat=specs[first].repeat,
        limit=None if None in limits else max(limit for limit in limits if limit is not None),
        tasks=members,
    )


def _join(name: str, groups: Mapping[str, Mapping[str, Space]]) -> dict[str, Space]:
    joined: dict[str, Space] = {}
    owner: dict[str, str] = {}
    for title, spaces in groups.items():
        for key, space in spaces.items():
            if key not in joined:
                joined[key], owner[key] = space, title
                continue
            other = joined[key]
            alike = (space.image, space.discrete, len(space.shape)) == (other.image, other.discrete, len(other.shape))
            if not alike or (space.image and space.shape != other.shape):
                raise ValueError(f"{name}: {key!r} is {space} in {title} and {other} in {owner[key]}, which one agent cannot share")
            if space != other:
                shape = tuple(map(max, space.shape, other.shape))
                # Bounds are each task's own business: the engine deals in [-1, 1].
                classes = max(space.classes, other.classes) if space.classes and other.classes else None
                joined[key] = Space(shape=shape, dtype=other.dtype, classes=classes)
    return joined


def pad(value: Any, space: Space) -> np.ndarray:
    """`value` in the first elements of zeros of a space's shape and dtype."""
    array = np.asarray(value)
    if array.shape == space.shape:
        return array.astype(space.dtype, copy=False)
    whole = np.zeros(space.shape, space.dtype)
    whole[tuple(slice(n) for n in array.shape)] = array
    return whole


def cut(value: Any, own: Space) -> np.ndarray:
    """The first elements of a shared action, as a task's own. Classes that it lacks count again from its first."""
    array = np.asarray(value)[tuple(slice(n) for n in own.shape)]
    return array % own.classes if own.classes else array


# ---------------------------------------------------------------------------------------------------- the task


@cache
def _specs(name: str, entries: tuple[Entry, ...], options: tuple[str, ...], common: tuple[tuple[str, Any], ...]) -> Spec:
    """The shared spec, for which every task has to be made once."""
    del options  # those of entries, which do not hash: part of the key only
    found = {}
    for entry in entries:
        if entry.title in found:
            raise ValueError(f"{name}: two tasks are called {entry.title!r}: give them a `name`")
        task = _open(entry, dict(common))
        found[entry.title] = task.spec
        task.close()
    return union(name, found, entries)


def _open(entry: Entry, common: Mapping[str, Any]) -> Task:
    make = registry.lookup("polydream.tasks", entry.task) if ":" in entry.task else partial(registry.task, entry.task)
    task: Task = make(**common, **entry.options)
    return task


class Several:
    """Tasks that take turns, episode by episode, those that it plays being chosen by `share`.

    The next episode is of the task that has had the fewest steps, so that long episodes get no larger part of the data. Where
    nothing was shared out, the episode's seed decides, so that it is the same whatever came before.
    Observations and actions are padded to the union of all: a task's own are the first elements.
    """

    def __init__(self, name: str, entries: tuple[Entry, ...], common: Mapping[str, Any]) -> None:
        self.name, self.entries, self.common = name, entries, dict(common)
        self.spec = _specs(name, entries, tuple(str(e.options) for e in entries), tuple(sorted(self.common.items())))
        self.members = list(self.spec.tasks.values())
        self.steps = np.zeros(len(entries), np.int64)  # that each task has had
        self._made: dict[int, Task] = {}
        self.plays = list(range(len(entries)))
        self.now, self._turn, self._shared = 0, int(self.common.get("seed", 0)), False

    def share(self, index: int, count: int) -> None:
        """Play tasks index, index + count, ... only, numbers modulo that of tasks: with as many environments as tasks, one."""
        if not 0 <= index < count:
            raise ValueError(f"environment {index} of {count}: the first is 0")
        self.plays = [(index + k) % len(self.entries) for k in range(0, len(self.entries), count)]
        self.now, self._shared = self.plays[0], True

    @property
    def task(self) -> Task:
        """The one of the present episode, made when first needed."""
        if self.now not in self._made:
            entry = self.entries[self.now]
            self._made[self.now] = _open(entry, self.common)
        return self._made[self.now]

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode of the task whose turn it is."""
        self._turn = self._turn + 1 if seed is None else seed
        drawn = seed_for(self._turn, "task", 0) % len(self.plays)
        self.now = min(self.plays, key=lambda i: int(self.steps[i])) if self._shared else drawn
        return self._row(self.task.reset(self._turn))

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Advance the present task; what lies beyond its own action is ignored."""
        return self._row(self.task.step({k: cut(action[k], s) for k, s in self.members[self.now].action.items()}))

    def _row(self, step: Step) -> Step:
        self.steps[self.now] += 1
        own = self.members[self.now].obs
        obs = {k: pad(step["obs"][k], s) if k in own else np.zeros(s.shape, s.dtype) for k, s in self.spec.obs.items()}
        return {**step, "obs": obs, "task": np.int32(self.now)}

    def render(self) -> np.ndarray:
        """Picture of the present task."""
        return self.task.render()

    def close(self) -> None:
        """Close every task that was made."""
        for task in self._made.values():
            task.close()
        self._made.clear()

    def get_state(self) -> dict[str, Any]:
        """Whose turn it is, how many steps each has had, and the state of every task that was made."""
        inner = {}
        for index, task in self._made.items():
            if not isinstance(task, Restorable):
                raise NotImplementedError(f"{self.entries[index].title} cannot be restored")
            inner[str(index)] = task.get_state()
        return {"now": self.now, "turn": self._turn, "steps": self.steps.copy(), "tasks": inner}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_state` returned."""
        self.steps, self._turn = np.array(state["steps"], np.int64), int(state["turn"])
        for index, inner in state["tasks"].items():
            self.now = int(index)
            task = self.task
            assert isinstance(task, Restorable)
            task.set_state(inner)
        self.now = int(state["now"])
