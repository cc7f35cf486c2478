"""A researcher's variant in a file of its own: a Dreamer that pays for the effort of its actions.

python -m polydream train --variant examples.thrifty:Thrifty --task dmc/pendulum_swingup --agent.price 0.05
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from polydream.core import agent, codec
from polydream.core.behavior import Behavior
from polydream.core.promises import Promises


@dataclass(frozen=True, kw_only=True)
class ThriftyConfig(agent.Config):
    """The base agent's knobs and one more."""

    price: float = 0.1  # reward given up per unit of squared action


class Thrifty(agent.Dreamer):
    """Dreams of reward minus effort; everything else is inherited."""

    Config = ThriftyConfig
    cfg: ThriftyConfig
    promises = Promises(neutral={"price": 0.0})

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        """The reward for arriving at state t, minus the price of the action that led there."""
        paid = self._price(dream["action"])
        return super().rewards(dream) | {"extrinsic": super().rewards(dream)["extrinsic"] - paid}

    def build_behaviors(self) -> dict[str, Behavior]:
        """The critic also learns from replayed steps, so their rewards must mean the same as the dreamed ones."""
        behaviors = super().build_behaviors()
        objective = behaviors["main"].terms()["extrinsic"]
        objective.replay = lambda batch: batch["reward"] - self._price(codec.model_actions(self.spec.action, batch["action"]))
        return behaviors

    def _price(self, action: TensorDict) -> Tensor:
        """Effort of actions (*, T) in model form, moved one step on: a_t is paid for on arriving at t + 1."""
        effort = sum((a.square().sum(-1) for a in action.values()), start=0.0)
        return self.cfg.price * F.pad(effort[..., :-1], (1, 0))
