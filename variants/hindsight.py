"""Which goal a dream pursues: a future step of the same episode, a random replayed step, or the commanded goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..core.rng import Draws
from ..core.specs import Space

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


def relabel(is_first: Tensor, allowed: Tensor, shares: Sequence[float], mean: float, commands: bool, noise: Tensor) -> tuple[Tensor, ...]:
    """Flat index (B, T) of the step whose achievement every step's dream pursues, bool (B, T) where it is commanded instead, and
    the index of a random step to take where the goal is achieved already: such a dream would teach staying, and little else.

    is_first, allowed: bool (B, T). noise: uniform (4, B, T). shares, mean, commands: as in `sources` and `ahead`.
    """
    left = remaining(is_first)
    source = sources(noise[0], shares, left, commands)
    other = steps_of(torch.full_like(source, RANDOM), left, noise[1], noise[3], allowed, mean)
    return steps_of(source, left, noise[1], noise[2], allowed, mean), source == COMMANDED, other


def uniform(draws: Draws, stream: str, *shape: int) -> Tensor:
    """Numbers in [0, 1) from a stream that has no most likely value to take instead."""
    drawn = draws.uniform(stream, *shape)
    assert drawn is not None, f"{stream} has no mode"
    return drawn


def steps_of(source: Tensor, left: Tensor, look: Tensor, pick: Tensor, allowed: Tensor, mean: float) -> Tensor:
    """Flat index (B, T) into the B * T steps of the one whose achievement becomes the goal; commanded starts name themselves.

    look, pick: uniform (B, T), the noise of future and random steps. allowed: bool (B, T), steps that may become goals at all;
    a future step that may not is replaced by a random one, and where none may every step names itself.
    """
    count = source.numel()
    own = torch.arange(count, device=source.device).reshape(source.shape)
    future = own + ahead(left, look, mean)
    # Only allowed steps, in any order, so that each is picked with the same probability whatever their number.
    ranked = allowed.flatten().int().argsort(descending=True, stable=True)
    number = allowed.sum()
    random = ranked[(pick * number).long().clamp(max=count - 1)]
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
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    count: Tensor

    def add(self, obs: Mapping[str, Tensor], pick: Tensor) -> None:
        """Put a few of the steps (B, T) of a batch in place of the oldest. pick: uniform, which ones."""
        pick = pick.flatten()[:ADDED]
        place = (self.count + torch.arange(len(pick), device=pick.device)) % self.size
        for i, key in enumerate(self.keys):
            rows = obs[key].flatten(0, 1)
            getattr(self, f"goal{i}")[place] = rows[(pick * len(rows)).long()]
        self.count += len(pick)

    def draw(self, pick: Tensor) -> dict[str, Tensor]:
        """One goal for each of pick: uniform (n,). Zeros before there are any."""
        index = (pick * self.count.clamp(1, self.size)).long()
        return {key: getattr(self, f"goal{i}")[index] for i, key in enumerate(self.keys)}
