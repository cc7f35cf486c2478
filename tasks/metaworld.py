"""What Meta-World needs to be played from a seed: `gym/Meta-World/MT1` with option `env_name` (Yu et al. 2019; McLean et al. 2025).

The package draws 50 goals when a task is made, out of process-wide random numbers unless told a seed, and chooses one of them
for an episode *before* it looks at the seed of the reset. Both would make evaluations unlike each other. And it was written for
MuJoCo 3.3, of whose equality constraints it fills whole rows of 11 numbers; in 3.17 they have 12.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

FAMILY = "Meta-World/"
GOALS = 0
"""Seed of the 50 goals: the same ones in every environment and every run."""


class Seeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Lets the seed of a reset choose the goal, too."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, of a goal that follows from the seed."""
        if seed is not None:
            self.env.unwrapped.np_random = np.random.default_rng(seed)
        return self.env.reset(seed=seed, options=options)


def weld(arm: Any) -> None:
    """Tie the hand to the point that is moved: the package's `reset_mocap_welds` for rows of any length.

    A weld's first 11 numbers are an anchor (3), a relative pose (3 and a quaternion of 4) and the scale of torques.
    """
    model = arm.model
    if model.nmocap:
        model.eq_data[model.eq_type == import_module("mujoco").mjtEq.mjEQ_WELD, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]


def make(name: str, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, able to draw itself. Options are those of `gymnasium.make`."""
    import_module("metaworld.sawyer_xyz_env").SawyerMocapBase.reset_mocap_welds = weld
    return Seeded(gymnasium.make(name, **{"seed": GOALS, "render_mode": "rgb_array", **options}))
