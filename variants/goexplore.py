"""Go, then explore: reach the goal first, then look around from there (Go-Explore, Ecoffet et al. 2021; PEG, Hu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core.agent import Config, Dreamer
from ..core.promises import Promises
from ..core.rng import Draws


@dataclass(frozen=True, kw_only=True)
class GoConfig:
    """When an episode turns from going to exploring."""

    share: float = 0.5  # of training episodes that explore after going
    limit: int = 25  # decisions after which exploring begins even where the goal was not reached
    near: float = 0.9  # goal reward, from 0 to 1, at which the goal counts as reached


@dataclass(frozen=True, kw_only=True)
class GoExploreConfig(Config):
    """Knobs of the base agent, and `go`."""

    go: GoConfig = field(default_factory=GoConfig)


class GoExplore(Dreamer):
    """Turns a share of the training episodes into exploring ones once their goal is reached, or after some time.

    Beside a variant that says how near a state is to its goal (`arrived`) that ends the going; else only time does. Where another
    variant brings an explorer (`explore` in the state) it takes over, else actions are uniformly random among those that the task
    knows. Dreams and evaluation never explore. The state carries `go`: decisions left to reach the goal, this one among them, 0 while
    exploring, -1 where nothing will change.
    """

    Config = GoExploreConfig
    cfg: GoExploreConfig
    promises = Promises(neutral={"go.share": 0.0}, turn={"go.limit": (2,)}, exempt={"go.near": "says something only beside `arrived`"})

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """Which episodes will explore. A player's observations come without the flags of collected steps: it never does."""
        found, go = super().context(data, state, draws), self.cfg.go
        never = torch.full(state.batch_size, -1, device=state.device)
        if state.batch_dims == 2 or not self.training or "is_last" not in data:
            return found.set("go", never)
        chosen = draws.uniform("go", *state.batch_size)
        assert chosen is not None
        leaves = chosen < go.share
        if getattr(self, "explores", False):  # an explorer that is done does not come back
            leaves = leaves & ~self.retired  # type: ignore[operator]
        return found.set("go", torch.where(leaves, go.limit + 1, never))

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        """As without, until the going is over."""
        left = state["go"]
        left = torch.where(left > 0, torch.where(self._there(state), 0, left - 1), left)
        state = state.copy().set("go", left)
        if "explore" in state:
            # An episode may be the explorer's from the start; going never gives that up.
            return super().act(state.set("explore", state["explore"] | (left == 0)), draws)
        state = super().act(state, draws)
        roaming = (left == 0)[:, None]
        action = {k: torch.where(roaming, v, state["action", k]) for k, v in self._anything(state, draws).items()}
        return state.set("action", TensorDict(action, state.batch_size, device=state.device))

    def _there(self, state: TensorDict) -> Tensor:
        """Whether states (n,) are where they wanted to go, bool."""
        arrived = getattr(self, "arrived", None)
        return torch.zeros_like(state["go"], dtype=torch.bool) if arrived is None else arrived(state) >= self.cfg.go.near

    def _anything(self, state: TensorDict, draws: Draws) -> dict[str, Tensor]:
        """Uniformly random actions (n, width) in model form, of what the task of a state knows where several differ in that."""
        actions, padding = {}, getattr(self.main.policy, "padding", None)
        for key, space in sorted(self.spec.action.items()):
            noise = draws.uniform("go/action", *state.batch_size, space.elements)
            assert noise is not None
            own = padding.of(key, state["task"]).flatten(1) if padding is not None and key in padding.names else None
            if space.classes is None:
                actions[key] = (2 * noise - 1) * (1.0 if own is None else own)
            else:
                # A task's own classes are the first ones.
                count = space.classes if own is None else own.unflatten(-1, (space.elements, space.classes)).sum(-1)
                actions[key] = torch.nn.functional.one_hot((noise * count).long(), space.classes).float().flatten(-2)
        return actions
