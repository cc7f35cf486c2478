"""A weight that finds its own size: turned up or down, by shares, until what it acts on is near its target."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLACK = 0.1
"""Share of the target by which the measure may be off before the weight is turned."""


class Steer(nn.Module):
    """A loss weight, turned by a share `speed` at every update in which a measure is off its target (Hafner et al. 2022, appendix).

    start: where the weight begins. raises: whether more weight raises the measure, as for an entropy bonus, or lowers it, as for a KL.
    """

    weight: Tensor

    def __init__(self, target: float, start: float, speed: float, *, raises: bool, low: float = 1e-5, high: float = 1.0) -> None:
        super().__init__()
        self.target, self.turn, self.bounds = target, (1 + speed) if raises else 1 / (1 + speed), (low, high)
        self.register_buffer("weight", torch.tensor(min(max(start, low), high)))

    @torch.no_grad()
    def forward(self, measure: Tensor, update: bool = True) -> Tensor:
        """The weight, a scalar without gradient, after it was turned by a measure (any shape, its mean counts)."""
        if update:
            mean = measure.float().mean()
            still = torch.ones_like(mean)
            up = torch.where(mean < (1 - SLACK) * self.target, self.turn * still, still)
            factor = torch.where(mean > (1 + SLACK) * self.target, still / self.turn, up)
            self.weight.mul_(factor).clamp_(*self.bounds)
        return self.weight.clone()
