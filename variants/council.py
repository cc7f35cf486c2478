"""A manager of several tasks: one policy for each, on the scale of its own returns, above a worker that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.behavior import CriticConfig, Objective
from ..core.heads import Policy, PolicyConfig
from ..core.outputs import Categorical, Distribution
from ..core.specs import Space
from .padding import Mark
from .yardstick import TaskObjective, own


class Council(nn.ModuleList):
    """Policies over codes, one for each task. Features (*, F) hold the task's number where `mark` says; no policy sees it.

    While it learns only policies of tasks that are present run, so that the optimizer leaves the others and their moments alone.
    """

    def __init__(self, inputs: int, code: Mapping[str, Space], cfg: PolicyConfig, mark: Mark) -> None:
        super().__init__(Policy(inputs, code, cfg) for _ in range(mark.tasks))
        self.cfg, self.action, self.mark = cfg, dict(code), mark

    def forward(self, features: Tensor) -> dict[str, Distribution]:
        features, ids = self.mark.read(features)
        present = ids.unique().tolist() if torch.is_grad_enabled() else range(len(self))
        told = [self[i](features) for i in present]
        found: dict[str, Distribution] = {}
        for key in self.action:
            chosen = told[0][key].log_probs
            for i, dist in zip(present[1:], told[1:], strict=True):
                own = (ids == i).reshape(*ids.shape, *[1] * (chosen.ndim - ids.ndim))
                chosen = torch.where(own, dist[key].log_probs, chosen)
            found[key] = Categorical(chosen, told[0][key].dims)
        return found


def policy(agent: Any, width: int, code: Mapping[str, Space], cfg: PolicyConfig) -> Any:
    """The manager's policy, or those of all tasks where the features (*, width) of `agent` name the task."""
    return Council(width, code, cfg, agent.mark) if getattr(agent, "marked", False) else Policy(width, code, cfg)


def objective(agent: Any, width: int, cfg: CriticConfig, weight: float) -> Objective:
    """The objective of the task's reward, with scale and discount of each task where there are several that differ in them."""
    if not getattr(agent, "marked", False):
        return Objective(width, cfg, weight=weight)
    return TaskObjective(width, cfg, **own(agent), replay=None, weight=weight)
