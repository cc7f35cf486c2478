"""A user's own environment as `my.module:factory`, nothing to register.

The factory (a function or a class) returns a task of ours, a Gymnasium environment or a TorchRL one:

    # envs.py
    def corridor(length: int = 8, seed: int = 0): ...
    # python -m polydream train --task envs:corridor
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.registry import lookup
from ..core.specs import Restorable, Spec, Step, Task
from .base import Common, decisions, refuse_options, resize


def make(path: str, *, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1, **options: Any) -> Task:
    """Call `module:factory` and make a task of what it returns.

    Options go to the factory by name. Of the common ones (`seed`, `repeat`, `obs`, `size`, `camera`) it gets those that its
    signature names, and is then responsible for them (`repeat` at least 1); the others are dealt with here: actions are
    repeated, pictures taken from `render()` and resized.
    Raises TypeError for options the factory does not take and for a result that is neither task nor environment.
    """
    common = Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera)
    factory = lookup("polydream.tasks", path)
    if not callable(factory):
        raise TypeError(f"{path} is a {type(factory).__name__}, not a function or class that makes an environment")
    taken, free = _parameters(factory)
    if not free:
        refuse_options(options, taken, path)
    offered = {"seed": seed, "repeat": max(repeat, 1), "obs": obs, "size": size, "camera": camera}
    handled = {name: value for name, value in offered.items() if name in taken}
    left = replace(common, **{name: default for name, default in _DEFAULTS.items() if name in handled})
    made = factory(**handled, **options)
    if isinstance(made, Task) and isinstance(made.spec, Spec):  # a gymnasium.Env has all five names too
        left.refuse_camera(path)
        return Adapted(made, left, path) if left.repeat > 1 or left.pixels else made
    if (library := sys.modules.get("torchrl.envs")) and isinstance(made, library.EnvBase):  # else the factory cannot have made one
        from . import torchrl

        left.refuse_camera(path)
        return torchrl.wrap(made, left, path)
    return _from_gymnasium(made, factory, {**handled, **options}, left, path)


_DEFAULTS: dict[str, Any] = {"repeat": 1, "obs": "vector", "size": 64, "camera": -1}


def _parameters(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """Names that a callable takes as keywords, and whether it takes any."""
    parameters = inspect.signature(factory).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _from_gymnasium(made: Any, factory: Callable[..., Any], given: dict[str, Any], left: Common, path: str) -> Task:
    import gymnasium

    from . import gym

    if not isinstance(made, gymnasium.Env):
        missing = [name for name in ("spec", "reset", "step", "render", "close") if not hasattr(made, name)]
        lack = f"lacks {', '.join(missing)}" if missing else "has no polydream.core.specs.Spec as its spec"
        raise TypeError(f"{path} returned a {type(made).__name__}: no gymnasium.Env, no torchrl EnvBase and no task (it {lack})")
    left.refuse_camera(path)
    taken, free = _parameters(factory)
    settable = made.render_mode is None and "render_mode" not in given and (free or "render_mode" in taken)
    if settable and "rgb_array" in made.metadata.get("render_modes", ()):
        made.close()
        made = factory(**given, render_mode="rgb_array")
    return gym.wrap(made, left, path)


class Adapted:
    """A task that repeats actions and adds pictures around another one.

    repeat > 1: rewards are summed, and repeating stops where the episode ends. Pictures come from the task's `render()`.
    """

    def __init__(self, task: Task, common: Common, name: str) -> None:
        if common.pixels and common.vector and "image" in task.spec.obs:
            raise ValueError(f"{name} already observes an 'image': obs='both' would offer two under one name")
        self._task, self._common, self.name = task, common, name
        self._repeat = max(common.repeat, 1)
        seen = dict(task.spec.obs) if common.vector else {}
        self.spec: Spec = replace(
            task.spec,
            obs=seen | ({"image": common.image} if common.pixels else {}),
            hidden=frozenset(task.spec.hidden & seen.keys()),
            repeat=task.spec.repeat * self._repeat,
            limit=decisions(task.spec.limit, self._repeat),
        )
        if isinstance(task, Restorable):  # it keeps nothing of its own, so the state is the inner task's
            self.get_state, self.set_state = task.get_state, task.set_state

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode of the inner task."""
        return self._picture(self._task.reset(seed))

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Up to `repeat` steps of the inner task as one; extras are those of the last, success that of any."""
        total, success = np.float32(0.0), False
        for _ in range(self._repeat):
            step = self._task.step(action)
            total += np.float32(step["reward"])
            success = success or bool(step.get("success", False))
            if step["is_last"]:
                break
        return self._picture({**step, "reward": total} | ({"success": success} if "success" in step else {}))

    def _picture(self, step: Step) -> Step:
        if not self._common.pixels:
            return step
        seen = step["obs"] if self._common.vector else {}
        return {**step, "obs": {**seen, "image": resize(self._task.render(), self._common.size, self._common.size)}}

    def render(self) -> np.ndarray:
        """Picture of the inner task."""
        return self._task.render()

    def close(self) -> None:
        """Close the inner task."""
        self._task.close()
