"""What networks are told of the task: a learned vector of length 1 for each, and a world model that hears it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.rng import Draws
from ..core.rssm import RSSM


class Row(nn.Module):
    """A direction (width,), drawn uniformly, kept as a parameter of any length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start values."""
        nn.init.normal_(self.weight, generator=generator)

    def forward(self) -> Tensor:
        return F.normalize(self.weight, dim=0)


class TaskEmbedding(nn.ModuleList):
    """Task numbers (*) -> vectors (*, width) of length 1 (TD-MPC2, Hansen et al. 2024, section 3.3, bounds it by 1).

    Normalised on the way: `max_norm` of an embedding would edit the weights while they are read. Each task's vector is a
    parameter of its own, so that one whose task is absent gets no gradient and does not move by momentum.
    """

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__(Row(width) for _ in range(tasks))
        self.width = width

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.stack([row() for row in self])[ids]
        present = ids.unique()
        vectors = torch.stack([self[i]() for i in present.tolist()])
        return vectors[torch.searchsorted(present, ids.contiguous())]


class ToldRSSM(RSSM):
    """A world model whose dynamics hear the task, for bodies that move differently. The embedding enters beside the action.

    tokens end with it. tell: task numbers (*) -> embedding (*, told), for dreams, whose states carry the number as `task`.
    """

    def __init__(self, *arguments: Any, told: int, tell: Callable[[Tensor], Tensor]) -> None:
        cell, action, tokens, cfg = arguments
        super().__init__(cell, action + told, tokens + told, cfg)
        # A bound method and not the module, which has its owner.
        self.told, self.tell = told, tell

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        return super().step(state, torch.cat([action, self.tell(state["task"])], -1), draws)

    def observe(self, tokens: Tensor, action: Tensor, is_first: Tensor, state: TensorDict, draws: Draws) -> TensorDict:
        return super().observe(tokens, torch.cat([action, tokens[..., -self.told :]], -1), is_first, state, draws)
