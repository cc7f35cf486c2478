"""Crafter as a Gymnasium environment: `gym/CrafterReward-v1`, `gym/CrafterNoReward-v1` (Hafner 2021, https://arxiv.org/abs/2109.06780).

The crafter package speaks the interface of gym before its version 0.26 and registers itself only there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

LENGTH = 10_000


class Crafter(gymnasium.Env[np.ndarray, Any]):
    """64 x 64 pictures, 17 actions. Death terminates, 10 000 steps truncate.

    A seed fixes the episodes that follow: every reset without a seed generates the next world of the series.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, reward: bool = True, render_mode: str | None = None, seed: int = 0) -> None:
        self._game: Any = import_module("crafter").Env(reward=reward, length=LENGTH, seed=seed)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, tuple(self._game.observation_space.shape), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._game.action_space.n)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """First picture of a new world."""
        super().reset(seed=seed)
        if seed is not None:  # the game derives a world from its seed and the number of the episode
            self._game._seed, self._game._episode = seed, 0
        return self._game.reset(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Picture, reward, death, end of time, and the game's own information (achievements, inventory)."""
        picture, reward, over, info = self._game.step(action)
        dead = info["discount"] == 0
        return picture, float(reward), bool(dead), bool(over and not dead), info

    def render(self) -> np.ndarray:
        """The same view, every pixel four times as wide and high."""
        return self._game.render().repeat(4, 0).repeat(4, 1)


def register() -> None:
    """Make both ids known to Gymnasium."""
    for name, reward in (("CrafterReward-v1", True), ("CrafterNoReward-v1", False)):
        gymnasium.register(name, f"{__name__}:Crafter", kwargs={"reward": reward}, max_episode_steps=LENGTH)
