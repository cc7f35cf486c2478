"""Environments with random nested spaces, as a user's own module would offer them: `tests.faults.nested:make`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


def leaf(rng: np.random.Generator, action: bool) -> spaces.Space[Any]:
    """One space that an array can hold."""
    shape = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3)))
    kinds = ["box", "unbounded", "half", "integers", "bools", "discrete", "multi", "uneven", "binary", "grid"]
    kind = rng.choice(kinds if action else [*kinds, "image", "planes", "grey", "bytes"])
    low = rng.uniform(-3, 0, shape).astype(np.float32)
    floats = np.float64 if rng.random() < 0.3 else np.float32
    high = (low + rng.uniform(0.5, 9, shape)).astype(np.float32)
    made: dict[str, spaces.Space[Any]] = {
        "box": spaces.Box(low.astype(floats), high.astype(floats), dtype=floats),
        "unbounded": spaces.Box(-np.inf, np.inf, shape, floats),
        "half": spaces.Box(low, np.full(shape, np.inf, np.float32)),
        "integers": spaces.Box(-2, int(rng.integers(-1, 9)), shape, np.int64),
        "bools": spaces.Box(0, 1, shape, np.bool_),
        "discrete": spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4))),
        "multi": spaces.MultiDiscrete(np.full(shape or (2,), 3), start=np.full(shape or (2,), -1)),
        "uneven": spaces.MultiDiscrete([2, 5, 3], dtype=np.int32),
        "binary": spaces.MultiBinary(int(rng.integers(1, 5))),
        "grid": spaces.MultiBinary([2, 3]),
        "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
        "planes": spaces.Box(0, 255, (1, 64, 64), np.uint8),
        "grey": spaces.Box(0, 255, (64, 64), np.uint8),
        "bytes": spaces.Box(0, 200, (3,), np.uint8),
    }
    return made[str(kind)]


def nest(rng: np.random.Generator, depth: int, action: bool) -> spaces.Space[Any]:
    """A space of up to `depth` levels of Dict and Tuple."""
    kind = rng.choice(["leaf", "dict", "tuple"], p=[0.4, 0.35, 0.25]) if depth else "leaf"
    if kind == "leaf":
        return leaf(rng, action)
    inner = [nest(rng, depth - 1, action) for _ in range(rng.integers(1, 4))]
    return spaces.Dict({f"part {i}": s for i, s in enumerate(inner)}) if kind == "dict" else spaces.Tuple(inner)


class Nested(gymnasium.Env[Any, Any]):
    """Samples of its observation space and of rewards; refuses an action that its space does not contain."""

    metadata = {"render_modes": []}

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng(number)
        self.observation_space, self.action_space = nest(rng, 2, False), nest(rng, 2, True)
        self.observation_space.seed(number)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Ends one step in six, half of them for good."""
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        ends = self.np_random.random()
        return self.observation_space.sample(), float(self.np_random.normal()), bool(ends < 0.08), bool(ends > 0.92), {}


def make(number: int = 0) -> Nested:
    """Environment number so-and-so: `--env.options number=7`."""
    return Nested(number)


class Uneven(Nested):
    """Actions whose keys hold slashes: parts of different sizes, one of them inside another."""

    def __init__(self) -> None:
        super().__init__(0)
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Dict({"arm": spaces.Dict({"left": spaces.Box(-1, 1, (2,))}), "mode": spaces.MultiDiscrete([2, 3])})


def uneven() -> Uneven:
    """The task of that."""
    return Uneven()
