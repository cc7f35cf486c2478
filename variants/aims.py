"""What a goal is made of: the observations it names, how it is commanded, when it is reached, how networks see it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core import codec
from ..core.rng import Draws
from ..core.rssm import RSSM
from ..core.specs import Space, Spec

Aim = Mapping[str, Tensor]
"""Observations that stand for a goal, arrays (*, shape) by the key that shows when it is achieved."""


class Aims:
    """The goals of a task: the keys that `spec.goals` names, or all that is visible where it names none."""

    def __init__(self, spec: Spec) -> None:
        self.pairs, self.visible, self.several = spec.goals, spec.visible, len(spec.tasks) > 1
        self.spaces: dict[str, Space] = {k: spec.obs[k] for k in self.pairs.values()} or spec.visible
        self.imaged = any(s.image for s in self.spaces.values())
        keys = {*self.pairs, *self.pairs.values()}
        self.commanding = [keys <= t.obs.keys() for t in spec.tasks.values()]  # by task: others have these keys only as padding

    @property
    def commands(self) -> bool:
        """Whether the task says where to go."""
        return bool(self.pairs)

    @property
    def width(self) -> int:
        """Length of `vector`."""
        return sum(s.width for s in self.spaces.values())

    def achieved(self, data: TensorDict) -> Aim:
        """What steps (*) have achieved: the goal that each would have fulfilled."""
        return {k: data["obs", k] for k in self.spaces}

    def desired(self, data: TensorDict) -> Aim:
        """What steps (*) were told to achieve. Raises KeyError naming a goal that the observation lacks."""
        obs = data["obs"]
        if lost := [k for k in self.pairs if k not in obs]:
            raise KeyError(f"the goal {lost[0]!r} is missing; got {', '.join(obs.keys())}")
        return {achieved: obs[desired] for desired, achieved in self.pairs.items()}

    def kind(self, data: TensorDict) -> Tensor:
        """Number of the task of steps (*), int64, all 0 where there is but one. Goals are achievements of the same task."""
        return data["task"].long() if self.several else torch.zeros(data.batch_size, dtype=torch.int64, device=data.device)

    def same(self, one: Aim, other: Aim, tolerance: float) -> Tensor:
        """Whether goals (*) fulfil one another, bool: Euclidean over all their keys, pixels from 0 to 1, classes as one-hot."""
        square: Tensor | float = 0.0
        for key, space in self.spaces.items():
            a, b = one[key].float(), other[key].float()
            gap = ((a != b) * 2**0.5 if space.discrete else (a - b) / (255 if space.image else 1)).square()
            square = square + (gap.flatten(gap.ndim - len(space.shape)).sum(-1) if space.shape else gap)
        return torch.as_tensor(square) <= tolerance**2

    def reached(self, data: TensorDict, tolerance: float) -> Tensor:
        """Whether steps (*) fulfil their command, bool. Those of tasks that command nothing do not."""
        reached = self.same(self.achieved(data), self.desired(data), tolerance)
        if all(self.commanding) or not self.several:
            return reached
        return reached & torch.tensor(self.commanding, device=reached.device)[self.kind(data)]

    def vector(self, goal: Aim) -> Tensor:
        """Goals as numbers (*, width): squashed by symlog, classes one-hot."""
        return codec.flat(self.spaces, goal, squash=True)

    def sight(self, goal: Aim, data: TensorDict) -> TensorDict:
        """The steps (*) as the encoder would get them at the goal; what is no part of a goal is marked missing, or black."""
        lead, device = data.batch_size, data.device
        obs = {k: goal[k] if k in self.spaces else _missing(s, (*lead, *s.shape), device) for k, s in self.visible.items()}
        return data.copy().set("obs", TensorDict(obs, lead, device=device))


def glimpse(rssm: RSSM, tokens: Tensor, actions: int, look: int) -> TensorDict:
    """The latents (n,) of a place that is seen `look` times from nothing, so that the recurrent state settles.

    tokens (n, width). actions: their width A; none is taken.
    """
    seen = tokens[:, None].expand(-1, look, -1)
    action = tokens.new_zeros(*seen.shape[:2], actions)
    still = Draws(0, modes={"posterior": 0.0})
    return rssm.observe(seen, action, action[..., 0].bool(), rssm.initial(len(tokens), tokens.device), still)[:, -1]


def _missing(space: Space, shape: tuple[int, ...], device: torch.device | None) -> Tensor:
    if space.image:
        return torch.zeros(shape, dtype=torch.uint8, device=device)
    return torch.full(shape, -1 if space.discrete else -torch.inf, device=device)


def choose(mask: Tensor, yes: Aim, no: Aim) -> Aim:
    """Goals `yes` where mask (*) is true, else `no`."""
    return {k: torch.where(mask.reshape(*mask.shape, *[1] * (no[k].ndim - mask.ndim)), yes[k], no[k]) for k in no}
