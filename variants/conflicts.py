"""Tasks beside one another: whether they pull the shared world model the same way, and which the agent takes for alike."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core.pictures import Picture, Pictures, Plane, image_of, sheet, table
from ..core.rng import Draws
from ..core.scene import Scene

SHARED = ("encoder", "rssm", "decoder")
"""Modules whose gradients are compared."""
MOST = 12
"""Tasks that are compared, at most: each costs a backward pass."""


def conflicts(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    """`conflict`, cosines between the gradients of tasks in replay, and `tasks`, a map of the embedding. agent: a MultiTask."""
    if not agent.many:
        return {}
    names = list(agent.spec.tasks)
    found: Pictures = {}
    learning = any(p.requires_grad for name in SHARED for p in agent.nets[name].parameters())
    cosines, present = gradient_cosines(agent, scene.replayed, draws) if learning else (torch.zeros(0, 0), [])
    if len(present) > 1:
        rows = [names[i] for i in present]
        caption = "Cosine between the gradients that tasks give encoder, dynamics and decoder. Blue: they pull together, red: apart."
        found["conflict"] = Picture(table(cosines, rows, rows, "cosine of gradients", (-1.0, 1.0)), caption)
    if agent.reads:
        found["tasks"] = Picture(_embedding(agent, names), "Embeddings of the tasks on their two leading principal components.")
    return found


def gradient_cosines(agent: Any, batch: TensorDict, draws: Draws) -> tuple[Tensor, list[int]]:
    """Cosines (P, P) between tasks' gradients of the world model's loss on steps (B, T), and the numbers of those P tasks.

    The loss of a task is the scaled mean over its own steps; parameters are those of `SHARED` (Yu et al. 2020, "Gradient Surgery for
    Multi-Task Learning", call a negative cosine a conflict).
    """
    kept = [b.clone() for b in agent.buffers()]  # computing losses with a graph moves normalisers and the like
    with torch.enable_grad():
        state, data, previous = agent.replay_context(batch, 0)
        data = agent.prepare(data, draws)
        post = agent.rssm.observe(agent.encode(data), previous, data["is_first"], state, draws)
        losses = agent.rssm.kl(post)[0] | agent.model_losses(data, post)
        scales, ids = agent.scales(), agent.ids(data)
        loss = torch.stack([scales[k] * v for k, v in losses.items() if v.shape == ids.shape]).sum(0)
        parameters = [p for name in SHARED for p in agent.nets[name].parameters() if p.requires_grad]
        present = ids.unique().tolist()[:MOST]
        rows = []
        for task in present:
            grads = torch.autograd.grad(loss[ids == task].mean(), parameters, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, parameters, strict=True)])
            )
    with torch.no_grad():
        for buffer, before in zip(agent.buffers(), kept, strict=True):
            buffer.copy_(before)
    unit = torch.nn.functional.normalize(torch.stack(rows).float(), dim=-1)
    return unit @ unit.T, present


@torch.no_grad()
def _embedding(agent: Any, names: list[str]) -> Tensor:
    plane = Plane.principal(agent.nets["tasks"](torch.arange(len(names), device=agent.updates.device)))
    figure, (axes,) = sheet(5.2, 4.2)
    axes.plot(*plane.at.T, "o", color="#0b66b0")
    for name, at in zip(names, plane.at, strict=True):
        axes.annotate(name, at, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.2)
    axes.set_aspect("equal", adjustable="datalim")  # two tasks lie on a line: what is left of it is rounding
    plane.axes(axes)
    return image_of(figure)
