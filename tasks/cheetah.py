"""The suite's cheetah with a reward of our own: the same body, another direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Common, scale_action
from .dmc import ControlSuite


def backwards(*, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1) -> Backwards:
    """dm_control's cheetah, rewarded for running backwards."""
    return Backwards("cheetah_run", Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera), {})


class Backwards(ControlSuite):
    """Reward of a step: speed backwards over 10 m/s, between 0 and 1, which is `cheetah_run`'s with the sign turned."""

    SPEED = 10.0

    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        step: Any = self._env.step(scale_action(action["action"], self._low, self._high))
        self._now = step.observation
        reward = float(np.clip(-self._env.physics.speed() / self.SPEED, 0.0, 1.0))
        return reward, step.last() and step.discount == 0, step.last() and step.discount != 0
