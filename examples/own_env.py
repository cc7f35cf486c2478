"""A practitioner's environment: any Gymnasium environment, given as module:function.

python -m polydream check-env examples.own_env:make
python -m polydream train --task examples.own_env:make
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Thermostat(gym.Env[dict[str, Any], np.ndarray]):
    """Keep a room at a temperature that changes: heat or cool, with a sensor and the name of the season."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {"room": gym.spaces.Box(-40.0, 60.0, (2,), np.float32), "season": gym.spaces.Discrete(2)},
        )
        self.action_space = gym.spaces.Box(-5.0, 5.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.season = int(self.np_random.integers(2))
        self.wanted, self.inside = float(self.np_random.uniform(18, 24)), float(self.np_random.uniform(5, 35))
        self.time = 0
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        outside = 30.0 if self.season else 0.0
        self.inside += 0.1 * (outside - self.inside) + float(action[0]) + float(self.np_random.normal(0, 0.2))
        self.time += 1
        reward = float(np.exp(-abs(self.inside - self.wanted)))
        burst = not -40 < self.inside < 60
        return self._see(), reward, burst, self.time >= 50, {}

    def render(self) -> np.ndarray:
        """Two bars: the room's temperature and the one that is wanted."""
        picture = np.full((64, 64, 3), 255, np.uint8)
        for left, degrees, colour in ((8, self.inside, (200, 60, 60)), (36, self.wanted, (60, 60, 200))):
            height = int(np.clip((degrees + 40) / 100 * 64, 1, 64))
            picture[64 - height :, left : left + 20] = colour
        return picture

    def _see(self) -> dict[str, Any]:
        return {"room": np.array([self.inside, self.wanted], np.float32), "season": self.season}


def make() -> Thermostat:
    """What `--task examples.own_env:make` calls."""
    return Thermostat()
