"""Looking into a world model: held-out losses, and dreams under recorded actions beside what really happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from .outputs import Squared
from .rng import Draws

if TYPE_CHECKING:
    from .agent import Dreamer

ROWS, STEPS = 6, 33
"""Sequences and steps of an open-loop dream; the first half is seen."""


@torch.no_grad()
def inspect(agent: Dreamer, batch: TensorDict, draws: Draws) -> dict[str, Tensor]:
    """Losses of a batch (B, T) without learning from it, and how well the largest rewards are predicted.

    `reward_extreme_error` is the error of the prediction at the largest reward in magnitude, relative to that reward.
    """
    state, data, previous = agent.replay_context(batch, 0)
    losses, post, metrics = agent.losses(data, state, previous, draws, update=False)
    _, means = agent.total(losses)
    reward = data["reward"].flatten()
    place = reward.abs().argmax()
    predicted = agent.predict("reward", post).pred().flatten()
    error = (predicted[place] - reward[place]).abs() / reward[place].abs().clamp(min=1e-3)
    rec = torch.stack([v for k, v in means.items() if k.startswith("loss/rec/")]).sum()
    return metrics | means | {"reward_extreme_error": error, "rec": rec}


@torch.no_grad()
def open_loop(agent: Dreamer, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """See the first half of each sequence, then dream the second under the recorded actions, never looking again.

    batch (B, T), cut to at most ROWS sequences of STEPS. Returns errors of the dreamed half by key, and for image keys
    `truth` and `model` (B, T, H, W, C) in [0, 1].
    """
    batch = batch[:ROWS, :STEPS]
    seen = context_steps(batch)
    state, data, previous = agent.replay_context(batch, 0)
    post = agent.rssm.observe(agent.encode(data)[:, :seen], previous[:, :seen], data["is_first"][:, :seen], state, draws)
    states = [post[:, t].select("deter", "stoch") for t in range(seen)]
    for t in range(seen, batch.batch_size[1]):
        known = data[:, t].select(*agent.spec.extras)
        states.append(agent.rssm.step(states[-1].copy().update(known), previous[:, t], draws))
    latents: TensorDict = torch.stack(states, 1)
    metrics: dict[str, Tensor] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for key, output in agent.reconstruct(latents, data).items():
        truth: Tensor = data["obs", key]
        metrics[f"openloop/{key}"] = output.loss(truth)[:, seen:].mean()
        if agent.spec.obs[key].image and isinstance(output, Squared):
            pictures[key] = {"truth": truth.float() / 255, "model": output.mean.clamp(0, 1)}
    return metrics, pictures


def context_steps(batch: TensorDict) -> int:
    """How many steps of a batch are seen before the dream begins."""
    return max(min(batch.batch_size[1], STEPS) // 2, 1)


def dreamed(agent: Dreamer, start: TensorDict, draws: Draws) -> TensorDict:
    """A dream (N, H + 1) to be looked at: made in the precision of updates, which its networks expect, and float32 then."""
    with agent._autocast():
        dream: TensorDict = agent.imagine(start, draws)
    return dream.apply(lambda x: x.float() if x.is_floating_point() else x)
