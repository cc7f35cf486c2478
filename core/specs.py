"""What a task offers and how it is stepped: the contract between environments and the engine.

Legend used in every docstring of the package: B sequences, T replayed steps, N = B * T imagination starts, H dreamed
steps (a dream has H + 1 states), D deterministic state, S x C categorical latent, A action size, n environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

FLAGS = ("is_first", "is_last", "is_terminal")
"""Boolean keys of every step. `is_last` ends an episode; `is_terminal` only when the environment terminated (no time limit)."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """One array of an observation, an action or a replay extra, without the time and batch axes.

    shape: of one step, images as (height, width, channels).
    dtype: numpy name; "uint8" with three axes means an image, integers and "bool" need `classes`.
    low, high: the environment's own bounds of floats, None where there are none. The engine itself deals in actions scaled to
        [-1, 1], which the task scales back. Of a discrete space low is the environment's number for class 0, None for 0.
    classes: number of values 0 ... classes - 1 of every element of a discrete array, None for numbers.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        kind = np.dtype(self.dtype).kind
        if self.image or kind == "f":
            return
        if kind not in "iub":
            raise ValueError(f"unsupported dtype {self.dtype!r}: use float32, int32, bool, or uint8 images of three axes")
        if self.classes is None:
            raise ValueError(f"a space of dtype {self.dtype!r} and shape {self.shape} needs classes")

    @property
    def image(self) -> bool:
        """True for uint8 arrays of shape (height, width, channels)."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.classes is None

    @property
    def discrete(self) -> bool:
        """True where elements are class indices."""
        return self.classes is not None

    @property
    def elements(self) -> int:
        """Number of elements of one step."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def width(self) -> int:
        """Size of the flat float vector that stands for one step: one-hot where discrete."""
        return self.elements * (self.classes or 1)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of several tasks that share a spec: what of the shared spaces is its own.

    obs, action: its own spaces. They fill the first elements, along every axis, of the shared spaces of their keys, and the first
    classes; all else is zeros to see and is ignored when done.
    limit: longest episode in decisions, or None. low, high: returns that count as scores 0 and 1. success: return from which
    an episode counts as a success, None where the task has no such thing.
    """

    obs: Mapping[str, Space]
    action: Mapping[str, Space]
    limit: int | None = None
    low: float = 0.0
    high: float = 1.0
    success: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything the engine must know about a task. Frozen; nothing is filled in later.

    obs, action: spaces by key. Nested spaces of an environment are flattened to keys joined by "/".
    extras: further per-step arrays that a variant asks the replay to keep (task id, goal, ...).
    hidden: observation keys that neither encoder nor decoder may see.
    repeat: environment steps per decision of the agent; logged steps count environment steps.
    limit: longest episode in decisions, or None when unbounded or unknown.
    tasks: the tasks behind this spec by name, where there are several. The extra `task` is their number in this order, at every
        step; such a task has `share(index, count)`, called before the first reset: of `count` environments it is number `index`,
        and plays every count-th task from number `index` on.
    """

    obs: Mapping[str, Space]
    action: Mapping[str, Space]
    extras: Mapping[str, Space] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    repeat: int = 1
    limit: int | None = None
    tasks: Mapping[str, Member] = field(default_factory=dict)

    @property
    def visible(self) -> dict[str, Space]:
        """Observation keys that encoder and decoder use, in the task's order."""
        return {k: s for k, s in self.obs.items() if k not in self.hidden}

    @property
    def goals(self) -> dict[str, str]:
        """Observation keys that tell where to go, with the key that shows where the agent is, both of one space.

        `desired_goal` and `achieved_goal`, as Gymnasium's GoalEnv names them, or any `goal_x` beside `x`.
        """
        named = {k: "achieved_goal" if k == "desired_goal" else k.removeprefix("goal_") for k in self.obs}
        return {k: a for k, a in named.items() if k != a and self.obs.get(a) == self.obs[k]}

    @property
    def action_width(self) -> int:
        """Width of the concatenated model-side action: one-hot where discrete."""
        return sum(s.width for s in self.action.values())

    def random_action(self, rng: np.random.Generator, *lead: int) -> dict[str, np.ndarray]:
        """Uniformly random actions (*lead, *shape) by key: any class where discrete, [-1, 1] where continuous."""
        drawn = {}
        for key, space in self.action.items():
            shape = (*lead, *space.shape)
            values = rng.uniform(-1, 1, shape) if space.classes is None else rng.integers(0, space.classes, shape)
            drawn[key] = np.asarray(values, space.dtype)
        return drawn


REPORTED = frozenset({"success"})
"""What a step may say although the spec does not: whether the task is accomplished. It is for whoever judges; no agent sees it."""

Step = dict[str, Any]
"""One step of one environment: {"obs": {key: array}, "reward": float32, "is_first", "is_last", "is_terminal": bool}, extras beside.

The step holds what was received on arriving: the observation, the reward earned by the previous action (0 on the first
step of an episode) and the flags. The final observation of an episode is a step of its own, with `is_last`.
"""


def unjudged(spec: Spec, step: Step) -> Step:
    """A step without what is `REPORTED` and not in the spec."""
    return {k: v for k, v in step.items() if k not in REPORTED - spec.extras.keys()}


@runtime_checkable
class Task(Protocol):
    """One environment. Stepped by the engine, never by the agent."""

    spec: Spec

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode. The returned step has `is_first`, reward 0."""
        ...

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Advance by one decision. Continuous actions arrive in [-1, 1] and are scaled by the task; discrete as indices."""
        ...

    def render(self) -> np.ndarray:
        """RGB picture of the present state, uint8 (height, width, 3)."""
        ...

    def close(self) -> None:
        """Release the environment's resources."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A task made of several, which environments divide among themselves."""

    def share(self, index: int, count: int) -> None:
        """Play the part of environment number `index` of `count`."""
        ...


@runtime_checkable
class Restorable(Protocol):
    """A task whose complete state can be saved and put back, for resuming a run exactly where it was."""

    def get_state(self) -> dict[str, Any]:
        """Arrays, numbers and strings (no objects) that fix everything the task will do from here on."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Undo everything that happened after the matching `get_state`."""
        ...
