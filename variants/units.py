"""What counts as one of each task's rewards, for a critic that all tasks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Unit(nn.Module):
    """Of one task: the largest reward met so far, at least 1."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.ones(()))


class Units(nn.ModuleList):
    """A unit for each task (rewards are scaled by task in BRC too, Nauman et al. 2025).

    In raw units a shared critic has, of a task whose rewards are a thousand times another's, a few per cent of stray probability that
    outweigh all the other can earn. It is of true rewards and not of returns, because returns contain what the critic says: a
    unit that follows the critic and a critic in that unit can chase each other upwards. Rewards within -1 and 1 stay as they are.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__(Unit() for _ in range(tasks))

    def meet(self, ids: Tensor, reward: Tensor) -> None:
        """Take in true rewards (*) of tasks (*) that are learned from, not those that are only looked at, which have no graph."""
        if not torch.is_grad_enabled():
            return
        least = reward.new_zeros(len(self))
        for unit, most in zip(self, least.scatter_reduce(0, ids.flatten(), reward.detach().abs().flatten(), "amax"), strict=True):
            unit.largest.clamp_(min=most)  # type: ignore[operator]

    def of(self, ids: Tensor) -> Tensor:
        """Units (*) of tasks (*)."""
        return torch.stack([unit.largest for unit in self])[ids]  # type: ignore[misc]
