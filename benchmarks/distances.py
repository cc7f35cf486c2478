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

    `rank`: of the observations of two cells. `rank_latent`: from the latent after a walk to the first, which is what dreams are paid by.
    `_seen`, `_known`: where both cells were visited (rows, columns) at all, or at least `KNOWN` times; nothing can be learned of others.
    task: a grid.
    """
    cells = task._spots
    often = visited[tuple(cells.T)]
    met, known = often > 0, often >= KNOWN
    ways = np.stack([steps_away(task._free, c)[tuple(cells.T)] for c in cells])
    numbers = np.full(task._free.shape, -1)
    numbers[tuple(cells.T)] = np.arange(len(cells))
    walked, actions = journeys(task, np.repeat(cells, 2, 0))
    at = numbers[tuple(np.moveaxis(walked, -1, 0))]
    seen = _seen(task, cells)
    with torch.no_grad():
        goals = _embedded(agent, seen)
        batch = replayed({k: v[torch.as_tensor(at)] for k, v in seen.items()}, actions)
        state, data, previous = agent.replay_context(batch, 0)
        post = agent.rssm.observe(agent.encode(data), previous, data["is_first"], state, Draws(0))
        guesses = agent.nets["achieved"](agent.latent(post))[:, -2]
        rows = at[:, -2]
        pairs = {"rank": (goals, np.arange(len(cells))), "rank_latent": (guesses, rows)}
        found: dict[str, float] = {"seen": int(met.sum()), "known": int(known.sum())}
        for name, (here, own) in pairs.items():
            true = ways[own]
            # Piece by piece: of every pair the network holds all its units.
            learned = torch.cat([agent.nets["distance"](part[:, None], goals[None]) for part in here.split(64)]).numpy()
            near = (true > 0) & (true <= agent.cfg.goal.reach)
            kinds = {"": true > 0, "_near": near}
            kinds |= {f"_near_{k}": near & sure[own][:, None] & sure for k, sure in (("seen", met), ("known", known))}
            for kind, chosen in kinds.items():
                if chosen.sum() < 2:
                    continue
                found[name + kind] = round(float(spearmanr(learned[chosen], true[chosen]).statistic), 3)
    return found


def _start(task: Any, seed: int) -> np.ndarray:
    """The cell (2,) in which the episode of a seed begins."""
    task.reset(seed)
    return np.asarray(task._cell)


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


def journeys(task: Any, ends: np.ndarray, last: np.ndarray | int = 0, wander: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Ways to cells `ends` (n, 2) of a grid, from where its episodes begin: the cells (n, T, 2), and the actions taken in them (n, T).

    At least about `wander` random actions, then a shortest way; the end is at T - 2, and the action `last` (n,) is taken there. A recurrent
    model that is put down where no episode begins does not find out where it is, however much it sees.
    """
    free, rng, each = task._free, np.random.default_rng(0), np.arange(len(ends))
    cells, which = np.unique(ends, axis=0, return_inverse=True)
    far = np.stack([steps_away(free, c) for c in cells])[which.ravel()]
    at = np.stack([_start(task, i) for i in each])
    steps = wander + int(far[each, at[:, 0], at[:, 1]].max())
    ways, actions = np.empty((len(ends), steps + 2, 2), int), np.zeros((len(ends), steps + 2), int)
    for t in range(steps + 2):
        ways[:, t] = at
        there = at[:, None] + np.array(MOVES)
        there = np.where(free[there[..., 0], there[..., 1]][..., None], there, at[:, None])
        left = far[each[:, None], there[..., 0], there[..., 1]]
        late = far[each, at[:, 0], at[:, 1]] >= steps - t - 1
        actions[:, t] = np.where(late, left.argmin(1), rng.integers(0, len(MOVES), len(ends))) if t < steps else last
        at = there[each, actions[:, t]]
    return ways, actions


def replayed(obs: dict[str, torch.Tensor], actions: np.ndarray) -> TensorDict:
    """Walks (n, length) as a replayed batch, from what was seen (n, length, *shape) and done."""
    flags = {k: torch.zeros(actions.shape, dtype=torch.bool) for k in ("is_first", "is_last", "is_terminal")}
    flags["is_first"][:, 0] = True
    return TensorDict({"obs": obs, "action": {"action": torch.as_tensor(actions)}, **flags}, actions.shape)
