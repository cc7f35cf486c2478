"""Single pictures of what an agent knows: maps of a task's states, tables of numbers, rows of frames. Drawn through matplotlib.

Variants name what draws theirs in `exhibits`; a run keeps them as pictures/<name>-<step>.png, the caption inside the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .rng import Draws
from .scene import Scene
from .specs import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .agent import Dreamer

HIT, MISS = "#15803d", "#c2410c"
"""Colours of what was reached and what was missed. Shapes or words say the same beside them."""
SIDE = 512  # pixels of the shorter side up to which pictures made of frames are enlarged


class Picture(NamedTuple):
    """image: uint8 (height, width, 3). caption: one or two sentences that say what is to be seen."""

    image: Tensor
    caption: str


Pictures: TypeAlias = dict[str, Picture]
Exhibit: TypeAlias = Callable[[Any, Scene, Draws], Pictures]
"""What draws pictures of an agent by name. It leaves the agent as it was, and returns {} where there is nothing to show."""


def drawn(agent: Dreamer, scene: Scene, draws: Draws) -> Pictures:
    """The pictures of an agent's class and of everything that it inherits from."""
    found: Pictures = {}
    for cls in reversed(type(agent).__mro__):
        for exhibit in vars(cls).get("exhibits", ()):
            found |= exhibit(agent, scene, draws)
    return found


def save(path: Path, picture: Picture) -> Path:
    """Write a PNG that holds its caption. Raises ValueError for an image that is none."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = picture.image.cpu().numpy()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"a picture must be uint8 (height, width, 3), not {image.dtype} {image.shape}")
    told = PngInfo()
    told.add_itxt("Description", picture.caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    Image.fromarray(image).save(part, format="png", optimize=True, pnginfo=told)
    os.replace(part, path)
    return path


@dataclass(frozen=True)
class Plane:
    """Where steps are, as two numbers each. cells: where these are column and row of a grid, how many of each there are."""

    at: np.ndarray  # (n, 2)
    names: tuple[str, str]
    cells: tuple[int, int] | None = None

    @classmethod
    def of(cls, spec: Spec, obs: Mapping[str, Tensor], prefix: str = "") -> Plane | None:
        """Places of observations (n, ...) by the names that tasks give them: `x` and `y`, else `achieved_goal` or `position`.

        Classes `x` and `y` are cells. prefix: of the keys, to read goals. None where the task names no place.
        """
        ours = {k: spec.obs[k] for k in ("x", "y") if k in spec.obs}
        if len(ours) == 2 and all(s.elements == 1 for s in ours.values()):
            cells = (ours["x"].classes or 0, ours["y"].classes or 0)
            at = torch.stack([obs[prefix + k].float().reshape(-1) for k in ours], -1).cpu().numpy()
            return cls(at.astype(int), ("x", "y"), cells) if all(cells) else cls(at, ("x", "y"))
        for key in ("achieved_goal", "position"):
            space = spec.obs.get(key)
            if space is not None and not space.discrete and len(space.shape) == 1 and space.elements > 1:
                key = "desired_goal" if prefix and key == "achieved_goal" else prefix + key
                return cls(obs[key][:, :2].float().cpu().numpy(), (f"{key}[0]", f"{key}[1]"))
        return None

    @classmethod
    def principal(cls, latent: Tensor) -> Plane:
        """Places (n, 2) of latents (n, D): their two leading principal components, for tasks that name no place."""
        centred = latent.float() - latent.float().mean(0)
        basis = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        at = centred @ basis.T
        return cls(torch.nn.functional.pad(at, (0, 2 - at.shape[-1])).cpu().numpy(), ("first component", "second component"))

    def axes(self, axes: Axes) -> None:
        """Name the axes; rows of a grid go down, as in the task's own pictures."""
        if self.cells:
            axes.set_xlim(-0.5, self.cells[0] - 0.5)
            axes.set_ylim(self.cells[1] - 0.5, -0.5)
            axes.set_aspect("equal")
        axes.set_xlabel(self.names[0])
        axes.set_ylabel(self.names[1])


def field(plane: Plane, values: Tensor, label: str) -> Tensor:
    """Values (n,) over the places of a plane: the mean of every cell, or one dot each where places are no cells."""
    figure, (axes,) = sheet(5.4, 4.4)
    numbers = values.float().cpu().numpy()
    if plane.cells:
        total, count = np.zeros(plane.cells[::-1]), np.zeros(plane.cells[::-1])
        where = (plane.at[:, 1], plane.at[:, 0])
        np.add.at(total, where, numbers)
        np.add.at(count, where, 1)
        drawn: Any = axes.imshow(np.where(count > 0, total / np.maximum(count, 1), np.nan), cmap="viridis")
        axes.set_facecolor("#d8dce1")
    else:
        drawn = axes.scatter(plane.at[:, 0], plane.at[:, 1], c=numbers, s=9, cmap="viridis", linewidths=0)
    plane.axes(axes)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.85)
    return image_of(figure)


def table(values: Tensor, rows: Sequence[str], columns: Sequence[str], label: str, limits: tuple[float, float]) -> Tensor:
    """A matrix (R, C) as coloured squares between `limits`, its numbers written in them where there is room."""
    figure, (axes,) = sheet(2.4 + 0.55 * len(columns), 1.6 + 0.42 * len(rows))
    numbers = values.float().cpu().numpy()
    drawn = axes.imshow(numbers, cmap="RdBu" if limits[0] < 0 else "viridis", vmin=limits[0], vmax=limits[1], aspect="auto")
    if len(columns) <= 12:
        middle, half = sum(limits) / 2, (limits[1] - limits[0]) / 2
        for (r, c), number in np.ndenumerate(numbers):
            bright = abs(number - middle) < 0.6 * half if limits[0] < 0 else number > middle
            axes.text(c, r, "–" if np.isnan(number) else f"{number:.2f}", ha="center", va="center", color="black" if bright else "white")
    long = max(map(len, columns)) > 4
    axes.set_xticks(range(len(columns)), columns, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.85)
    return image_of(figure)


def frames(images: Sequence[Tensor], reached: Sequence[bool], columns: int = 8) -> Tensor:
    """Frames uint8 (height, width, 3) side by side: solid green around those that reached, broken red around those that missed."""
    height, width = images[0].shape[:2]
    edge = max(height // 16, 2)
    tiles = []
    for image, hit in zip(images, reached, strict=True):
        tile = torch.full((height + 4 * edge, width + 4 * edge, 3), 255, dtype=torch.uint8)
        ring = tile[edge:-edge, edge:-edge]
        ring[:] = torch.tensor([int((HIT if hit else MISS)[i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)
        if not hit:
            ring[:: 4 * edge] = ring[:, :: 4 * edge] = 255
        ring[edge:-edge, edge:-edge] = image
        tiles.append(tile)
    columns = min(columns, len(tiles))
    tiles += [torch.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    joined = torch.cat([torch.cat(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])
    factor = -(-SIDE // min(joined.shape[:2]))
    return joined.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def sheet(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many inches, and its axes, one under the other with one x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, 1, sharex=True, squeeze=False).flat)
    for one in axes:
        one.spines[:].set_visible(False)
        one.tick_params(length=0, labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return figure, axes


def image_of(figure: Figure) -> Tensor:
    """A figure as uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
