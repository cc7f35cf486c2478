"""Collecting experience: every environment is stepped once, and the agent acts on what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from .agent import Dreamer
from .codec import model_actions
from .guard import Guard
from .rng import Draws, seed_for
from .run import RunConfig
from .vector import Vector


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of n environments."""

    steps: dict[str, Any]  # what `Vector.step` returned
    actions: dict[str, np.ndarray]  # (n, ...), chosen after seeing it; zero where an episode ends
    latents: dict[str, np.ndarray]  # (n, ...), the latents they were chosen in
    broken: list[int]  # environments whose episode ended without a last step before this one

    @property
    def decisions(self) -> int:
        """Actions that this step carried out; a reset carries out none."""
        return int((~self.steps["is_first"]).sum())


class Collector:
    """Steps environments with an agent and remembers what both need for the next step.

    `state` is the agent's acting state (n,), `actions` what the environments are to do next, None before the first step.
    """

    def __init__(self, cfg: RunConfig, envs: Vector, agent: Dreamer, guard: Guard) -> None:
        self.cfg, self.envs, self.agent, self.guard = cfg, envs, agent, guard
        self.state = agent.initial(envs.n)
        self.actions: dict[str, np.ndarray] | None = None

    def step(self, rows: int, decisions: int) -> Row:
        """Take the actions chosen last and choose the next. rows, decisions: how many there were before; noise goes by the one,
        `random` by the other."""
        steps = self.envs.step(self.actions)
        broken = list(self.envs.broken)
        actions = self.decide(steps, rows, decisions)
        self.actions = actions
        return Row(steps=steps, actions=actions, latents={k: v.cpu().numpy() for k, v in stored(self.state).items()}, broken=broken)

    def decide(self, steps: Mapping[str, Any], rows: int, decisions: int) -> dict[str, np.ndarray]:
        """Actions of all environments; `state` becomes what they were chosen in. Episode ends get no action: it is stored as zero."""
        arrays = {k: v for k, v in steps.items() if k not in ("reward",)}
        device = self.agent.updates.device
        data = TensorDict({k: _tensors(v, device) for k, v in arrays.items()}, [self.envs.n], device=device)
        draws = Draws(seed_for(self.cfg.seed, "acting", 0), rows, device)
        chosen, self.state = self.agent.policy(data, self.state, draws)
        actions = {k: v.cpu().numpy() for k, v in chosen.items()}
        if decisions < self.cfg.random:
            actions = self._random_actions(rows)
        if not self.guard.sound(actions, self.state):
            self.state = self.agent.initial(self.envs.n)
            actions = self._random_actions(rows)
        for key, value in actions.items():
            actions[key] = np.where(steps["is_last"].reshape(-1, *[1] * (value.ndim - 1)), np.zeros_like(value), value)
        return actions

    def _random_actions(self, rows: int) -> dict[str, np.ndarray]:
        """Uniform over the action spaces, and what the agent will believe to have done."""
        rng = np.random.default_rng(seed_for(self.cfg.seed, "random", rows))
        actions = self.envs.spec.random_action(rng, self.envs.n)
        told = TensorDict({k: torch.as_tensor(v, device=self.state.device) for k, v in actions.items()}, [self.envs.n])
        self.state["action"] = model_actions(self.envs.spec.action, told)
        return actions


def stored(state: TensorDict) -> dict[str, torch.Tensor]:
    """Latents of states (*) as the replay keeps them: class indices instead of one-hot."""
    return {"deter": state["deter"], "stoch": state["stoch"].argmax(-1)}


def _tensors(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {k: _tensors(v, device) for k, v in value.items()}
    return torch.as_tensor(value, device=device)
