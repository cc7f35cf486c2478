"""A second policy that looks for novelty: two networks for each of policy and critic, told apart by whose dream a row is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.behavior import Behavior, CriticConfig, Judgement, Objective
from ..core.normalizer import Normalizer, NormConfig
from ..core.outputs import Distribution, Output
from ..core.rng import Draws
from .padding import Mark
from .yardstick import TaskNormalizer, TaskObjective, ids_of


class Either(Distribution):
    """Row by row one of two outputs of one kind: `theirs` where `who` (*) is true."""

    def __init__(self, ours: Any, theirs: Any, who: Tensor) -> None:
        self.ours, self.theirs, self.who = ours, theirs, who

    def pred(self) -> Tensor:
        ours = self.ours.pred()
        return self._pick(ours, self.theirs.pred(), ours.ndim - self.who.ndim)

    def loss(self, target: Tensor) -> Tensor:
        return self._pick(self.ours.loss(target), self.theirs.loss(target))

    def sample(self, draws: Draws, stream: str) -> Tensor:
        return self._pick(self.ours.sample(draws, stream), self.theirs.sample(draws, f"{stream}/explorer"), 1)

    def logp(self, value: Tensor) -> Tensor:
        return self._pick(self.ours.logp(value), self.theirs.logp(value))

    def entropy(self) -> Tensor:
        return self._pick(self.ours.entropy(), self.theirs.entropy())

    def _pick(self, ours: Tensor, theirs: Tensor, event: int = 0) -> Tensor:
        """`event` axes come after the rows; targets may be stacked in front of them."""
        return torch.where(self.who.reshape(*self.who.shape, *[1] * event), theirs, ours)


class Pair(nn.Module):
    """Two networks of one shape that see (*, F): the feature at `place` says whose row it is, 1 for the explorer's, else 0."""

    def __init__(self, ours: nn.Module, theirs: nn.Module, place: int) -> None:
        super().__init__()
        self.ours, self.theirs, self.place = ours, theirs, place

    @property
    def action(self) -> Any:
        """The action spaces, where the pair are policies."""
        return self.ours.action

    def forward(self, features: Tensor) -> Any:
        who = features[..., self.place] > 0.5
        ours: Output | dict[str, Output] = self.ours(features)
        theirs = self.theirs(features)
        if isinstance(ours, dict):
            return {key: Either(ours[key], theirs[key], who) for key in ours}
        return Either(ours, theirs, who)


DEVIATION = NormConfig(impl="meanstd", limit=1e-8, debias=True)
"""Scale of a novelty reward."""


def _floorless(cfg: CriticConfig) -> CriticConfig:
    return replace(cfg, retnorm=replace(cfg.retnorm, limit=1e-8, debias=True))


class Novelty(Objective):
    """An objective whose reward is divided by its own running deviation, and whose returns by theirs with next to no floor.

    Disagreement fades as it is learned from; with the floor of task returns, 1, the explorer would fade into a random policy.
    """

    def __init__(self, features: int, cfg: CriticConfig) -> None:
        super().__init__(features, _floorless(cfg))
        self.deviation = Normalizer(DEVIATION)

    def judge(
        self, value: Output, slow: Output, reward: Tensor, cont: Tensor, update: bool = True, through: Tensor | None = None
    ) -> Judgement:
        _, scale = self.deviation(reward[:, 1:], update)
        return super().judge(value, slow, reward / scale, cont, update, through)


class TaskNovelty(TaskObjective):
    """`Novelty` with both scales of each task: one poorly known task would else silence what is new in all others."""

    def __init__(self, features: int, cfg: CriticConfig, *, mark: Mark, discounts: Sequence[float]) -> None:
        super().__init__(features, _floorless(cfg), mark=mark, discounts=discounts, scales=True, replay=None)
        self.deviation = TaskNormalizer(DEVIATION, mark.tasks)

    def judge(
        self, value: Output, slow: Output, reward: Tensor, cont: Tensor, update: bool = True, through: Tensor | None = None
    ) -> Judgement:
        _, scale = self.deviation(reward[:, 1:], ids_of(value)[:, 0], update)
        return super().judge(value, slow, reward / scale, cont, update, through)


def novelty(agent: Any, width: int) -> Objective:
    """The objective of novelty on features (*, width) of `agent`, with scales of each task where they name the task."""
    cfg: CriticConfig = agent.cfg.critic
    marked = getattr(agent, "marked", False) and agent.cfg.multitask.returns == "per_task"
    return TaskNovelty(width, cfg, mark=agent.mark, discounts=agent.discounts) if marked else Novelty(width, cfg)


def shared_out(draws: Draws, lead: Sequence[int], dreams: float, episodes: float) -> Tensor:
    """Whose are the explorer's, bool: of replayed sequences (B, T) a share `dreams`, as even as can be, of episodes (n,) each with
    probability `episodes`.

    A sequence has one owner: its critics learn from replay by the returns of the dreams along it, which must be one policy's.
    """
    chosen = draws.uniform("explore", lead[0])
    assert chosen is not None
    if len(lead) == 1:
        return chosen < episodes
    first = draws.uniform("explore/first", 1)
    assert first is not None
    return (chosen.argsort().argsort() + first < dreams * lead[0]).unsqueeze(-1).expand(*lead).contiguous()


class Explorer(Behavior):
    """The behavior `main` and a second one that shares its dreams: every dream is one policy's and trains that one only.

    main: the behavior to extend; its networks become the first of each pair. novel: objective of the explorer's own reward.
    weight, task: what the explorer makes of the novel advantage and of main's. place: of the feature that says whose row it is.
    """

    def __init__(self, main: Behavior, name: str, novel: Objective, weight: float, task: float, place: int) -> None:
        objectives = {**main.terms(), name: novel}
        for objective in objectives.values():
            for net in ("critic", "slow"):
                setattr(objective, net, _pair(getattr(objective, net), place))
        super().__init__(main.policy, objectives, main.cfg)
        self.policy = _pair(main.policy, place)
        self.novelty, self.weight, self.task, self.place = name, weight, task, place
        # Kept as a function: as a module it would be a second owner of the same parameters.
        self.usual: Callable[[Mapping[str, Tensor]], Tensor] = main.combine

    def combine(self, advantages: Mapping[str, Tensor]) -> Tensor:
        """Advantages of both policies (2, N, H): main's as main has it, and the explorer's sum."""
        ours = self.usual({k: v for k, v in advantages.items() if k != self.novelty})
        return torch.stack([ours, self.weight * advantages[self.novelty] + self.task * ours])

    def policy_loss(
        self, features: Tensor, action: TensorDict, gain: Tensor, weight: Tensor, update: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As main's, with the gain of the policy whose dream it is."""
        return super().policy_loss(features, action, torch.where(self._theirs(features), gain[1], gain[0]), weight, update)

    def rest(self, loss: Tensor, features: Tensor) -> Tensor:
        """The explorer does not wait with main's, unless it is paid what main is paid."""
        return super().rest(loss, features) if self.task else torch.where(self._theirs(features), loss, loss.detach())

    def _theirs(self, features: Tensor) -> Tensor:
        return features[:, :-1, self.place] > 0.5


def _pair(net: nn.Module, place: int) -> Any:
    return Pair(net, deepcopy(net), place)
