"""The value of several tasks at once: a scale of returns and a discount for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.behavior import CriticConfig, Objective
from ..core.heads import Head, HeadConfig
from ..core.normalizer import Normalizer, NormConfig
from ..core.outputs import Output
from .padding import Mark

LEAST = 32
"""Returns of a task in a batch below which its scale stays as it is: percentiles of fewer say little."""


def discount(limit: int | None, usual: float) -> float:
    """Discount for episodes of `limit` decisions: clip((L/5 - 1) / (L/5), 0.95, 0.995) (TD-MPC2, Hansen et al. 2024, appendix)."""
    return usual if limit is None else min(max((limit / 5 - 1) / (limit / 5), 0.95), 0.995)


class TaskNormalizer(nn.ModuleList):
    """A running normaliser for each task: one scale for all would let the task of the largest returns mute the others."""

    def __init__(self, cfg: NormConfig, tasks: int) -> None:
        super().__init__(Normalizer(cfg) for _ in range(tasks))

    def forward(self, x: Tensor, ids: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """Values (N, H) of tasks (N,) -> offset and scale (N, 1) of each row's own."""
        for task, normalizer in enumerate(self):
            rows = x[ids == task]
            if rows.numel() >= LEAST:
                normalizer(rows, update)
        offset, scale = (torch.stack(stats) for stats in zip(*(n.stats() for n in self), strict=True))  # type: ignore[operator]
        return offset[ids].unsqueeze(-1), scale[ids].unsqueeze(-1)


class TaskCritic(Head):
    """A critic among whose features is the task's number. It does not see it, and its output remembers it as `ids` (*)."""

    def __init__(self, inputs: int, cfg: HeadConfig, mark: Mark) -> None:
        super().__init__(inputs, cfg)
        self.mark = mark

    def forward(self, features: Tensor) -> Output:
        features, ids = self.mark.read(features)
        output = super().forward(features)
        output.ids = ids  # type: ignore[attr-defined]
        return output


class TaskObjective(Objective):
    """The task's own reward of each row. discounts: of every task, on replayed steps; in dreams the continuation holds them.

    mark: where features name the task. scales: keep a scale of returns for each task instead of one. units: units (*) of tasks (*),
    in which the critic predicts; None where all have the reward's own.
    """

    def __init__(
        self,
        features: int,
        cfg: CriticConfig,
        *,
        mark: Mark,
        discounts: Sequence[float],
        scales: bool,
        replay: Callable[[TensorDict], Tensor] | None,
        units: Callable[[Tensor], Tensor] | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(features, cfg, weight=weight, replay=replay)
        self.critic, self.slow = TaskCritic(features, cfg.head, mark), TaskCritic(features, cfg.head, mark)
        self.slow.requires_grad_(False)
        self.scales, self.units = scales, units
        if scales:
            self.retnorm = TaskNormalizer(cfg.retnorm, len(discounts))  # type: ignore[assignment]
        self.register_buffer("discounts", torch.tensor(discounts), persistent=False)

    discounts: Tensor

    def spread(self, returns: Tensor, value: Output, update: bool = True) -> tuple[Tensor, Tensor]:
        """Of each row's own task, or of all."""
        return self.retnorm(returns, ids_of(value)[:, 0], update) if self.scales else super().spread(returns, value, update)

    def raw(self, said: Tensor, value: Output) -> Tensor:
        """Out of the unit of each state's own task."""
        said = super().raw(said, value)
        return said * self.units(ids_of(value)) if self.units else said

    def target(self, returns: Tensor, value: Output, update: bool = True) -> Tensor:
        """In the unit of each row's own task."""
        return super().target(returns / self.units(ids_of(value)[:, :-1]) if self.units else returns, value, update)

    def discount(self, value: Output) -> Tensor:
        """Of each step's own task."""
        return self.discounts[ids_of(value)]


def own(agent: Any) -> dict[str, Any]:
    """What the objective of the tasks' own rewards is made with, for an agent whose features name the task."""
    each, units = agent.cfg.multitask.returns == "per_task", agent.nets["units"]
    return {"mark": agent.mark, "discounts": agent.discounts, "scales": each, "units": units.of if each else None}


def ids_of(value: Output) -> Tensor:
    """Task numbers (*) of what a critic said, also where an output holds it as one of two."""
    found = value
    while not hasattr(found, "ids"):
        found = found.ours  # type: ignore[attr-defined]
    ids: Tensor = found.ids
    return ids
