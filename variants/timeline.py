"""A hierarchy at work: which codes it uses, what its manager asked for in an episode, and where its worker got to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.pictures import HIT, MISS, Picture, Pictures, Plane, frames, image_of, sheet, table
from ..core.rng import Draws
from ..core.scene import Episode, Scene
from .pursuits import REACHED

SEGMENTS = 16
"""Subgoals of an episode that are shown, at most."""


@torch.no_grad()
def pursuit(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    """`codes`, how often each class of each group stands for a replayed state; `timeline` of an episode; `subgoals`, where these can be
    drawn: as frames, or as places of the task. agent: a Hierarchical."""
    use = agent.subgoals.encode(agent.replayed(scene.replayed["latent"]).flatten(0, 1)).log_probs.exp().mean(0)
    groups, codes = use.shape
    drawn = table(use, [f"group {g}" for g in range(groups)], [str(c) for c in range(codes)], "share of replayed states", (0.0, 1.0))
    found = {
        "codes": Picture(
            drawn, "How often each class of each group of the code stands for a state. A row with one bright square tells none apart."
        )
    }
    (episode,) = scene.play(agent, 1, SEGMENTS * agent.hold + 1)
    if len(episode.steps) < 2:
        return found
    device = agent.updates.device
    near = agent.nearness(episode.states["subgoal"][:-1].to(device), agent.aspect(episode.states[1:].to(device)).float()).cpu()
    ends = [min(t + agent.hold, len(near)) for t in range(0, len(near), agent.hold)]
    hits = [bool(near[t - 1] > REACHED) for t in ends]
    told = f"One episode, {len(ends)} subgoals, {sum(hits)} reached (closeness above {REACHED} when the next one was due)."
    found["timeline"] = Picture(_timeline(agent, episode, near), f"{told} Above: the code in force. Below: closeness and reward.")
    return found | _subgoals(agent, episode, ends, hits, told)


def _timeline(agent: Any, episode: Episode, near: Tensor) -> Tensor:
    """Codes (groups x steps) over closeness and reward, steps to the right."""
    codes = episode.states["code"][:-1].unflatten(-1, (-1, agent.subgoals.codes)).argmax(-1)
    figure, (upper, lower) = sheet(8.2, 4.0, 2)
    upper.imshow(codes.T.cpu().numpy(), cmap="tab10" if agent.subgoals.codes <= 10 else "viridis", aspect="auto", interpolation="nearest")
    upper.set_ylabel("group of the code")
    lower.plot(range(1, len(near) + 1), near.numpy(), color="#0b66b0", label="closeness to the subgoal in force")
    lower.plot(range(1, len(near) + 1), episode.steps["reward"][1:].numpy(), color=MISS, label="reward", linewidth=1)
    for one in (upper, lower):
        for t in range(0, len(near) + 1, agent.hold):
            one.axvline(t - 0.5, color="#6b7280", linewidth=0.6, linestyle=":")
    lower.set_xlabel("decisions; dotted: a new subgoal")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return image_of(figure)


def _subgoals(agent: Any, episode: Episode, ends: list[int], hits: list[bool], told: str) -> Pictures:
    """What subgoals look like, decoded with the latent that the model expects there, and what was there when the next was due."""
    aims = agent.shown(episode.states["subgoal"][[t - 1 for t in ends]].to(agent.updates.device))
    if images := [k for k, s in agent.spec.visible.items() if s.image and s.shape[-1] == 3 and k in aims]:
        wanted = list((255 * aims[images[0]].clamp(0, 1)).round().to(torch.uint8).cpu())
        shown = frames([*wanted, *episode.steps["obs", images[0]][ends]], [*hits, *hits], len(ends))
        caption = f"{told} Above: subgoals, decoded. Below: what was reached. Green frames: near enough, broken red: not."
        return {"subgoals": Picture(shown, caption)}
    asked, way = Plane.of(agent.spec, aims), Plane.of(agent.spec, episode.steps["obs"])
    if asked is None or way is None:
        return {}
    figure, (axes,) = sheet(5.2, 4.8)
    axes.plot(*way.at.T, color="#6b7280", linewidth=0.9, label="way")
    for aim, end, hit in zip(asked.at, way.at[ends], hits, strict=True):
        colour = HIT if hit else MISS
        axes.annotate("", aim, end, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.8})
        axes.plot(
            *aim,
            "o" if hit else "X",
            color=colour,
            markersize=7,
            markeredgecolor="white",
            label="subgoal " + ("reached" if hit else "missed"),
        )
    way.axes(axes)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    caption = f"{told} Subgoals as places, an arrow to each from where the worker was when the next one was due."
    return {"subgoals": Picture(image_of(figure), caption)}
