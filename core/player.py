"""Acting with a trained agent: load it in one line, then feed observations and take actions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tensordict import TensorDict

from .agent import Dreamer
from .rng import Draws
from .specs import Spec

PlayerState: TypeAlias = TensorDict
"""What an agent remembers between steps. None begins an episode."""


class Player:
    """An agent that acts. Actions are drawn from the policy, or its most likely ones with mode="mode".

    seed: of the draws; two players of one seed fed the same observations act the same.
    """

    def __init__(self, agent: Dreamer, seed: int = 0) -> None:
        self.agent, self.seed = agent, seed
        self.calls = 0

    @property
    def spec(self) -> Spec:
        """What the agent was trained to see and do."""
        return self.agent.spec

    def initial(self, n: int) -> PlayerState:
        """State of n environments before their first step. Begins the noise anew, so that an evaluation repeats itself."""
        self.calls = 0
        return self.agent.initial(n)

    def act(
        self,
        obs: Mapping[str, np.ndarray] | np.ndarray,
        state: PlayerState | None = None,
        *,
        is_first: np.ndarray | None = None,
        mode: str = "sample",
    ) -> tuple[Any, PlayerState]:
        """One action for one observation: (action, state for the next call). Pass state=None at the start of an episode.

        obs by key, as a task's step gives it, yields actions by key as `task.step` takes them: numbers in [-1, 1],
        class indices. A bare array stands for the only key and yields a bare action in the environment's own units, as a
        Gymnasium environment takes it. A leading axis of n environments is kept.
        """
        if mode not in ("sample", "mode"):
            raise ValueError(f"mode={mode!r}: choose sample or mode")
        bare = not isinstance(obs, Mapping)
        named = obs if isinstance(obs, Mapping) else {self._only("obs"): np.asarray(obs)}
        arrays, single = self._batched(named)
        n = next(iter(arrays.values())).shape[0]
        first = np.full(n, state is None) if is_first is None else np.asarray(is_first, bool)
        state = self.agent.initial(n) if state is None else state
        if state.batch_size[0] != n:
            raise ValueError(f"{n} observations came with a state of {state.batch_size[0]}")
        device = self.agent.updates.device
        tensors = {k: torch.as_tensor(v, device=device) for k, v in arrays.items()}
        extras = {k: tensors.pop(k) for k in self.spec.extras if k in tensors}
        data = TensorDict({"obs": tensors, "is_first": torch.as_tensor(first), **extras}, [n], device=device)
        draws = Draws(self.seed, self.calls, device, modes={"action": 0.0} if mode == "mode" else None)
        self.calls += 1
        training = self.agent.training
        self.agent.eval()  # as modules know it: pursue the task, no exploring
        try:
            action, state = self.agent.policy(data, state, draws)
        finally:
            self.agent.train(training)
        out = {k: v.cpu().numpy()[0] if single else v.cpu().numpy() for k, v in action.items()}
        return (self._env_units(out) if bare else out), state

    def _only(self, side: str) -> str:
        keys = list(getattr(self.spec, side))
        if len(keys) > 1:
            raise ValueError(f"this agent has {len(keys)} {side} keys ({', '.join(keys)}): pass a mapping instead of a bare array")
        return keys[0]

    def _batched(self, obs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        """Observations and extras (n, *shape), and whether the leading axis had to be added.

        What the model may not see can be left out; where it is given it is passed on, a commanded goal for instance.
        """
        missing = [k for k in self.spec.visible if k not in obs]
        if missing:
            raise KeyError(f"observation {missing[0]!r} is missing; got {', '.join(obs)}")
        arrays, singles = {}, set()
        for key, space in {**self.spec.obs, **self.spec.extras}.items():
            if key not in obs:
                continue
            value = np.asarray(obs[key], space.dtype)
            if value.shape != space.shape and value.shape[1:] != space.shape:
                raise ValueError(f"observation {key!r} has shape {value.shape}; expected {space.shape}, or that with a leading axis")
            singles.add(value.shape == space.shape)
            arrays[key] = value[None] if value.shape == space.shape else value
        if len(singles) > 1:
            raise ValueError("some observations have a leading axis and some do not")
        return arrays, singles.pop()

    def _env_units(self, action: dict[str, np.ndarray]) -> np.ndarray:
        key = self._only("action")
        space, value = self.spec.action[key], action[key]
        if space.discrete:
            return value + np.asarray(space.low or 0).astype(value.dtype).reshape(space.shape if np.ndim(space.low or 0) else ())
        value = np.clip(value, -1, 1)
        if space.low is None or space.high is None:
            return value
        low, high = (
            np.broadcast_to(np.asarray(b, np.float32).reshape(space.shape if np.ndim(b) else ()), space.shape)
            for b in (space.low, space.high)
        )
        return (value + 1) / 2 * (high - low) + low


def load(path: str | Path, *, device: str = "cpu", seed: int = 0, code: Collection[str] = ()) -> Player:
    """A trained agent, from a run directory (its newest good checkpoint) or from a checkpoint directory.

    agent = polydream.load("runs/my-run")
    action, state = agent.act(observation)            # an episode begins
    action, state = agent.act(observation, state)     # and goes on

    code: `module:Class` of a variant that is not registered, as the run was trained with; a file alone may not name code.
    """
    from .checkpoint import load_agent

    return Player(load_agent(Path(path), device, code).eval(), seed)
