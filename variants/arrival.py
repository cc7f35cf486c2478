"""Having reached a goal: what a dream is paid for it, and the objective that values it. Every reward lies in [0, 1] and is 1 there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import maths
from ..core.behavior import Behavior, CriticConfig, Judgement, Objective
from ..core.config import ConfigError
from ..core.outputs import Output


def match(achieved: Tensor, goal: Tensor, tolerance: float) -> Tensor:
    """1 within `tolerance` of the goal, else 0: embeddings (*, G), compared in the units of the goal -> (*)."""
    return ((maths.symexp(achieved) - maths.symexp(goal)).norm(dim=-1) <= tolerance).float()


def nearness(distance: Tensor) -> Tensor:
    """1 - d, at least 0. LEXA pays -d: with a learned end of the episode an end would then be worth something."""
    return 1 - distance.clamp(max=1)


def cosine(latent: Tensor, goal: Tensor) -> Tensor:
    """Cosine of the angle between latents (*, F), moved from [-1, 1] to [0, 1] for the same reason."""
    return (1 + F.cosine_similarity(latent, goal, dim=-1)) / 2


class GoalObjective(Objective):
    """A reward in [0, 1] that is 1 at the goal, with its own discount.

    absorbing: nothing follows the goal, and what a dream does after arriving teaches nothing. Else being there pays at every step.
    endless: returns go on where the task ends. Whoever is paid at every step would otherwise shun an end, the task's own goal before all.
    """

    def __init__(self, features: int, cfg: CriticConfig, horizon: int, weight: float, *, absorbing: bool, endless: bool = False) -> None:
        super().__init__(features, replace(cfg, horizon=horizon), weight=weight)
        # What the continue head has learned holds the discount of the environment's reward.
        self.rate = self.cfg.discount / cfg.discount if cfg.contdisc else 1.0
        self.absorbing, self.endless = absorbing, endless

    def returns(self, reward: Tensor, cont: Tensor, value: Tensor, slow: Tensor) -> tuple[Tensor, Tensor]:
        """As the base, where going on also means not to have arrived."""
        return super().returns(reward, cont * (1 - reward) if self.absorbing else cont, value, slow)

    def going(self, cont: Tensor) -> Tensor:
        """As the base, at this objective's own discount, and at nothing else where it is endless."""
        return torch.full_like(cont, self.cfg.discount) if self.endless else super().going(cont * self.rate)

    def judge(
        self, value: Output, slow: Output, reward: Tensor, cont: Tensor, update: bool = True, through: Tensor | None = None
    ) -> Judgement:
        """As the base, with loss and advantage (N, H) only until arrival: else staying is most of what is learned, and first."""
        judged = super().judge(value, slow, reward, cont, update, through)
        if not self.absorbing:
            return judged
        going = F.pad(torch.cumprod(1 - reward[:, 1:-1], 1), (1, 0), value=1.0)
        return judged._replace(loss=judged.loss * going, advantage=judged.advantage * going)


def own_horizon(agent: Any) -> None:
    """Raise ConfigError where tasks have discounts of their own, from which the one of a goal cannot be told."""
    if any(d != agent.cfg.critic.discount for d in getattr(agent, "discounts", ())):
        raise ConfigError("multitask.discount=length beside goals or subgoals, which have a horizon of their own: leave it at shared")


def leader(agent: Any) -> str:
    """Name of the behavior that pursues goals: who acts, or where a part names another, a manager, that one."""
    return getattr(agent, "leader", "main")


def pursuing(agent: Any, behaviors: dict[str, Behavior]) -> dict[str, Behavior]:
    """Behaviors whose leader climbs `goal` instead of the task's reward, or beside it where that has a weight. agent: a Goal.

    A leader who decides every K steps has the same horizon in steps, so its discount is that of one step to the K.
    """
    own_horizon(agent)
    cfg, name = agent.cfg.goal, leader(agent)
    lead, hold = behaviors[name], getattr(agent, "hold", 1)
    if hold > 1 and not agent.cfg.critic.contdisc:
        raise ConfigError("goals of a manager need critic.contdisc: its decisions are discounted by what their continuation holds")
    width, usual = agent.view_width - getattr(agent, "unled", 0), lead.terms().get("extrinsic")
    weight = cfg.weight * (usual.weight if usual else 0.0)  # a manager may care for no task at all
    critic = usual.cfg if usual else agent.cfg.critic
    own = GoalObjective(width, critic, cfg.horizon, weight, absorbing=agent.kind == "match" and not cfg.stay)
    own.rate **= hold
    kept = {k: o for k, o in lead.terms().items() if k != "extrinsic" or cfg.extrinsic}
    if task := kept.get("extrinsic"):
        task.weight, task.replay = cfg.extrinsic, None
    lead.objectives = nn.ModuleDict({"goal": own, **kept})
    return behaviors
