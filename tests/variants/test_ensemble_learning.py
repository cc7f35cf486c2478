"""What disagreement knows after a few hundred steps of training: which rooms were never seen, and what is noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from polydream.core.nets import initialize
from polydream.tasks.grids import FOUR_ROOMS, read_map
from polydream.tasks.world import MOVES
from polydream.variants.disagreement import Disagreement

FREE = read_map(FOUR_ROOMS)
CELLS = np.argwhere(FREE)
HIDDEN = (CELLS[:, 0] < 5) & (CELLS[:, 1] > 5)  # the top right room, never visited


def walk(cells: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Where each action leads from each cell."""
    there = cells + np.array(MOVES)[actions]
    return np.where(FREE[there[:, 0], there[:, 1]][:, None], there, cells)


def onehot(cells: np.ndarray) -> Tensor:
    """Row and column, each one-hot: (n, 22)."""
    eye = np.eye(11, dtype=np.float32)
    return torch.from_numpy(np.concatenate([eye[cells[:, 0]], eye[cells[:, 1]]], 1))


def raw(cells: np.ndarray) -> Tensor:
    """Row and column as two numbers in [-1, 1]."""
    return torch.from_numpy(cells.astype(np.float32) / 5 - 1)


def heads(inputs: int, outputs: int, prior: float, seed: int) -> Disagreement:
    made = Disagreement(inputs, outputs, members=5, units=64, layers=2, prior=prior)
    initialize(made, seed)
    return made


def fit(model: Disagreement, state: Tensor, action: Tensor, target: Tensor, steps: int = 600, seed: int = 0) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    settle = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)  # else the last batches' noise is what is left
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, len(state), (128,), generator=generator)
        optimizer.zero_grad()
        model.loss(state[rows], action[rows], target[rows]).mean().backward()
        optimizer.step()
        settle.step()


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((ranks.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))


def per_state(model: Disagreement, view) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Uncertainty of every walkable cell, mean over actions."""
    with torch.no_grad():
        each = [model.uncertainty(view(CELLS), torch.eye(5)[torch.full((len(CELLS),), a)]) for a in range(5)]
    return torch.stack(each).mean(0).numpy()


def three_rooms(view, prior: float, seed: int) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """Train on three of four rooms: AUROC of cells of the fourth against the rest, ratio of the means, Spearman with the true error."""
    rng = np.random.default_rng(seed)
    cells, actions = CELLS[rng.integers(0, len(CELLS), 1200)], rng.integers(0, 5, 1200)
    seen = ~((cells[:, 0] < 5) & (cells[:, 1] > 5))
    cells, actions = cells[seen], actions[seen]
    state, target = view(cells), view(walk(cells, actions))
    model = heads(state.shape[1] + 5, target.shape[1], prior, seed)
    fit(model, state, torch.eye(5)[torch.from_numpy(actions)], target, seed=seed)
    doubt = per_state(model, view)
    rank = float(spearmanr(doubt, error_per_state(model, view)).statistic)
    return auroc(doubt[HIDDEN], doubt[~HIDDEN]), float(doubt[HIDDEN].mean() / doubt[~HIDDEN].mean()), rank


def error_per_state(model: Disagreement, view) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Squared error of the members' average at every walkable cell, mean over actions."""
    found = []
    with torch.no_grad():
        for action in range(5):
            inputs = torch.cat([view(CELLS), torch.eye(5)[torch.full((len(CELLS),), action)]], -1)
            truth = view(walk(CELLS, np.full(len(CELLS), action)))
            found.append((model(inputs).mean(0) - truth).square().sum(-1))
    return torch.stack(found).mean(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_room_never_seen_stands_out_on_one_hot_rooms(prior: float) -> None:
    area, ratio, rank = three_rooms(onehot, prior, seed=0)
    assert area >= 0.95 and ratio >= 1.8 and rank >= 0.5


@pytest.mark.slow
def test_prior_functions_make_it_stand_out_on_raw_coordinates() -> None:
    area, _, _ = three_rooms(raw, 1.0, seed=0)
    assert area >= 0.85


def television(cells: np.ndarray, rng: np.random.Generator) -> Tensor:
    """One of eight channels one-hot, drawn anew at every step in the top right room; elsewhere always the first."""
    there = (cells[:, 0] < 5) & (cells[:, 1] > 5)
    return torch.eye(8)[torch.from_numpy(np.where(there, rng.integers(0, 8, len(cells)), 0))]


@pytest.mark.slow
def test_noise_is_not_novelty() -> None:
    """A room with a television whose next channel nobody can know: errors stay, disagreement is that of any well-known room."""
    rng = np.random.default_rng(0)
    cells, actions = CELLS[rng.integers(0, len(CELLS), 2000)], rng.integers(0, 5, 2000)
    there = walk(cells, actions)
    state, target = (torch.cat([onehot(c), television(c, rng)], -1) for c in (cells, there))
    action = torch.eye(5)[torch.from_numpy(actions)]
    model = heads(35, 30, 0.0, 0)
    fit(model, state, action, target, steps=1500)
    noisy = torch.from_numpy((there[:, 0] < 5) & (there[:, 1] > 5))
    with torch.no_grad():
        doubt = model.uncertainty(state, action)
        fresh = torch.cat([onehot(there), television(there, rng)], -1)  # what else could have been on
        error = (model(torch.cat([state, action], -1)).mean(0) - fresh).square().sum(-1)
    assert float(doubt[noisy].mean() / doubt[~noisy].mean()) <= 2
    assert float(error[noisy].mean() / error[~noisy].mean()) > 10


@pytest.mark.slow
def test_ten_times_the_data_leave_less_than_a_third_of_the_disagreement() -> None:
    found = []
    for count in (60, 600):
        rng = np.random.default_rng(0)
        cells, actions = CELLS[rng.integers(0, len(CELLS), count)], rng.integers(0, 5, count)
        model = heads(27, 22, 0.0, 0)
        fit(model, onehot(cells), torch.eye(5)[torch.from_numpy(actions)], onehot(walk(cells, actions)))
        found.append(per_state(model, onehot).mean())
    assert found[0] >= 3 * found[1]
