"""Where members disagree: a map of their uncertainty over the states in replay."""

from __future__ import annotations

from typing import Any

import torch

from ..core.pictures import Picture, Pictures, Plane, field
from ..core.rng import Draws
from ..core.scene import Scene

SETTLE = 4
"""Steps after which a recurrent model that began with nothing knows where it is."""


@torch.no_grad()
def doubts(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    """`disagreement`: the mean uncertainty about the way to each replayed place. agent: has `measure`.

    Places are what the task calls so (`Plane.of`), else the two leading principal components of the deterministic state.
    """
    steps = scene.replayed
    known = ~steps["is_first"]  # no way leads to an episode's first step
    known[:, : min(SETTLE, known.shape[1] - 1)] = False
    if not known.any():
        return {}
    doubt, steps = agent.measure(steps, draws)[known], steps[known]
    plane = Plane.of(agent.spec, steps["obs"])
    where = "over the places in replay; grey was not met there"
    if plane is None or not plane.cells:
        where = "over the places in replay" if plane else "over the two leading principal components of the model's states in replay"
    plane = plane or Plane.principal(steps["latent", "deter"])
    caption = f"What members disagree about {where}: bright is little known. Mean {doubt.mean():.3g} of {len(doubt):,} steps."
    return {"disagreement": Picture(field(plane, doubt, "uncertainty"), caption)}
