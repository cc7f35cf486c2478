"""Judging an agent that is told where to go: success per goal at any time and at the end, told the truth or something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.rng import seed_for
from ..core.specs import Spec, Step, Task
from .rollout import Mode, Player

BORDER = {True: (44, 160, 44), False: (214, 39, 40)}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One episode towards one goal.

    reached: at any step. final: at the last one. steps: decisions until the goal was first reached, None where it was not.
    first: the observation it began with. picture: the last state, uint8 (height, width, 3), or None where none was wanted.
    """

    reached: bool
    final: bool
    steps: int | None
    first: Mapping[str, np.ndarray]
    picture: np.ndarray | None = None


def achieved(spec: Spec, obs: Mapping[str, np.ndarray], tolerance: float) -> bool:
    """Whether an observation shows its own goal: Euclidean over all goal keys at most `tolerance`, pixels from 0 to 1.

    The agent never sees this test. Raises ValueError for a task without goals.
    """
    if not spec.goals:
        raise ValueError(f"the task names no goals; observations are {', '.join(spec.obs)}")
    gaps = [(np.float64(obs[a]) - np.float64(obs[d])) / (255 if spec.obs[d].image else 1) for d, a in spec.goals.items()]
    return float(sum(np.square(g).sum() for g in gaps)) <= tolerance**2


def attempt(
    player: Player,
    tasks: Sequence[Callable[[], Task]],
    *,
    seed: int,
    mode: Mode = "sample",
    tolerance: float = 0.5,
    told: Sequence[int] | None = None,
    pictures: bool = False,
) -> list[Attempt]:
    """One episode in each of the tasks, all played side by side; task i begins from `seed_for(seed, "goals", i)`.

    told: row i is told the goal of task told[i] and judged on its own: the control that shows whether the agent listens.
    Tasks must end their episodes. Raises ValueError for a task without goals.
    """
    n = len(tasks)
    order = np.arange(n) if told is None else np.asarray(told)
    with ExitStack() as exits:
        made = [make() for make in tasks]
        for task in made:
            exits.callback(task.close)
        spec = made[0].spec
        steps = [task.reset(seed_for(seed, "goals", i)) for i, task in enumerate(made)]
        firsts = [step["obs"] for step in steps]
        when: list[int | None] = [None] * n
        state, first, clock = player.initial(n), np.ones(n, bool), 0
        while not all(step["is_last"] for step in steps):
            action, state = player.act(_told(spec, steps, order), state, is_first=first, mode=mode)
            first, clock = np.zeros(n, bool), clock + 1
            for i, task in enumerate(made):
                if not steps[i]["is_last"]:
                    steps[i] = task.step({k: np.asarray(v[i]) for k, v in action.items()})
                    if when[i] is None and achieved(spec, steps[i]["obs"], tolerance):
                        when[i] = clock
        ends = [achieved(spec, step["obs"], tolerance) for step in steps]
        shots = [task.render() if pictures else None for task in made]
    return [
        Attempt(reached=w is not None, final=e, steps=w, first=f, picture=p) for w, e, f, p in zip(when, ends, firsts, shots, strict=True)
    ]


def _told(spec: Spec, steps: Sequence[Step], order: np.ndarray) -> dict[str, Any]:
    """Observations (n, ...) of all rows, their goals taken from other rows as `order` says."""
    seen = {k: np.stack([step["obs"][k] for step in steps]) for k in spec.obs}
    return {k: v[order] if k in spec.goals else v for k, v in seen.items()}


def goal_grid(attempts: Sequence[Attempt], columns: int = 8) -> np.ndarray:
    """The last states of all attempts side by side, uint8: framed in green where the goal was reached, in red where it was missed."""
    tiles = []
    for one in attempts:
        assert one.picture is not None, "attempt(..., pictures=True) takes them"
        edge = max(one.picture.shape[0] // 16, 1)
        tile = np.empty((one.picture.shape[0] + 4 * edge, one.picture.shape[1] + 4 * edge, 3), np.uint8)
        tile[:] = 255
        tile[edge:-edge, edge:-edge] = BORDER[one.reached]
        tile[2 * edge : -2 * edge, 2 * edge : -2 * edge] = one.picture
        tiles.append(tile)
    columns = min(columns, len(tiles))
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)], 0)
