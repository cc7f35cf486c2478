"""What MiniGrid needs to be seen by an agent that reads no text: `gym/MiniGrid-MemoryS7-v0` (Chevalier-Boisvert et al. 2023).

Its observation is a dictionary: the cells before the agent as small numbers, in a box of bytes that looks like a picture of 7 x 7 pixels; a
direction; and a sentence. The sentence of most tasks never changes, and then it tells nothing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

FAMILIES = ("MiniGrid-", "BabyAI-")
KINDS = 11
"""Kinds of things in a cell. Colours and states are fewer."""


class Seen(gymnasium.ObservationWrapper[Any, Any, Any]):
    """`view` (side, side, 3), classes: what is in each cell before the agent, its colour, its state; and `direction`, of four."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        offered: Any = env.observation_space
        view = Box(0, KINDS - 1, offered["image"].shape, np.int32)
        self.observation_space = Dict({"direction": offered["direction"], "view": view})

    def observation(self, observation: Any) -> dict[str, Any]:
        """The two that are arrays."""
        return {"direction": observation["direction"], "view": np.asarray(observation["image"], np.int32)}


def seen(env: gymnasium.Env[Any, Any], name: str) -> gymnasium.Env[Any, Any]:
    """The environment without its sentence. Raises ValueError where that changes from episode to episode, and so matters."""
    offered = env.observation_space
    if not (isinstance(offered, Dict) and {"image", "direction", "mission"} <= offered.spaces.keys()):
        return env
    if name.startswith("BabyAI-") or getattr(offered["mission"], "ordered_placeholders", None):
        raise ValueError(f"gym/{name} says in words what is to be done, other words in every episode, and agents here read none")
    return Seen(env)
