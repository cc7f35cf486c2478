"""TorchRL's environments as tasks: `torchrl/<class in torchrl.envs>`, and any TorchRL environment that a factory of yours returns.

    python -m polydream train --task torchrl/PendulumEnv
    python -m polydream train --task torchrl/GymEnv --env.options env_name=CartPole-v1,limit=500

Its specs are told as Gymnasium's spaces, so that classes, scaling of actions, nesting and pictures are those of `gym/<id>`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDictBase

from . import gym
from .base import Common, hint


def make(
    name: str, *, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1, **options: Any
) -> gym.GymTask:
    """An environment of TorchRL by the name of its class: `make("PendulumEnv")`, `make("GymEnv", env_name="CartPole-v1")`.

    options: `limit`, environment steps after which an episode is truncated (0: never; some of these environments do not end by
    themselves); the rest is handed on to the class. Raises ValueError for a name that `torchrl.envs` does not have, TypeError for
    options that the class refuses and for specs that arrays of one size cannot hold, and what `AsGymnasium` raises.
    """
    import torchrl.envs

    common, limit = Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera), options.pop("limit", 0)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit must be a whole number of at least 0, not {limit!r}")
    common.refuse_camera(f"torchrl/{name}")
    known = [n for n in torchrl.envs.__all__ if _is_environment(getattr(torchrl.envs, n, None))]
    if name not in known:
        raise ValueError(f"torchrl.envs has no environment {name!r}; {hint(name, known)}")
    return wrap(getattr(torchrl.envs, name)(**options), common, f"torchrl/{name}", limit)


def wrap(env: Any, common: Common, name: str, limit: int = 0) -> gym.GymTask:
    """A TorchRL environment object as a task. limit: environment steps after which episodes are truncated, 0 for never."""
    seen = AsGymnasium(env, name)
    return gym.GymTask(gymnasium.wrappers.TimeLimit(seen, limit) if limit else seen, common, name)


def _is_environment(found: Any) -> bool:
    from torchrl.envs import EnvBase

    return isinstance(found, type) and issubclass(found, EnvBase)


class AsGymnasium(gymnasium.Env[Any, Any]):
    """One TorchRL environment behind Gymnasium's interface: observations and actions are nested dictionaries of arrays.

    `terminated` and `truncated` stay apart; an environment that says only `done` is taken to terminate. Its picture is the
    observation `pixels`, or what its own `render()` gives in render mode rgb_array.
    Raises ValueError for an environment with a batch size, or with several rewards or ends (several agents, for instance).
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env: Any, name: str = "environment") -> None:
        if tuple(env.batch_size):
            raise ValueError(f"{name} has batch size {tuple(env.batch_size)}: one environment is wanted, --env.count makes several")
        ends = set(env.done_keys) - {"done", "terminated", "truncated"}
        if list(env.reward_keys) != ["reward"] or env.full_reward_spec["reward"].shape.numel() != 1 or ends:
            raise ValueError(f"{name} has rewards {env.reward_keys} and ends {env.done_keys}: one number `reward` and one end are wanted")
        self._env = env
        self.spec = EnvSpec(id=name)
        self._sees, self._does = env.full_observation_spec, env.full_action_spec
        self.observation_space, self.action_space = space_of(self._sees, "observation"), space_of(self._does, "action")
        self._pictured = "pixels" in self._sees.keys()  # noqa: SIM118  a Composite is not iterated by its keys
        self.render_mode = "rgb_array" if self._pictured or getattr(env, "render_mode", None) == "rgb_array" else None
        self._now: TensorDictBase | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        if seed is not None:
            self._env.set_seed(seed)
        self._now = self._env.reset()
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step with an action of `action_space`."""
        assert self._now is not None, "call reset() first"
        stepped = self._env.step(self._now.update(self._does.encode(action)))
        after = stepped["next"]
        done, terminated = bool(after["done"]), bool(after["terminated"])
        self._now = self._env.step_mdp(stepped)
        return self._seen(), float(after["reward"]), terminated, done and not terminated, {}

    def _seen(self) -> Any:
        assert self._now is not None
        return self._sees.to_numpy(self._now.select(*self._sees.keys(True, True)))

    def render(self) -> Any:
        """The present picture, uint8 (height, width, 3)."""
        return np.asarray(self._seen()["pixels"]) if self._pictured else self._env.render()

    def close(self) -> None:
        """Close the environment, where it was not closed before."""
        if not self._env.is_closed:
            self._env.close()


def space_of(spec: Any, key: str) -> spaces.Space[Any]:
    """A TorchRL spec as a Gymnasium space; one-hot codes become the classes they stand for.

    Raises TypeError naming the key where it has no arrays of one size.
    """
    from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, Unbounded

    shape = tuple(spec.shape)
    if isinstance(spec, Composite):
        return spaces.Dict({k: space_of(inner, f"{key} {k!r}" if " " not in key else f"{key[:-1]}/{k}'") for k, inner in spec.items()})
    if isinstance(spec, MultiOneHot) and len(shape) == 1:
        return spaces.MultiDiscrete([box.n for box in spec.space])
    if isinstance(spec, MultiCategorical):
        return spaces.MultiDiscrete(np.broadcast_to(spec.nvec.numpy(), shape).copy())
    if isinstance(spec, Binary):
        return spaces.MultiBinary(shape)
    if isinstance(spec, OneHot | Categorical) and not isinstance(spec, MultiOneHot):
        elements, count = shape[:-1] if isinstance(spec, OneHot) else shape, int(spec.space.n)
        return spaces.MultiDiscrete(np.full(elements, count)) if elements else spaces.Discrete(count)
    if isinstance(spec, Bounded | Unbounded):
        return _box(spec, shape)
    raise TypeError(f"{key} is a {type(spec).__name__} of shape {shape}, which has no arrays of one size")


def _box(spec: Any, shape: tuple[int, ...]) -> spaces.Box:
    """Numbers within bounds; TorchRL writes the largest number of a dtype where there is no bound."""
    low, high = (np.broadcast_to(b.cpu().numpy(), shape) for b in (spec.space.low, spec.space.high))
    if low.dtype.kind == "f":
        largest = np.finfo(low.dtype).max
        low, high = np.where(low <= -largest, -np.inf, low), np.where(high >= largest, np.inf, high)
    return spaces.Box(low, high, shape, dtype=low.dtype.type)
