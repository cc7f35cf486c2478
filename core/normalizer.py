"""Running statistics that put returns, values and advantages on one scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """A running normaliser."""

    impl: Literal["perc", "meanstd", "none"] = "perc"  # range between percentiles, mean and deviation, or off
    rate: float = 0.01  # weight of the newest batch in the running average
    limit: float = 1.0  # smallest scale: never enlarges what is smaller
    low: float = 5.0  # lower percentile
    high: float = 95.0  # upper percentile
    debias: bool = False  # correct the start at zero, as Adam does


class Normalizer(nn.Module):
    """`normalizer(x)` updates from all of x and returns (offset, scale), both scalars without gradient.

    perc: offset is the running low percentile, scale max(limit, high - low). meanstd: running mean and deviation.
    Starts at zero: without debias the scale stays at the limit until the average has grown (as released).
    """

    first: Tensor
    second: Tensor
    total: Tensor

    def __init__(self, cfg: NormConfig) -> None:
        super().__init__()
        self.cfg = cfg
        for name in ("first", "second", "total"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def forward(self, x: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        if update and self.cfg.impl != "none":
            self._update(x.detach().float())
        return self.stats()

    def _update(self, x: Tensor) -> None:
        if self.cfg.impl == "perc":
            first, second = percentiles(x, self.cfg.low, self.cfg.high)
        else:
            first, second = x.mean(), x.square().mean()
        for average, value in ((self.first, first), (self.second, second), (self.total, torch.ones_like(self.total))):
            average.lerp_(value, self.cfg.rate)

    @torch.no_grad()
    def stats(self) -> tuple[Tensor, Tensor]:
        """(offset, scale) as they stand."""
        if self.cfg.impl == "none":
            return torch.zeros_like(self.first), torch.ones_like(self.first)
        correction = self.total.clamp(min=1e-12) if self.cfg.debias else torch.ones_like(self.total)
        first, second = self.first / correction, self.second / correction
        if self.cfg.impl == "perc":
            return first, (second - first).clamp(min=self.cfg.limit)
        return first, (second - first.square()).clamp(min=0).sqrt().clamp(min=self.cfg.limit)


def percentiles(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Two percentiles of all of x, linearly interpolated. torch.quantile gives the same and refuses more than 16 million."""
    values = x.flatten().sort().values
    return _between(values, low / 100 * (len(values) - 1)), _between(values, high / 100 * (len(values) - 1))


def _between(values: Tensor, place: float) -> Tensor:
    """What stands at a place, counted from 0, of a row of numbers."""
    below = math.floor(place)
    return torch.lerp(values[below], values[min(below + 1, len(values) - 1)], place - below)
