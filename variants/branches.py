"""One head for each task on shared features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.heads import Head, HeadConfig
from ..core.outputs import Output
from ..core.specs import Member


class Branches(nn.ModuleList):
    """Features (*, F) and task numbers (*) -> the `Output` (*) of each row's own head.

    Only heads of tasks that are present run: an absent one gets no gradient at all, so the optimizer leaves it and its moments
    where they are. A stack of weights would be moved by momentum, and clipped by one norm for all tasks.
    """

    def __init__(self, tasks: int, inputs: int, cfg: HeadConfig) -> None:
        super().__init__(Head(inputs, cfg) for _ in range(tasks))

    def forward(self, features: Tensor, ids: Tensor) -> Output:
        first: Head = self[0]  # type: ignore[assignment]
        rows, flat = features.flatten(0, -2), ids.flatten()
        places = [(i, (flat == i).nonzero().squeeze(-1)) for i in flat.unique().tolist()]
        found = torch.cat([self[i].raw(rows[place]) for i, place in places])
        order = torch.cat([place for _, place in places]).argsort()
        return first.output(found[order].unflatten(0, ids.shape))


def balance(ids: Tensor, tasks: int) -> Tensor:
    """Weights, of mean 1, with which a mean over all steps (*) becomes the unweighted mean over present tasks of their means."""
    counts = torch.bincount(ids.flatten(), minlength=tasks)
    return ids.numel() / ((counts > 0).sum() * counts[ids])


def other(tasks: Sequence[Member], ids: Tensor, noise: Tensor) -> Tensor:
    """For each task number (*) that of another task with the same spaces, or its own where there is none. noise (*): uniform, which one."""
    alike = [[k for k, b in enumerate(tasks) if k != i and (a.obs, a.action) == (b.obs, b.action)] or [i] for i, a in enumerate(tasks)]
    counts = torch.tensor([len(row) for row in alike], device=ids.device)
    table = torch.tensor([row + [0] * (len(tasks) - len(row)) for row in alike], device=ids.device)
    return table[ids, (noise * counts[ids]).long()]
