"""Pictures of goals: dreams that try to reach one, and attempts in the task itself, reached ones and missed ones told apart."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core import openloop
from ..core.pictures import HIT, MISS, Picture, Pictures, Plane, frames, image_of, sheet
from ..core.rng import Draws
from ..core.scene import Scene
from .hindsight import remaining

TRIES = 24
"""Episodes that are played for the picture."""


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
    dream = openloop.dreamed(agent, start.update(carried).update(agent.aim(there, agent.aims.achieved(there))), draws)
    drawn = agent.decoder(*(torch.cat([post[k], dream[k][:, 1:]], 1) for k in ("deter", "stoch")))
    pictures = {}
    for key in images:
        goal, model = there["obs", key].float()[:, None] / 255, drawn[key].pred().clamp(0, 1)
        pictures[f"goal/{key}"] = {"truth": goal.expand_as(model), "model": model}
    return pictures


def goals(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    """`goals`: a map of the commanded goals with the ways towards them, or, where goals are images, the frames that attempts ended in.

    An attempt counts as reached where any of its steps fulfils the command within `goal.tolerance`. agent: has `aims`. Empty where the
    policy sees no goal or the task commands none, or where goals are neither images nor places.
    """
    if not (agent.aims.commands and agent.cfg.goal.weight):
        return {}
    images = [k for k, s in agent.aims.spaces.items() if s.image]
    if not images and Plane.of(agent.spec, scene.replayed[:1, 0]["obs"]) is None:
        return {}
    tries = [episode.steps for episode in scene.play(agent, TRIES)]
    reached = [bool(agent.aims.reached(steps, agent.cfg.goal.tolerance)[1:].any()) for steps in tries]
    told = f"{sum(reached)} of {len(tries)} commanded goals were reached, actions sampled."
    if images:
        ends = [steps["obs", images[0]][-1] for steps in tries]
        caption = f"{told} Where each attempt ended: solid green frames reached their goal, broken red ones missed it."
        return {"goals": Picture(frames([_rgb(end) for end in ends], reached), caption)}
    caption = f"{told} Green discs: reached. Red crosses: missed. Grey: the ways taken, from the dots on."
    return {"goals": Picture(_map(agent, scene, tries, reached), caption)}


def _rgb(image: torch.Tensor) -> torch.Tensor:
    """The first three channels of a frame (height, width, C), a single one three times."""
    return image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, 3)


def _map(agent: Any, scene: Scene, tries: list[TensorDict], reached: list[bool]) -> torch.Tensor:
    figure, (axes,) = sheet(5.2, 4.8)
    floor = Plane.of(agent.spec, scene.replayed.flatten(0, 1)["obs"].cpu())
    assert floor is not None
    axes.scatter(
        floor.at[:, 0], floor.at[:, 1], marker="s", s=130 if floor.cells else 5, color="#e6e9ed", linewidths=0, label="seen in training"
    )
    for steps in tries:
        way = Plane.of(agent.spec, steps["obs"])
        assert way is not None
        axes.plot(*way.at.T, color="#6b7280", linewidth=0.8, alpha=0.6)
        axes.plot(*way.at[:1].T, ".", color="#6b7280", markersize=5)
    for hit, mark, colour, name in ((True, "o", HIT, "reached"), (False, "X", MISS, "missed")):
        aims = [Plane.of(agent.spec, s["obs"][:1], "goal_").at for s, r in zip(tries, reached, strict=True) if r is hit]  # type: ignore[union-attr]
        for aim in aims:
            axes.plot(*aim.T, mark, color=colour, markersize=8, markeredgecolor="white", label=name)
    floor.axes(axes)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return image_of(figure)
