"""What follows the gradients: weights, slow critics and counts move, if the update was good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.profiler import record_function

from .optim import Optimizer

if TYPE_CHECKING:
    from .agent import Dreamer


class Mover:
    """Called with the norms of all gradients by parameter, whether loss and gradients are good, a bool (), and all buffers as they were
    before the losses were computed. Moves everything and returns scalars for the log, or moves nothing and puts the buffers back.
    """

    def __init__(self, agent: Dreamer, optimizer: Optimizer) -> None:
        self.agent, self.optimizer = agent, optimizer

    def __call__(self, norms: Mapping[Tensor, Tensor], good: Tensor, kept: list[Tensor]) -> dict[str, Tensor]:
        if not good:
            for buffer, before in zip(self.agent.buffers(), kept, strict=True):
                buffer.copy_(before)
            return {}
        with record_function("optimizer"):
            metrics = self.optimizer.step(norms=norms)
        self.agent.updates += 1
        for objective in self.agent.objectives():
            objective.follow(int(self.agent.updates))
        return metrics
