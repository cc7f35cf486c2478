"""A policy of several tasks that does not learn from rewards which nobody can predict yet."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.agent import Config, Dreamer
from ..core.behavior import Behavior
from ..core.promises import Promises

MEMORY = 0.96
"""Share of what was known about a task that is kept at each update in which it occurs."""


@dataclass(frozen=True, kw_only=True)
class PatienceConfig:
    """Until when the policy of several tasks stands still. While its heads know how often a task pays and not where, whatever it
    learns is wrong, and a policy that has learned to stay away from all that may pay does not come back."""

    trust: float = 0.75  # share of the variance of each task's rewards that its head must explain; 0 waits for nothing
    wait: int = 1000  # updates after which it learns whatever the heads know


@dataclass(frozen=True, kw_only=True)
class PatientConfig(Config):
    """Knobs of the base agent, and `patience`."""

    patience: PatienceConfig = field(default_factory=PatienceConfig)


class Trust(nn.Module):
    """How much of each task's reward is explained: 1 - mean squared error / variance, over the last updates.

    A task that has paid nothing but a constant has nothing to explain. Once all are explained the wait is over for good.
    """

    moments: Tensor
    over: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(tasks, 4, dtype=torch.float64))  # sums of 1, reward, its square, squared error
        self.register_buffer("over", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def watch(self, ids: Tensor, reward: Tensor, said: Tensor) -> None:
        """Take in rewards (*) of tasks (*) and what the heads said of them (*)."""
        ids, reward, said = ids.flatten(), reward.flatten().double(), said.flatten().double()
        rows = torch.stack([torch.ones_like(reward), reward, reward.square(), (reward - said).square()], -1)
        new = torch.zeros_like(self.moments).index_add_(0, ids, rows)
        self.moments.mul_(torch.where(new[:, :1] > 0, MEMORY, 1.0)).add_(new)

    def explained(self) -> Tensor:
        """Share of the variance (tasks,), 1 where there is none, 0 for a task that never occurred."""
        count, total, square, error = self.moments.unbind(-1)
        variance = square - total.square() / count.clamp(min=1)
        known = torch.where(variance > 1e-9 * square, 1 - error / variance.clamp(min=1e-300), 1.0)
        return torch.where(count > 0, known, 0.0)


class Patient(Dreamer):
    """Lets the policy stand still until the reward head of every task can be trusted. With one task it is the base agent."""

    cfg: PatientConfig
    promises = Promises(exempt=dict.fromkeys(("behaviors.main.policy", "behaviors.manager.policy"), "waits for heads of rewards"))

    def build(self) -> dict[str, nn.Module]:
        """Adds `trust`, which learns nothing."""
        watched = len(self.spec.tasks) > 1 and self.cfg.patience.trust
        return super().build() | ({"trust": Trust(len(self.spec.tasks))} if watched else {})

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """While the policy waits, looks at what the reward heads say, and wakes it when they know enough."""
        losses, cfg = super().model_losses(batch, post), self.cfg.patience
        if "trust" not in self.nets:
            return losses
        trust: Trust = self.nets["trust"]  # type: ignore[assignment]
        if torch.is_grad_enabled() and not trust.over:
            ids = batch["task"].long()
            with torch.no_grad():
                said = self.predict("reward", post.copy().set("task", ids)).pred()
            trust.watch(ids, batch["reward"], said)
            trust.over |= (trust.explained() >= cfg.trust).all() | (self.updates >= cfg.wait)
        behaviors: list[Behavior] = list(self.behaviors.values())  # type: ignore[arg-type]
        for behavior in behaviors:
            # In a hierarchy it is the manager who climbs the tasks' rewards, and the worker only where it is paid them, too.
            behavior.awake = bool(trust.over) or "extrinsic" not in behavior.terms()
        return losses
