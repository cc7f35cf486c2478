"""Does the variant `goal` reach goals? `python -m benchmarks.goals DIR [--seed 0] [--world fourrooms] [--set key=value ...]`.

Trains in a world of rooms where some cells are held out: they are never commanded and never become goals in hindsight. Judges
training goals, held-out goals, and the control in which every row is told another row's goal; prints one line of JSON with the
random policy's success beside it, and writes goals.json and goals.png (reached in green, missed in red; held-out goals last).
World `oneroom` starts in one of the four rooms and commands no other: `--variant benchmarks.goals:Held+ensemble` explores the rest.
From rendered images with `--set env.obs=pixels env.size=32`. Where a distance was learned, its rank correlation with the true one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensordict import TensorDict

from polydream.core.player import Player, load
from polydream.core.presets import resolve
from polydream.core.rng import seed_for
from polydream.core.specs import Spec, Task
from polydream.core.train import train
from polydream.eval.goals import Attempt, attempt, goal_grid
from polydream.eval.rollout import RandomPlayer
from polydream.tasks.base import Common
from polydream.tasks.grids import FourRooms, Grid, Rooms25, place, places
from polydream.variants.goal import Goal

from .distances import KNOWN, agreement, steps_away, visits

COMMON = {
    "batch": 16,
    "length": 16,
    "replay.online": False,
    "agent.optim.lr": 1e-3,
    "agent.starts": 8,
}
FEW = {"steps": 5000, "random": 500, "ratio": 128}
DEFAULTS = {"fourrooms": FEW, "oneroom": FEW, "rooms25": {"steps": 30_000, "random": 1000, "ratio": 32}}
HELD = {"fourrooms": 12, "oneroom": 12, "rooms25": 25}
"""How many cells are held out."""


def held_out(spots: np.ndarray, count: int) -> np.ndarray:
    """Cells (count, 2) that are no goals in training, the same every time. Every row and column of theirs is seen in other goals."""
    chosen = spots[np.random.default_rng(0).choice(len(spots), count, replace=False)]
    rest = {tuple(s) for s in spots} - {tuple(c) for c in chosen}
    assert all({c[i] for c in chosen} <= {r[i] for r in rest} for i in (0, 1))
    return chosen


class Told(Grid):
    """A grid with goals of our choosing: `goal` is the number of a cell, or -1 for a random one that is not held out."""

    def __init__(self, *args: Any, goal: int = -1, **options: Any) -> None:
        super().__init__(*args, **options)
        held = {tuple(c) for c in held_out(self._spots, HELD[self.name.rpartition("/")[2]])}
        self._open = np.array([s for s in self._spots if tuple(s) not in held])
        self._told = goal

    def _aim(self, not_at: np.ndarray) -> np.ndarray:
        if self._told >= 0:
            return self._spots[self._told]
        choice = self._open[(self._open != not_at).any(1)]
        return choice[self._rng.integers(len(choice))]

    def judged(self, cell: np.ndarray) -> bool:
        """Whether success is measured at a cell."""
        return True


class HeldRooms(Told, FourRooms):
    """Four rooms, starting anywhere."""

    def _start(self) -> None:
        self._goal = self._aim(np.array([-1, -1]))
        self._cell = self._draw(not_at=self._goal)


class OneRoom(HeldRooms):
    """Four rooms, starting in the top left one and never commanded to leave it. Success is measured at all goals outside of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._room = np.array([s for s in self._spots if not self.judged(s)])
        self._open = np.array([s for s in self._open if not self.judged(s)])

    def judged(self, cell: np.ndarray) -> bool:
        """Beyond the walls of the first room, whose doors count as outside."""
        return bool((cell >= 5).any())

    def _start(self) -> None:
        self._cell = self._room[self._rng.integers(len(self._room))]
        self._goal = self._aim(self._cell)


class HeldRooms25(Told, Rooms25):
    """25 rooms with goals, starting in the first room."""

    memory = ("_cell", "_goal")

    def __init__(self, name: str, common: Common, *, goal: int = -1, limit: int = 200) -> None:
        super().__init__(name, common, goal=goal, limit=limit)
        self.spec = replace(self.spec, obs={**self.spec.obs, **places(self._free, "goal_")})

    def _start(self) -> None:
        super()._start()
        self._goal = self._aim(self._cell)

    def _vectors(self) -> dict[str, np.ndarray]:
        return super()._vectors() | place(self._goal, "goal_")


WORLDS: dict[str, Callable[..., Any]] = {"fourrooms": HeldRooms, "oneroom": OneRoom, "rooms25": HeldRooms25}


def rooms(world: str = "fourrooms", seed: int = 0, goal: int = -1, obs: str = "vector", size: int = 64) -> Task:
    """The task of a run: `--task benchmarks.goals:rooms`. In pixels goals are pictures of the agent standing there."""
    common = Common(seed=seed, obs=obs, size=size)
    if common.pixels and world == "rooms25":
        raise ValueError("rooms25 has no pictures of goals: leave env.obs at vector, or choose fourrooms")
    task: Task = WORLDS[world](f"world/{world}", common, goal=goal, **({"seen": False} if common.pixels else {}))
    return task


def rooms_of(spec: Spec, world: str = "") -> Callable[..., Task]:
    """`rooms` as an agent of this spec sees them; where it starts anywhere, unless a world is named."""
    kind = _kind(spec)
    return partial(rooms, **{**kind, "world": world or kind["world"]})


def _kind(spec: Spec) -> dict[str, Any]:
    if "image" in spec.obs:
        return {"world": "fourrooms", "obs": "pixels", "size": spec.obs["image"].shape[0]}
    return {"world": "fourrooms" if spec.obs["y"].classes == 11 else "rooms25"}


@lru_cache
def held_out_sights(**kind: Any) -> dict[str, torch.Tensor]:
    """What an agent sees in held-out cells (count, *shape), by key."""
    make = partial(rooms, **kind)
    probe = make()
    _, numbers = goals_of(make)
    told = [make(goal=n).reset(0)["obs"] for n in numbers]
    return {a: torch.as_tensor(np.stack([t[d] for t in told])) for d, a in probe.spec.goals.items()}


class Held(Goal):
    """The variant, never setting a held-out cell as a goal in hindsight."""

    def eligible(self, batch: TensorDict) -> torch.Tensor:
        """Steps in cells that are not held out, bool (B, T)."""
        shown = held_out_sights(**_kind(self.spec))
        lead = (*batch.batch_size, next(iter(shown.values())).shape[0], -1)
        same = [(batch["obs", k].unsqueeze(2) == v.to(batch.device)).reshape(lead).all(-1) for k, v in shown.items()]
        return ~torch.stack(same).all(0).any(-1)


def goals_of(make: Callable[..., Task]) -> tuple[list[int], list[int]]:
    """Numbers of the training cells and of the held-out ones."""
    probe: Any = make()
    held = {tuple(c) for c in held_out(probe._spots, HELD[probe.name.rpartition("/")[2]])}
    numbers = {tuple(s): i for i, s in enumerate(probe._spots) if probe.judged(s)}
    return [i for s, i in numbers.items() if s not in held], [numbers[h] for h in sorted(held & numbers.keys())]


def judge(
    player: Player | RandomPlayer, make: Callable[..., Task], *, episodes: int, seed: int, pictures: bool = False
) -> tuple[dict[str, Any], list[Attempt]]:
    """Success at training and held-out goals and under goals that are not one's own; path length over the shortest, on successes."""
    trained, held = goals_of(make)
    found: dict[str, Any] = {}
    shown: list[Attempt] = []
    for name, numbers in (("trained", trained), ("held", held), ("shuffled", trained)):
        makers = [partial(make, goal=g) for g in numbers] * episodes
        told = [(i + len(numbers) // 2) % len(makers) for i in range(len(makers))] if name == "shuffled" else None
        tries = attempt(player, makers, seed=seed, told=told, pictures=pictures and name != "shuffled")
        shown += tries[: len(numbers)] if name != "shuffled" else []
        least = [
            _shortest(maker(), seed_for(seed, "goals", i)) if t.steps else 0 for i, (t, maker) in enumerate(zip(tries, makers, strict=True))
        ]
        ways = [t.steps / shortest for t, shortest in zip(tries, least, strict=True) if shortest]  # some begin where they are to go
        found[name] = round(float(np.mean([t.reached for t in tries])), 3)
        found[f"{name}_path"] = round(float(np.mean(ways)), 2) if ways else None
    return found, shown


def _shortest(task: Any, seed: int) -> int:
    """Steps from where the episode of this seed begins to its goal."""
    task.reset(seed)
    return int(steps_away(task._free, task._goal)[tuple(task._cell)])


def main() -> None:
    """Train, or judge a finished run, and write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=list(WORLDS), default="fourrooms")
    parser.add_argument("--variant", default="benchmarks.goals:Held")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    parser.add_argument("--episodes", type=int, default=4, help="per goal")
    args = parser.parse_args()
    settings = {**COMMON, **DEFAULTS[args.world], **dict(s.split("=", 1) for s in args.set)}
    if not (args.dir / "config.yaml").exists():
        chosen = {"variant": args.variant, "task": "benchmarks.goals:rooms", "preset": "laptop"}
        fixed = {"seed": args.seed, "dir": str(args.dir), "env.options": f"world={args.world}", "log.mlflow": False, "threads": 1}
        train(resolve(chosen, {**fixed, **settings}))
    player = load(args.dir, code=[args.variant, "benchmarks.goals:rooms"])
    make = rooms_of(player.spec, args.world)
    found, shown = judge(player, make, episodes=args.episodes, seed=args.seed, pictures=True)
    if "distance" in player.agent.nets:
        task: Any = make()
        found |= agreement(player.agent, task, visits(args.dir, task._free) if not task.spec.obs.get("image") else task._free * KNOWN)
    chance, _ = judge(RandomPlayer(player.spec, args.seed), make, episodes=args.episodes, seed=args.seed)
    result = {"world": args.world, "seed": args.seed, **settings, **found, "chance": chance["trained"], "chance_held": chance["held"]}
    (args.dir / "goals.json").write_text(json.dumps(result) + "\n")
    Image.fromarray(goal_grid(shown, 10)).resize((800, -(-len(shown) // 10) * 80)).save(args.dir / "goals.png")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
