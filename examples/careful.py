"""A constrained agent in a file of its own: as much reward as a limit on cost allows, and a road to try it on.

python -m polydream train --variant examples.careful:Careful --task examples.careful:Road --agent.limit 0.25
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polydream.core import agent
from polydream.core.behavior import Behavior, CriticConfig, Judgement, Objective
from polydream.core.heads import Head, HeadConfig
from polydream.core.outputs import Output
from polydream.core.promises import Promises
from polydream.core.specs import Space, Spec
from polydream.tasks.base import Episodic


@dataclass(frozen=True, kw_only=True)
class CarefulConfig(agent.Config):
    """The base agent's knobs and three more."""

    limit: float = 0.25  # average cost per step that is allowed
    rate: float = 0.05  # of the multiplier: its change per update and unit of cost above the limit
    cost: HeadConfig = field(default_factory=lambda: HeadConfig(outscale=0.0))  # predicts the cost of a state


class Cost(Objective):
    """Cost as an objective of its own, and the multiplier that weighs it: it grows while dreams cost more than the limit."""

    multiplier: Tensor

    def __init__(self, features: int, cfg: CriticConfig, limit: float, rate: float) -> None:
        super().__init__(features, cfg, replay=lambda batch: batch["cost"])
        self.limit, self.rate = limit, rate
        self.register_buffer("multiplier", torch.zeros(()))

    def judge(
        self, value: Output, slow: Output, reward: Tensor, cont: Tensor, update: bool = True, through: Tensor | None = None
    ) -> Judgement:
        """Dual ascent on the Lagrangian, one step per update."""
        if update:
            self.multiplier.copy_((self.multiplier + self.rate * (reward[:, 1:].detach().mean() - self.limit)).clamp(min=0))
        judged = super().judge(value, slow, reward, cont, update, through)
        return judged._replace(metrics=judged.metrics | {"multiplier": self.multiplier.clone()})


class Constrained(Behavior):
    """max_policy min_multiplier reward - multiplier * (cost - limit), rescaled so that the whole never grows (Ray et al. 2019)."""

    def combine(self, advantages: Mapping[str, Tensor]) -> Tensor:
        """The other objectives' advantage minus that of the cost, (N, H)."""
        weight = self.objectives["cost"].multiplier
        gain = sum(o.weight * advantages[name] for name, o in self.terms().items() if name != "cost")
        return (gain - weight * advantages["cost"]) / (1 + weight)


class Careful(agent.Dreamer):
    """Reward under a limit on cost, which the task tells at every step (after SafeDreamer, Huang et al. 2024)."""

    Config = CarefulConfig
    cfg: CarefulConfig
    promises = Promises(requires=("cost",), neutral={"rate": 0.0}, beside={"rate": {"limit": -1.0}})

    def build(self) -> dict[str, nn.Module]:
        nets = super().build()
        return nets | {"cost": Head(nets["rssm"].latent_width, self.cfg.cost)}  # type: ignore[arg-type]

    def build_behaviors(self) -> dict[str, Behavior]:
        behaviors, cfg = super().build_behaviors(), self.cfg
        main = behaviors["main"]
        cost = Cost(self.view_width, cfg.critic, cfg.limit, cfg.rate)
        return behaviors | {"main": Constrained(main.policy, {**main.terms(), "cost": cost}, cfg.actor)}

    def scales(self) -> dict[str, float]:
        named = super().scales()
        also = {f"{name}/cost": named[name] for name in ("value", "repval") if name in named}
        return named | also | {"cost": named["reward"]}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        return super().model_losses(batch, post) | {"cost": self.nets["cost"](self.latent(post)).loss(batch["cost"])}

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        return super().rewards(dream) | {"cost": self.nets["cost"](self.latent(dream)).pred()}


class Road(Episodic):
    """Twenty steps of driving: an action a changes the speed, in [0, 1], by 0.3 a; speed is rewarded and its square costs.

    With a limit of 0.25 the best is to drive at half speed, for a reward of 0.5 a step; without one, at full speed.
    """

    def __init__(self, seed: int = 0) -> None:
        spec = Spec(obs={"speed": Space()}, action={"action": Space(shape=(1,))}, extras={"cost": Space()}, limit=20)
        super().__init__("road", spec, seed)

    def _begin(self, seed: int | None) -> None:
        self.speed, self.clock = 0.0, 0

    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        self.speed, self.clock = float(np.clip(self.speed + 0.3 * float(action["action"][0]), 0, 1)), self.clock + 1
        return self.speed, False, self.clock == 20

    def _observe(self) -> dict[str, np.ndarray]:
        return {"speed": np.array(self.speed, np.float32)}

    def _row(self, reward: float, *, first: bool, last: bool, terminal: bool) -> dict[str, object]:
        return super()._row(reward, first=first, last=last, terminal=terminal) | {"cost": np.float32(self.speed**2)}

    def render(self) -> np.ndarray:
        return np.repeat(np.repeat(np.uint8(255 * (np.arange(64) < 64 * self.speed))[None, :, None], 64, 0), 3, 2)
