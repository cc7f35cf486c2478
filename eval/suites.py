"""Suites: which tasks, for how long, offered how, with which published settings. Built in by name, or read from a user's file.

Settings are options of `polydream train` as text. `settings` say what the tasks are (observations, action repeat) and always
apply; `learning` is what the published curves were made with, and gives way to any --preset, --size or single option.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.config import ConfigError, convert, hints, nearest, unknown
from ..tasks.suites import contents
from .references import atari


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One task of a suite. low, high: scores that normalise to 0 and 1. published: its name in the score files, "" for none.

    name: without one, the task without its family and namespace (`cartpole_balance`, `Alien-v5`), and the options that make it another
    task. success: return from which an episode is a success, for who trains one agent on all (`tasks/suites.py`); means nothing here.
    """

    task: str
    name: str = ""
    steps: int = 0  # budget in environment steps, action repeat included; 0 takes the suite's
    low: float = 0.0
    high: float = 1.0
    success: float | None = None
    published: str = ""
    settings: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        options = self.settings.get("env.options", "")
        object.__setattr__(self, "name", self.name or self.task.rpartition("/")[2] + (f"[{options}]" if options else ""))
        if self.low == self.high:
            raise ConfigError(f"{self.name}: low and high, the scores that count as 0 and 1, are both {self.low:g}")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named set of tasks. window: environment steps at the end of the budget that training returns are averaged over.

    scores: prefix of the published score files. needs: module that must be importable, and what to do where it is not.
    note: what differs from the published protocol, and where `low` and `high` come from; printed in the report.
    """

    name: str
    about: str
    tasks: tuple[Entry, ...]
    steps: int
    seeds: int
    window: int
    settings: dict[str, str] = field(default_factory=dict, hash=False)
    learning: dict[str, str] = field(default_factory=dict, hash=False)
    scores: str = ""
    needs: tuple[str, str] = ("", "")
    note: str = ""

    def only(self, names: tuple[str, ...]) -> Suite:
        """The suite with these tasks only, by name or whole task id. Raises ConfigError naming the nearest."""
        known = {entry.name: entry for entry in self.tasks} | {entry.task: entry for entry in self.tasks}
        for name in names:
            if name not in known:
                raise ConfigError(f"suite {self.name} has no task {name!r}; did you mean {nearest(name, known)[0]!r}?")
        chosen = [known[name] for name in names]
        return replace(self, tasks=tuple(entry for entry in self.tasks if entry in chosen)) if names else self

    def budget(self, entry: Entry) -> int:
        """Environment steps of a task."""
        return entry.steps or self.steps

    def require(self) -> None:
        """Raise ConfigError where the library of the tasks is not installed, with what to do about it."""
        module, cure = self.needs
        if module and find_spec(module) is None:
            raise ConfigError(f"suite {self.name} needs {module}, which is not installed: {cure}")


PROPRIO = [
    "acrobot_swingup", "ball_in_cup_catch", "cartpole_balance", "cartpole_balance_sparse", "cartpole_swingup",
    "cartpole_swingup_sparse", "cheetah_run", "finger_spin", "finger_turn_easy", "finger_turn_hard", "hopper_hop", "hopper_stand",
    "pendulum_swingup", "reacher_easy", "reacher_hard", "walker_run", "walker_stand", "walker_walk",
]  # fmt: skip
VISION = sorted([*PROPRIO, "quadruped_run", "quadruped_walk"])
GAMES = [
    "alien", "amidar", "assault", "asterix", "bank_heist", "battle_zone", "boxing", "breakout", "chopper_command", "crazy_climber",
    "demon_attack", "freeway", "frostbite", "gopher", "hero", "jamesbond", "kangaroo", "krull", "kung_fu_master", "ms_pacman",
    "pong", "private_eye", "qbert", "road_runner", "seaquest", "up_n_down",
]  # fmt: skip
MEMORY = ("S7-v0", "S9-v0", "S11-v0", "S13-v0", "S13Random-v0", "S17Random-v0")
PUBLISHED = {"size": "size12m", "batch": "16", "length": "64", "ratio": "512"}


def _dmc(name: str, tasks: list[str], *, obs: str, steps: int, seeds: int, window: int, scores: str) -> Suite:
    entries = tuple(Entry(task=f"dmc/{task}", high=1000.0, published=f"dmc_{task}") for task in tasks)
    return Suite(
        name=name,
        about=f"DeepMind Control Suite from {'state vectors' if obs == 'vector' else '64 x 64 pixels'}, {len(tasks)} tasks",
        tasks=entries,
        steps=steps,
        seeds=seeds,
        window=window,
        settings={"env.obs": obs, "env.repeat": "2"},
        learning=PUBLISHED | {"env.count": "16"},
        scores=scores,
        note="Score / 1000, the highest possible return. Settings are those of the published curves: size12m, ratio 512, 16 environments.",
    )


def _proprio() -> Suite:
    return _dmc("dmc-proprio", PROPRIO, obs="vector", steps=500_000, seeds=5, window=30_000, scores="dmc_proprio")


def _vision() -> Suite:
    return _dmc("dmc-vision", VISION, obs="pixels", steps=1_000_000, seeds=10, window=20_000, scores="dmc_vision")


def _atari100k() -> Suite:
    options = "frameskip=1,repeat_action_probability=0.0,full_action_space=false"
    entries = []
    for game in GAMES:
        low, high = atari()[game]
        title = "".join(word.title() for word in game.split("_"))
        entries.append(Entry(task=f"gym/ALE/{title}-v5", low=low, high=high, published=f"atari_{game}"))
    return Suite(
        name="atari100k",
        about="26 Atari games, 100 000 decisions of 4 frames",
        tasks=tuple(entries),
        steps=400_000,
        seeds=5,
        window=10_000,
        settings={"env.obs": "pixels", "env.repeat": "4", "env.options": options},
        learning={"size": "size200m", "batch": "16", "length": "64", "ratio": "256", "env.count": "1"},
        scores="atari100k",
        needs=("ale_py", 'pip install "polydream[atari]"'),
        note="Human-normalised: random play is 0, a human tester 1. No sticky actions, the game's own action set. Unlike the published "
        "protocol there are no random no-ops at the start, and the last of 4 frames is seen, not the maximum of the last two.",
    )


def _crafter() -> Suite:
    return Suite(
        name="crafter",
        about="Crafter, an open world with 22 achievements, from pixels",
        tasks=(Entry(task="gym/CrafterReward-v1", low=2.1, high=14.3),),
        steps=1_000_000,
        seeds=5,
        window=100_000,
        learning={"size": "size200m", "batch": "16", "length": "64", "ratio": "512", "env.count": "1"},
        needs=("crafter", 'pip install "polydream[crafter]"'),
        note="Return, normalised by random play (2.1) and human experts (14.3) of Hafner 2021, arXiv 2109.06780; not the score of "
        "that paper, a geometric mean of success rates. No published curves are in the package.",
    )


def _minigrid() -> Suite:
    return Suite(
        name="minigrid-memory",
        about="MiniGrid's memory tasks: choose the object that was seen at the start",
        tasks=tuple(Entry(task=f"gym/MiniGrid-Memory{size}", low=0.0, high=1.0) for size in MEMORY),
        steps=1_000_000,
        seeds=3,
        window=20_000,
        learning=PUBLISHED,
        needs=("minigrid", 'pip install "polydream[minigrid]"'),
        note="Raw return, at most 1. Settings are ours: no DreamerV3 results on these tasks were published with their settings.",
    )


def _minecraft() -> Suite:
    return Suite(
        name="minecraft",
        about="Minecraft Diamond: twelve milestones from a log to a diamond",
        tasks=(Entry(task="polydream.tasks.minecraft:make", high=12.0, published="minecraft_diamond"),),
        steps=100_000_000,
        seeds=10,
        window=1_000_000,
        learning={"size": "size200m", "batch": "16", "length": "64", "ratio": "32", "env.count": "16"},
        scores="minecraft_diamond",
        needs=("minerl", "MineRL 0.4.4 needs Java 8 and is built from https://github.com/minerllabs/minerl (`pip install minerl==0.4.4`)"),
        note="Return / 12. The published runs broke blocks faster than the game does, which this adapter does not change.",
    )


def _worlds() -> Suite:
    entries = (
        Entry(task="world/chain", low=0.26, high=1.0),
        Entry(task="world/reach", low=13.2, high=19.3),
        Entry(task="world/grid4", low=-0.36, high=1.0),
    )
    return Suite(
        name="worlds",
        about="In-package worlds, minutes on a laptop: delayed reward, continuous actions, contradicting goals",
        tasks=entries,
        steps=2_500,
        seeds=3,
        window=1_000,
        learning={
            "preset": "laptop", "batch": "16", "length": "16", "ratio": "128", "warmup": "256", "agent.starts": "4",
            "eval.every": "0", "eval.episodes": "20", "eval.video": "false",
        },
        note="0 is a uniformly random policy, 1 the best possible (both exact, see `tasks/`). Too small to rank variants in general.",
    )  # fmt: skip


SUITES: dict[str, Callable[[], Suite]] = {
    "worlds": _worlds,
    "dmc-proprio": _proprio,
    "dmc-vision": _vision,
    "atari100k": _atari100k,
    "crafter": _crafter,
    "minigrid-memory": _minigrid,
    "minecraft": _minecraft,
}


def find(name: str) -> Suite:
    """A suite by name, or from a file that ends in .toml, .yaml or .yml. Raises ConfigError naming the nearest."""
    if Path(name).suffix in (".toml", ".yaml", ".yml"):
        return read(Path(name))
    if name not in SUITES:
        raise ConfigError(f"no suite {name!r}; did you mean {nearest(name, SUITES)[0]!r}? There are {', '.join(SUITES)}, or a file")
    return SUITES[name]()


def read(path: Path) -> Suite:
    """A user's suite: the fields of `Suite`, and under `tasks` those of `Entry` or just task names. Format: docs/benchmark.md.

    Raises ConfigError naming the key for what a suite cannot have.
    """
    return build(contents(path), path)


def build(data: Any, path: Path) -> Suite:
    """A suite from the contents of a file. path: of that file, for errors and as a name."""
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list) or not data["tasks"]:
        raise ConfigError(f"{path}: a suite is a table of options with a list of `tasks`")
    entries = tuple(Entry(**_fields(Entry, {"task": row} if isinstance(row, str) else row, path)) for row in data["tasks"])
    given = _fields(Suite, {key: value for key, value in data.items() if key != "tasks"}, path)
    values: dict[str, Any] = {"name": path.stem, "about": str(path), "steps": 0, "seeds": 3, "window": 20_000} | given
    suite = Suite(**values, tasks=entries)
    names = [entry.name for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{path}: two tasks are called {twice[0]!r}; give each a `name` of its own")
    if missing := [entry.task for entry in entries if not suite.budget(entry)]:
        raise ConfigError(f"{path}: {missing[0]} has no budget; give `steps` for it or for the suite")
    return suite


def _fields(cls: type, data: Any, path: Path) -> dict[str, Any]:
    """Values of a dataclass from a table: typed, unknown keys refused with the nearest, groups of options made texts."""
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: {data!r} is neither a task's name nor a table of options")
    kinds = hints(cls)
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key not in kinds:
            raise ConfigError(f"{path}: {unknown(str(key), kinds)}")
        found[key] = _texts(value, f"{path}: {key}") if kinds[key] == dict[str, str] else convert(kinds[key], value, f"{path}: {key}")
    return found


def _texts(value: Any, path: str, prefix: str = "") -> dict[str, str]:
    """Options as the command line takes them: nested tables under dotted names, lists separated by commas."""
    if not isinstance(value, dict):
        raise ConfigError(f"{path} wants a table of options, got {value!r}")
    found: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _texts(item, path, f"{prefix}{key}.")
        else:
            words = item if isinstance(item, list) else [item]
            found[f"{prefix}{key}"] = ",".join(str(w).lower() if isinstance(w, bool) else str(w) for w in words)
    return found
