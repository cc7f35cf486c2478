"""Pictures of goals in dreams: what was to be reached, and the dream that tries."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core import openloop
from ..core.rng import Draws
from .hindsight import remaining


@torch.no_grad()
def attempts(agent: Any, batch: TensorDict, draws: Draws) -> dict[str, dict[str, Tensor]]:
    """The first steps of each sequence (B, T) as the model saw them, then a dream of the policy towards the end of that episode.

    Returns, for each image key of goals that the policy sees, as `goal/<key>`, `truth`, the goal, and `model`: (B, seen + H, height,
    width, C) in [0, 1]. As many steps are seen as in an open-loop dream. agent: has `aims` and `aim`.
    """
    images = [k for k, s in agent.aims.spaces.items() if s.image and agent.cfg.goal.weight]
    if not images:
        return {}
    batch = batch[: openloop.ROWS, : openloop.STEPS]
    seen = openloop.context_steps(batch)
    state, data, previous = agent.replay_context(batch, 0)
    post = agent.rssm.observe(agent.encode(data)[:, :seen], previous[:, :seen], data["is_first"][:, :seen], state, draws)
    end = seen - 1 + remaining(data["is_first"])[:, seen - 1]
    there = data[torch.arange(len(end), device=end.device), end]
    start = post[:, -1].exclude("logits")
    # Whatever else a state carries is chosen by the seams, and only the goal is put in its place.
    carried = agent.context(data[:, seen - 1], start, draws)
    dream = agent.imagine(start.update(carried).update(agent.aim(there, agent.aims.achieved(there))), draws)
    drawn = agent.decoder(*(torch.cat([post[k], dream[k][:, 1:]], 1) for k in ("deter", "stoch")))
    pictures = {}
    for key in images:
        goal, model = there["obs", key].float()[:, None] / 255, drawn[key].pred().clamp(0, 1)
        pictures[f"goal/{key}"] = {"truth": goal.expand_as(model), "model": model}
    return pictures
