"""The two behaviors of a hierarchy: a worker that reaches subgoals and a manager that chooses them, both kept curious by their entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core.behavior import ActorConfig, Behavior, Objective
from ..core.config import ConfigError
from ..core.heads import Policy
from ..core.outputs import Categorical, Normal, Output
from . import segments
from .padding import elements, room
from .steering import Steer


class Steered(Behavior):
    """A behavior whose entropy is steered to `target`, a share of what its policy's distributions allow. hold: K steps.

    The weight starts at the actor's own `entropy`. Raises ConfigError for continuous actions whose deviation has no bounds.
    """

    def __init__(
        self, policy: Policy, objectives: Mapping[str, Objective], cfg: ActorConfig, *, target: float, speed: float, hold: int
    ) -> None:
        super().__init__(policy, objectives, cfg)
        bounded = policy.cfg.continuous == "bounded_normal" or all(s.discrete for s in policy.action.values())
        if not bounded:
            raise ConfigError(
                f"entropy without bounds cannot be steered: actor.policy.continuous={policy.cfg.continuous}, not bounded_normal"
            )
        critics = [o.cfg for o in self.terms().values()]
        self.hold, self.rate = hold, 1.0 if critics[0].contdisc else critics[0].discount
        self.steer = Steer(target, cfg.entropy, speed, raises=True)

    def randomness(self, dists: Mapping[str, Output]) -> Tensor:
        """How random a policy is (*), mean over action keys: 0 the least and 1 the most that what a task knows of them can be."""
        low, high = math.log(self.policy.cfg.min_std), math.log(self.policy.cfg.max_std)
        said, most = [], []
        for dist in dists.values():
            if isinstance(dist, Categorical):
                said.append(dist.entropy())
                most.append(room(dist))
            else:
                assert isinstance(dist, Normal)
                own = elements(dist)
                said.append(((dist.std.log() - low) * own).sum(-1))
                most.append((high - low) * own.sum(-1))
        bound = torch.stack(most)
        # A task that knows one action only, or none of a key, has nothing to choose there. Where that is all, the others' mean stands in.
        share, free = torch.stack(said) / bound.clamp(min=1e-8), (bound > 0).float()
        mean, some = (share * free).sum(0) / free.sum(0).clamp(min=1), free.amax(0)
        return torch.where(some > 0, mean, (mean * some).sum() / some.sum().clamp(min=1))

    def combine(self, advantages: Mapping[str, Tensor]) -> Tensor:
        """As the base, of what each advantage has beyond its mean (Hafner et al. 2022, appendix).

        A critic whose value still grows calls every action good, and that would drown the little that tells them apart.
        """
        return super().combine({k: a - a.detach().mean() for k, a in advantages.items()})

    def temperature(self, dists: Mapping[str, Output], update: bool = True) -> Tensor:
        """The steered weight of the entropy."""
        return self.steer(self.randomness(dists), update)

    def policy_loss(
        self, features: Tensor, action: TensorDict, gain: Tensor, weight: Tensor, update: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As the base, and the weight of the entropy among the metrics."""
        loss, metrics = super().policy_loss(features, action, gain, weight, update)
        return loss, metrics | {"temperature": self.steer.weight.clone()}


class Worker(Steered):
    """Acts. Learns from the segments of a dream, each with one subgoal from its first state to its last."""

    def excerpt(self, dream: TensorDict, rewards: Mapping[str, Tensor]) -> tuple[TensorDict, Mapping[str, Tensor]]:
        """Segments (H / K * N, K + 1)."""
        # What is cut is copied, and `joined` holds both halves of the latent.
        dream = dream.exclude("code", "clock", *(("deter", "stoch") if "joined" in dream else ()))
        return segments.worker_view(dream, self.hold, self.rate), {k: segments.cut(r, self.hold) for k, r in rewards.items()}


class Manager(Steered):
    """Chooses the code of a subgoal every K steps. Learns from the states in which it did."""

    def excerpt(self, dream: TensorDict, rewards: Mapping[str, Tensor]) -> tuple[TensorDict, Mapping[str, Tensor]]:
        """Decisions (N, H / K + 1)."""
        once = {k: getattr(o, "absorbing", False) for k, o in self.terms().items()}
        paid = {k: segments.manager_reward(r, dream["cont"], self.hold, self.rate, once.get(k, False)) for k, r in rewards.items()}
        return segments.manager_view(dream, self.hold, self.rate), paid
