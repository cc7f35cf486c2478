"""How a hierarchy is doing: what its code tells of states, how much of it is used, whether dreams reach their subgoals."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core import openloop
from ..core.rng import Draws

REACHED = 0.7
"""Closeness at which a subgoal counts as reached."""


@torch.no_grad()
def inspect(agent: Any, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Metrics of replayed steps (B, T) and of dreams from them, and a film of subgoals beside the dreams that pursue them.

    subgoals/r2: variance of states that their codes tell, 1 at best. subgoals/kl: nats that they tell. subgoals/perplexity: codes in
    use in a group, 1 to C, mean over groups. subgoals/closeness and subgoals/reached: at the end of segments. Pictures `subgoal/<key>`,
    (B, seen + H, height, width, C) in [0, 1]: `model` sees as many steps as in an open-loop dream and then dreams, `truth` is what there
    was to see and then the subgoal in force. agent: a Hierarchical.
    """
    batch = batch[: openloop.ROWS, : openloop.STEPS]
    seen = openloop.context_steps(batch)
    state, data, previous = agent.replay_context(batch, 0)
    post = agent.rssm.observe(agent.encode(data), previous, data["is_first"], state, draws)
    start = post.exclude("logits").update(agent.context(data, post, draws)).reshape(-1)
    dream = openloop.dreamed(agent, start, draws)
    ends = list(range(agent.hold, dream.shape[1], agent.hold))
    near = agent.nearness(dream["subgoal"][:, [t - 1 for t in ends]].float(), agent.aspect(dream)[:, ends].float())
    told = {"closeness": near.mean(), "reached": (near > REACHED).float().mean()} | code_metrics(agent.subgoals, agent.aspect(post).float())
    return {f"subgoals/{k}": v for k, v in told.items()}, _film(agent, data[:, :seen], post[:, :seen], dream[seen - 1 :: data.shape[1]])


@torch.no_grad()
def code_metrics(subgoals: Any, aspect: Tensor) -> dict[str, Tensor]:
    """r2, kl and perplexity of what subgoals are of, (B, T, D), as above."""
    rest = (subgoals.again(aspect) - aspect).square().sum()
    whole = (aspect - aspect.mean((0, 1))).square().sum()
    q = subgoals.encode(aspect)
    use = q.log_probs.exp().mean((0, 1))
    perplexity = (-(use * use.clamp(min=1e-12).log()).sum(-1)).exp()
    return {"r2": 1 - rest / whole.clamp(min=1e-12), "kl": (subgoals.capacity - q.entropy()).mean(), "perplexity": perplexity.mean()}


def _film(agent: Any, data: TensorDict, post: TensorDict, dream: TensorDict) -> dict[str, dict[str, Tensor]]:
    """Dreams (B, H + 1) that follow seen steps (B, T) beside their subgoals, with the latent that the model expects there."""
    images = [k for k, s in agent.spec.visible.items() if s.image]
    if not images or agent.placed:
        return {}
    aims = agent.shown(dream["subgoal"][:, :-1])
    made = agent.decoder(*(torch.cat([post[k], dream[k][:, 1:]], 1) for k in ("deter", "stoch")))
    pictures = {}
    for key in images:
        truth = torch.cat([data["obs", key].float() / 255, aims[key].clamp(0, 1)], 1)
        pictures[f"subgoal/{key}"] = {"truth": truth, "model": made[key].pred().clamp(0, 1)}
    return pictures
