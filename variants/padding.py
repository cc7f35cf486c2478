"""Tasks of different spaces in one: what of a shared observation or action is a task's own, and outputs that know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.heads import Policy, PolicyConfig
from ..core.outputs import Categorical, Distribution, Normal, Output, Squared
from ..core.rng import Draws
from ..core.specs import Space


class Padding(nn.Module):
    """Masks (M, *shape) by key of shared spaces: true where an element is the task's own. Only of keys where some task lacks any.

    values: for class indices masks (M, *shape, C) of the values that are the task's own; an element that it lacks has class 0 only.
    """

    def __init__(self, spaces: Mapping[str, Space], own: Sequence[Mapping[str, Space]], values: bool = False) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        for key, space in sorted(spaces.items()):
            mask = torch.stack([_mask(space, tasks.get(key), values) for tasks in own])
            if not mask.all():
                self.names[key] = f"mask{len(self.names)}"
                self.register_buffer(self.names[key], mask, persistent=False)

    def of(self, key: str, ids: Tensor) -> Tensor:
        """Mask (*, *shape) for steps of tasks (*)."""
        mask: Tensor = getattr(self, self.names[key])
        return mask[ids]


def _mask(space: Space, own: Space | None, values: bool) -> Tensor:
    # Of real memory even where an agent is made of shapes alone: whether anything is masked decides what it is made of.
    mask = torch.zeros(space.shape, dtype=torch.bool, device="cpu")
    if own is not None:
        mask[tuple(slice(n) for n in own.shape)] = True
    if not (values and space.classes):
        return mask
    classes = torch.arange(space.classes, device="cpu")
    known = own.classes if own is not None and own.classes else 1
    return torch.where(mask.unsqueeze(-1), classes < known, classes < 1)


def owned(output: Output, mask: Tensor) -> Output:
    """A reconstruction in which elements outside `mask` (*, *shape) cost nothing and teach nothing. Their target is 0, as padded."""
    if isinstance(output, Squared):
        return Squared(output.mean * mask, output.dims, output.squash)
    assert isinstance(output, Categorical)
    made = Categorical(output.log_probs, output.dims)
    made.log_probs = output.log_probs * mask.unsqueeze(-1)
    return made


class OwnNormal(Normal):
    """Normals of which only the elements in `mask` (*, A) exist: the others are exactly 0, cost no log-probability, have no entropy."""

    def __init__(self, inner: Normal, mask: Tensor) -> None:
        super().__init__(inner.mean, inner.std, inner.squash)
        self.mask = mask.flatten(mask.ndim - (mask.ndim - self.mean.ndim + 1)) if mask.ndim > self.mean.ndim else mask
        self.single = Normal(self.mean.unsqueeze(-1), self.std.unsqueeze(-1), self.squash)

    def pred(self) -> Tensor:
        return super().pred() * self.mask

    def sample(self, draws: Draws, stream: str) -> Tensor:
        return super().sample(draws, stream) * self.mask

    def logp(self, value: Tensor) -> Tensor:
        return (self.single.logp(value.unsqueeze(-1)) * self.mask).sum(-1)

    def entropy(self) -> Tensor:
        return (self.single.entropy() * self.mask).sum(-1)


class OwnCategorical(Categorical):
    """Classes of which only those in `mask` (*, *shape, C) exist: the others are never drawn. At least one does."""

    def __init__(self, inner: Categorical, mask: Tensor) -> None:
        super().__init__(inner.log_probs, inner.dims)
        self.mask = mask
        probs = inner.log_probs.exp() * mask
        self.log_probs = (probs / probs.sum(-1, keepdim=True)).clamp(min=torch.finfo(probs.dtype).tiny).log()

    def sample(self, draws: Draws, stream: str) -> Tensor:
        drawn = super().sample(draws, stream).reshape(self.mask.shape)
        # The last class closes the interval of the draw, whether it exists or not.
        likeliest = F.one_hot(self.log_probs.argmax(-1), self.mask.shape[-1]).to(drawn.dtype)
        lost = (drawn.detach() * self.mask).sum(-1, keepdim=True) < 0.5
        return self._flat(torch.where(lost, likeliest, drawn * self.mask))

    def logp(self, value: Tensor) -> Tensor:
        return Categorical.logp(self, (value.reshape(self.mask.shape) * self.mask))

    def entropy(self) -> Tensor:
        terms = -(self.log_probs.exp() * self.log_probs * self.mask).sum(-1)
        return terms.flatten(terms.ndim - self.dims).sum(-1) if self.dims else terms


def room(dist: Categorical) -> Tensor:
    """The greatest entropy (*) in nats that classes can have, of those that exist."""
    if not isinstance(dist, OwnCategorical):
        return torch.full_like(dist.entropy(), dist.max_entropy())
    most = dist.mask.sum(-1).clamp(min=1).log()
    return most.flatten(most.ndim - dist.dims).sum(-1) if dist.dims else most


def elements(dist: Normal) -> Tensor:
    """Which elements of normals exist, 1 or 0, (*, A)."""
    return dist.mask.expand_as(dist.std).float() if isinstance(dist, OwnNormal) else torch.ones_like(dist.std)


class Mark(NamedTuple):
    """Where features (*, F) hold the number of their task: as number / tasks in one of them, so that whoever does not know meets no
    large value."""

    place: int
    tasks: int

    def write(self, ids: Tensor) -> Tensor:
        """Numbers (*) -> the feature (*, 1)."""
        return ids.unsqueeze(-1).float() / self.tasks

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (*, F) -> the same with 0 in this one's place, and the numbers (*)."""
        mark, after = features[..., self.place : self.place + 1], features[..., self.place + 1 :]
        return torch.cat([features[..., : self.place], torch.zeros_like(mark), after], -1), (mark[..., 0] * self.tasks).round().long()


class TaskPolicy(Policy):
    """A policy of several tasks, whose number is among the features (*, F) where `mark` says, that does what the task knows."""

    def __init__(self, inputs: int, action: Mapping[str, Space], cfg: PolicyConfig, own: Sequence[Mapping[str, Space]], mark: Mark) -> None:
        super().__init__(inputs, action, cfg)
        self.padding, self.mark = Padding(action, own, values=True), mark

    def forward(self, features: Tensor) -> dict[str, Distribution]:
        features, ids = self.mark.read(features)
        dists = super().forward(features)
        for key in self.padding.names:
            dist, mask = dists[key], self.padding.of(key, ids)
            dists[key] = OwnNormal(dist, mask) if isinstance(dist, Normal) else OwnCategorical(dist, mask)  # type: ignore[arg-type]
        return dists
