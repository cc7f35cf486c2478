"""What an agent of the variant `goal` takes for the distance of two cells, beside the number of steps between them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from tensordict import TensorDict

from polydream.core.rng import Draws
from polydream.tasks.world import MOVES

SETTLED = 4
"""First steps of a walk that do not count: a recurrent model that is put down in a cell knows less than one that walked there."""


def steps_away(free: np.ndarray, cell: Sequence[int]) -> np.ndarray:
    """Fewest steps (rows, columns) to a cell, -1 where there is no way: breadth-first."""
    far = np.full(free.shape, -1)
    far[tuple(cell)] = 0
    queue = deque([tuple(cell)])
    while queue:
        here = queue.popleft()
        for move in MOVES[1:]:
            there = (here[0] + move[0], here[1] + move[1])
            if free[there] and far[there] < 0:
                far[there] = far[here] + 1
                queue.append(there)
    return far


KNOWN = 10
"""Visits of a cell from which on it counts as known."""


def visits(run: Path, free: np.ndarray) -> np.ndarray:
    """How often a run was in each cell, int (rows, columns), of the steps that its replay holds at the last checkpoint."""
    folder = run / "replay"
    index = json.loads(max(folder.glob("index-*.json"), key=lambda p: int(p.stem.partition("-")[2])).read_text())
    found = np.zeros(free.shape, int)
    for name, (file, _) in index["files"].items():
        if name.endswith("-data"):
            rows = load_file(folder / file)
            np.add.at(found, (rows["obs/y"].ravel(), rows["obs/x"].ravel()), 1)
    return np.where(free, found, 0)  # rows of a segment that are not yet written are zeros, and so inside of a wall


def agreement(agent: Any, task: Any, visited: np.ndarray) -> dict[str, float]:
    """Spearman's rank correlation of learned and true distance over pairs of cells, all pairs and those within `goal.reach`.

    `rank`: of the observations of two cells. `rank_latent`: from the latent of a walk of random actions, which is what dreams are paid
    by. `_known`: where both cells were visited (rows, columns) at least `KNOWN` times; nothing can be learned of others. task: a grid.
    """
    cells = task._spots
    known = visited[tuple(cells.T)] >= KNOWN
    ways = np.stack([steps_away(task._free, c)[tuple(cells.T)] for c in cells])
    numbers = np.full(task._free.shape, -1)
    numbers[tuple(cells.T)] = np.arange(len(cells))
    walked, actions = walks(task._free, np.repeat(cells, 2, 0))
    at = numbers[tuple(np.moveaxis(walked, -1, 0))]
    seen = _seen(task, cells)
    with torch.no_grad():
        goals = _embedded(agent, seen)
        batch = replayed({k: v[torch.as_tensor(at)] for k, v in seen.items()}, actions)
        state, data, previous = agent.replay_context(batch, 0)
        post = agent.rssm.observe(agent.encode(data), previous, data["is_first"], state, Draws(0))
        guesses = agent.nets["achieved"](agent.latent(post))[:, SETTLED:].flatten(0, 1)
        rows = at[:, SETTLED:].ravel()
        pairs = {"rank": (goals, ways, known), "rank_latent": (guesses, ways[rows], known[rows])}
        found: dict[str, float] = {"known": int(known.sum())}
        for name, (here, true, sure) in pairs.items():
            learned = agent.nets["distance"](here[:, None], goals[None]).numpy()
            near = (true > 0) & (true <= agent.cfg.goal.reach)
            kinds = {"": true > 0, "_near": near, "_near_known": near & sure[:, None] & known}
            for kind, chosen in kinds.items():
                if chosen.sum() < 2:
                    continue
                found[name + kind] = round(float(spearmanr(learned[chosen], true[chosen]).statistic), 3)
    return found


def _seen(task: Any, cells: np.ndarray) -> dict[str, torch.Tensor]:
    """What every cell looks like (n, *shape), by key."""
    task.reset(0)
    shots = []
    for cell in cells:
        task._cell = cell
        shots.append(task._observe())
    return {k: torch.as_tensor(np.stack([s[k] for s in shots])) for k in shots[0]}


def _embedded(agent: Any, seen: dict[str, torch.Tensor]) -> torch.Tensor:
    count = len(next(iter(seen.values())))
    data = TensorDict({"obs": seen, "is_first": torch.ones(count, dtype=torch.bool)}, [count])
    return torch.as_tensor(agent.embed(data, agent.aims.achieved(data)))


def walks(free: np.ndarray, starts: np.ndarray, length: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Walks of random actions from cells (n, 2): the cells (n, length, 2), and the actions taken in them (n, length)."""
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 5, (len(starts), length))
    at, ways = starts, np.empty((len(starts), length, 2), int)
    for t in range(length):
        ways[:, t] = at
        there = at + np.array(MOVES)[actions[:, t]]
        at = np.where(free[tuple(there.T)][:, None], there, at)
    return ways, actions


def replayed(obs: dict[str, torch.Tensor], actions: np.ndarray) -> TensorDict:
    """Walks (n, length) as a replayed batch, from what was seen (n, length, *shape) and done."""
    flags = {k: torch.zeros(actions.shape, dtype=torch.bool) for k in ("is_first", "is_last", "is_terminal")}
    flags["is_first"][:, 0] = True
    return TensorDict({"obs": obs, "action": {"action": torch.as_tensor(actions)}, **flags}, actions.shape)
