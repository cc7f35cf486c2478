"""Which goal a dream pursues: a future step of the same episode, a random replayed step, or the commanded goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.rng import Draws
from ..core.specs import Space
from .aims import Aim, Aims, choose

FUTURE, RANDOM, COMMANDED = 0, 1, 2
ADDED = 8
"""Achievements that enter the pool at a time."""


def remaining(is_first: Tensor) -> Tensor:
    """Steps of the same episode that follow each step within its sequence: is_first (B, T) -> int64 (B, T)."""
    steps = is_first.shape[1]
    index = torch.arange(steps, device=is_first.device).expand_as(is_first)
    # The step at which the next episode begins, seen from each step: the smallest later index with `is_first`.
    begins = torch.where(is_first, index, steps).flip(1).cummin(1).values.flip(1)
    following = torch.cat([begins[:, 1:], torch.full_like(begins[:, :1], steps)], 1)
    return following - index - 1


def ahead(left: Tensor, uniform: Tensor, mean: float) -> Tensor:
    """Steps to look ahead: geometric on 1, 2, ... with this mean, cut off at `left`. int64 of left's shape, 0 where left is 0.

    left: what `remaining` says. uniform: numbers in [0, 1), turned into the draw by inverting the distribution function.
    """
    stay = math.log1p(-1 / mean) if mean > 1 else -math.inf  # log-probability of going one step further
    mass = -torch.expm1(left * stay) if mean > 1 else torch.ones_like(uniform)
    steps = (torch.log1p(-uniform * mass) / stay).floor().long() + 1 if mean > 1 else torch.ones_like(left)
    return torch.minimum(steps, left)


def sources(uniform: Tensor, shares: Sequence[float], left: Tensor, commands: bool) -> Tensor:
    """Where each dream's goal comes from: FUTURE, RANDOM or COMMANDED, int64 (B, T).

    shares: of the three, in this order; only their ratios count. Where no future step is left, or the task commands nothing,
    a random step takes its place (hindsight experience replay, Andrychowicz et al. 2017, with the mixture as knobs).
    """
    edges = torch.tensor(shares, device=uniform.device).cumsum(0)
    source = torch.searchsorted(edges[:2] / edges[2], uniform.contiguous(), right=True)
    orphan = (source == FUTURE) & (left == 0)
    return torch.where(orphan if commands else orphan | (source == COMMANDED), RANDOM, source)


def goals(aims: Aims, batch: TensorDict, allowed: Tensor, noise: Tensor, *, shares: Sequence[float], mean: float, tolerance: float) -> Aim:
    """The goal that a dream from every replayed step (B, T) pursues.

    One that is achieved already is replaced by a random step's: such a dream would teach staying, and little else. allowed, mean:
    as in `steps_of`. noise: uniform (4, B, T). shares: as in `sources`. tolerance: distance at which a goal counts as achieved.
    """
    now, left, kind = aims.achieved(batch), remaining(batch["is_first"]), aims.kind(batch)
    source = sources(noise[0], shares, left, aims.commands)
    index = steps_of(source, left, noise[1], noise[2], allowed, mean, kind)
    other = steps_of(torch.full_like(source, RANDOM), left, noise[1], noise[3], allowed, mean, kind)
    goal: Aim = {k: v.flatten(0, 1)[index] for k, v in now.items()}
    goal = choose(source == COMMANDED, aims.desired(batch), goal) if aims.commands else goal
    return choose(aims.same(now, goal, tolerance), {k: v.flatten(0, 1)[other] for k, v in now.items()}, goal)


def uniform(draws: Draws, stream: str, *shape: int) -> Tensor:
    """Numbers in [0, 1) from a stream that has no most likely value to take instead."""
    drawn = draws.uniform(stream, *shape)
    assert drawn is not None, f"{stream} has no mode"
    return drawn


def steps_of(source: Tensor, left: Tensor, look: Tensor, pick: Tensor, allowed: Tensor, mean: float, kind: Tensor | None = None) -> Tensor:
    """Flat index (B, T) into the B * T steps of the one whose achievement becomes the goal; commanded starts name themselves.

    look, pick: uniform (B, T), the noise of future and random steps. allowed: bool (B, T), steps that may become goals at all;
    a future step that may not is replaced by a random one, and where none may every step names itself. kind: int64 (B, T), numbers
    from 0 on, where steps may become goals only of steps of their own kind: of one task.
    """
    count = source.numel()
    own = torch.arange(count, device=source.device).reshape(source.shape)
    future = own + ahead(left, look, mean)
    # Only allowed steps, kind by kind, so that each of a kind is picked with the same probability whatever their number.
    kind = torch.zeros_like(source) if kind is None else kind
    ranked = torch.where(allowed, kind, count).flatten().argsort(stable=True)
    numbers = torch.zeros(count, dtype=torch.int64, device=source.device).index_add(0, kind.flatten(), allowed.flatten().long())
    number, before = numbers[kind], (numbers.cumsum(0) - numbers)[kind]
    random = ranked[(before + (pick * number).long()).clamp(max=count - 1)]
    usable = (source == FUTURE) & allowed.flatten()[future]
    chosen = torch.where(usable, future, torch.where(number > 0, random, own))
    return torch.where(source == COMMANDED, own, chosen)


class Pool(nn.Module):
    """The newest achievements seen in training, to practise: goals to pursue in episodes that were given none. Kept with the weights."""

    def __init__(self, aims: Mapping[str, Space], size: int) -> None:
        super().__init__()
        self.keys, self.size = sorted(aims), size
        for i, key in enumerate(self.keys):
            self.register_buffer(f"goal{i}", torch.zeros(size, *aims[key].shape, dtype=getattr(torch, aims[key].dtype)))
        self.register_buffer("kind", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    kind: Tensor
    count: Tensor

    def add(self, obs: Mapping[str, Tensor], pick: Tensor, kind: Tensor) -> None:
        """Put a few of the steps (B, T) of a batch, each of a kind (B, T), in place of the oldest. pick: uniform, which ones."""
        pick = pick.flatten()[:ADDED]
        place = (self.count + torch.arange(len(pick), device=pick.device)) % self.size
        for i, key in enumerate(self.keys):
            rows = obs[key].flatten(0, 1)
            getattr(self, f"goal{i}")[place] = rows[(pick * len(rows)).long()]
        self.kind[place] = kind.flatten()[(pick * kind.numel()).long()]
        self.count += len(pick)

    def draw(self, pick: Tensor, kind: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One goal of each kind (n,), and whether there is one, bool (n,); else it is zeros. pick: uniform (n,), which one."""
        mine = (self.kind == kind.unsqueeze(-1)) & (torch.arange(self.size, device=pick.device) < self.count)
        number = mine.sum(-1)
        index = (mine.cumsum(-1) > (pick * number).long().unsqueeze(-1)).int().argmax(-1)
        there = number > 0
        rows = {key: getattr(self, f"goal{i}")[index] for i, key in enumerate(self.keys)}
        return {k: v * there.reshape(-1, *[1] * (v.ndim - 1)).to(v.dtype) for k, v in rows.items()}, there
