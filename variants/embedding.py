"""What networks are told of the task: a vector of length 1 for each, learned or given, and a world model that hears it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.rng import Draws
from ..core.rssm import RSSM

TOLD = "~task"
"""Key under which the encoder is told the task, beside the observations."""

Reader = Literal["encoder", "dynamics", "heads", "behavior"]
"""Who may be told it; behavior: actor and critic."""


class Row(nn.Module):
    """A direction (width,), drawn uniformly, kept as a parameter of any length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start values."""
        nn.init.normal_(self.weight, generator=generator)

    def forward(self) -> Tensor:
        return F.normalize(self.weight, dim=0)


class Fixed(nn.Module):
    """A direction that is given and stays: saved with the agent, never trained."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.register_buffer("given", vector)  # not `weight`: a vector that an older agent learned must not take its place

    def forward(self) -> Tensor:
        return F.normalize(self.given, dim=0)  # type: ignore[arg-type]


class TaskEmbedding(nn.ModuleList):
    """Task numbers (*) -> vectors (*, width) of length 1 (TD-MPC2, Hansen et al. 2024, section 3.3, bounds it by 1).

    Normalised on the way: `max_norm` of an embedding would edit the weights while they are read. Each task's vector is a
    parameter of its own, so that one whose task is absent gets no gradient and does not move by momentum.
    given: vectors (width,) to use instead, one for each task.
    """

    def __init__(self, tasks: int, width: int, given: Sequence[Tensor] = ()) -> None:
        super().__init__([Fixed(v) for v in given] or [Row(width) for _ in range(tasks)])
        self.width = width

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.stack([row() for row in self])[ids]
        present = ids.unique()
        vectors = torch.stack([self[i]() for i in present.tolist()])
        return vectors[torch.searchsorted(present, ids.contiguous())]


def given(path: str, tasks: Sequence[str], width: int) -> list[Tensor]:
    """A vector (width,) for each of `tasks` out of a file, such as embeddings of what the tasks are called in words; none without a path.

    path: an .npz with one array per task, or a .json of lists; tasks that the file has beyond these are left alone. Raises ValueError
    naming the task, or the width, that does not fit.
    """
    if not path:
        return []
    if Path(path).suffix not in (".npz", ".json") or not Path(path).is_file():
        raise ValueError(f"multitask.vectors: {path!r} is no .npz or .json file")
    loaded = np.load(path, allow_pickle=False) if path.endswith(".npz") else json.loads(Path(path).read_text())
    vectors = []
    for task in tasks:
        if task not in loaded:
            near = get_close_matches(task, list(loaded), n=1)
            raise ValueError(f"multitask.vectors: {path} has no vector of {task!r}" + (f", only of {near[0]!r}" if near else ""))
        vector = np.asarray(loaded[task], np.float32)
        if vector.shape != (width,):
            raise ValueError(f"multitask.vectors: that of {task!r} has shape {vector.shape}, not ({width},): set multitask.embedding")
        if not np.isfinite(vector).all() or not vector.any():
            raise ValueError(f"multitask.vectors: that of {task!r} has no direction: it is zero or not finite")
        vectors.append(torch.from_numpy(vector))
    return vectors


class ToldRSSM(RSSM):
    """A world model whose dynamics hear the task, for bodies that move differently. The embedding enters beside the action.

    tokens end with it. tell: task numbers (*) -> embedding (*, told), for dreams, whose states carry the number as `task`.
    """

    def __init__(self, *arguments: Any, told: int, tell: Callable[[Tensor], Tensor]) -> None:
        cell, action, tokens, cfg = arguments
        super().__init__(cell, action + told, tokens + told, cfg)
        # A bound method and not the module, which has its owner.
        self.told, self.tell = told, tell

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        return super().step(state, torch.cat([action, self.tell(state["task"])], -1), draws)

    def observe(self, tokens: Tensor, action: Tensor, is_first: Tensor, state: TensorDict, draws: Draws) -> TensorDict:
        return super().observe(tokens, torch.cat([action, tokens[..., -self.told :]], -1), is_first, state, draws)
