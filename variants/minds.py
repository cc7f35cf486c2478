"""Heads, policies and critics of E agents side by side.

The first member has the names, and so the start values, of a single agent's; the others are kept under `others`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.behavior import CriticConfig, Objective
from ..core.heads import Head, HeadConfig, Policy, PolicyConfig
from ..core.outputs import Output
from ..core.rng import Draws
from ..core.specs import Space
from .crowd import Crowd
from .mixtures import Mixture
from .priors import draw_member
from .worlds import apart
from .yardstick import TaskNormalizer


class WorldsHead(Head):
    """Features (E, *, F), of each member its own -> `Output` (E, *); or of rows (n, ...) with members (n,) -> (n, ...)."""

    def __init__(self, inputs: int, cfg: HeadConfig, members: int) -> None:
        super().__init__(inputs, cfg)
        self.others = nn.ModuleList(Head(inputs, cfg) for _ in range(members - 1))
        self.crowd = Crowd([self, *self.others])

    def forward(self, features: Tensor, member: Tensor | None = None) -> Output:
        found: Output = self.crowd(_said, features) if member is None else self.crowd.by_row(_said, member, features)
        return found


class WorldsPolicy(Policy):
    """Features (n, ..., F + 2) of one member each, `marked`, or (n, E * F + 2) of all -> distributions by key, or their mixture."""

    def __init__(self, inputs: int, action: Mapping[str, Space], cfg: PolicyConfig, members: int) -> None:
        super().__init__(inputs, action, cfg)
        self.others = nn.ModuleList(Policy(inputs, action, cfg) for _ in range(members - 1))
        self.crowd = Crowd([self, *self.others])
        self.inputs = inputs

    def forward(self, features: Tensor) -> dict[str, Any]:
        seen, member, _ = unmarked(features)
        if seen.shape[-1] == self.inputs:
            found: dict[str, Any] = self.crowd.by_row(_said, member, seen)
            return found
        count = len(self.crowd.nets)
        picked: list[Tensor] = []

        def pick(draws: Draws) -> Tensor:
            if not picked:
                picked.append(draw_member(draws, "mixture", count, len(seen)))
            return picked[0]

        return {key: Mixture(each, pick) for key, each in self.crowd(_said, apart(seen, count)).items()}


def _said(net: Any, features: Tensor) -> Any:
    return net(features)


def marked(seen: Tensor, member: Tensor, kept: Tensor | None) -> Tensor:
    """Features (*, F) -> (*, F + 2): whose they are, and 1 where that member learns from the step they began with."""
    learns = torch.ones_like(member) if kept is None else kept.gather(-1, member.unsqueeze(-1)).squeeze(-1)
    return torch.cat([seen, torch.stack([member, learns], -1).float()], -1)


def unmarked(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse: features (n, ..., F), members (n,) of rows, which are one member's throughout, and whether it learns (n, ...)."""
    marks = features[..., -2:]
    return features[..., :-2], marks[..., 0].flatten(1)[:, 0].long() if features.ndim > 2 else marks[..., 0].long(), marks[..., 1] > 0.5


class WorldsCritic(WorldsHead):
    """Marked features (n, T, F + 2) -> values, which remember their members as `ids` (n, T) and `learns` (n, T)."""

    def forward(self, features: Tensor, member: Tensor | None = None) -> Output:
        seen, ids, learns = unmarked(features)
        output = super().forward(seen, ids)
        output.ids, output.learns = ids.unsqueeze(-1).expand(learns.shape), learns  # type: ignore[attr-defined]
        return output


class WorldsObjective(Objective):
    """The environment's reward, valued by each member for itself: a critic and a scale of returns each."""

    def __init__(self, features: int, cfg: CriticConfig, members: int, replay: Callable[[TensorDict], Tensor] | None) -> None:
        super().__init__(features, cfg, replay=replay)
        self.critic, self.slow = WorldsCritic(features, cfg.head, members), WorldsCritic(features, cfg.head, members)
        self.slow.requires_grad_(False)
        self.retnorm = TaskNormalizer(cfg.retnorm, members)  # type: ignore[assignment]

    def spread(self, returns: Tensor, value: Output, update: bool = True) -> tuple[Tensor, Tensor]:
        """Of each row's own member."""
        return self.retnorm(returns, value.ids[:, 0], update)  # type: ignore[attr-defined]

    def judge_replay(self, value: Output, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """As the base; a step outside of a member's sample teaches it nothing."""
        loss, returns = super().judge_replay(value, *arguments, **options)
        return loss * value.learns[:, :-1], returns  # type: ignore[attr-defined]
