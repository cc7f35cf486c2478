"""What every family of environments shares: options, action scaling, pictures, and the episode that repeats actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np

from ..core.config import ConfigError
from ..core.specs import Space, Spec, Step

OBS = ("vector", "pixels", "both")


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest valid names, or all of them when nothing is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3) or get_close_matches(name.lower(), names, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"valid: {', '.join(names)}" if names else "there is none"


class OptionError(ConfigError, TypeError):
    """An option that a task does not take: bad input, and what Python calls a wrong argument."""


def refuse_options(options: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Raises OptionError for the first option that `owner` does not take, naming the nearest one that it does."""
    valid = {"seed", "repeat", "obs", "size", "camera", *known}
    for name in options:
        if name not in valid:
            raise OptionError(f"{owner} takes no option {name!r}; {hint(name, valid)}")


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every maker takes.

    seed: of the first episode when `reset` is called without one, and of whatever is random in building the task.
    repeat: environment steps per decision, 0 for the family's usual.
    obs: "vector" offers the environment's own observation, "pixels" one rendered image, "both" the two together.
    size: rendered images are size x size x 3.
    camera: number of the camera that renders, -1 for the usual one.
    Raises ValueError for values out of range.
    """

    seed: int = 0
    repeat: int = 0
    obs: str = "vector"
    size: int = 64
    camera: int = -1

    def __post_init__(self) -> None:
        if self.obs not in OBS:
            raise ValueError(f"obs must be one of {', '.join(OBS)}, not {self.obs!r}; {hint(str(self.obs), OBS)}")
        for name, least in (("seed", 0), ("repeat", 0), ("size", 4), ("camera", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")

    @property
    def vector(self) -> bool:
        """True when the environment's own observation is wanted."""
        return self.obs != "pixels"

    @property
    def pixels(self) -> bool:
        """True when a rendered image is wanted."""
        return self.obs != "vector"

    @property
    def image(self) -> Space:
        """Space of the rendered image."""
        return Space(shape=(self.size, self.size, 3), dtype="uint8")

    def refuse_camera(self, owner: str) -> None:
        """Raises ValueError where a camera was chosen but `owner` has none."""
        if self.camera != -1:
            raise ValueError(f"{owner} has no cameras: leave camera at -1, not {self.camera}")


def decisions(steps: float | None, repeat: int) -> int | None:
    """Longest episode in decisions from the longest in environment steps; None where unknown or unbounded."""
    return None if steps is None or not np.isfinite(steps) else ceil(ceil(steps) / repeat)


def bounds(array: np.ndarray) -> float | tuple[float, ...] | None:
    """Bounds as a spec holds them: one number where all are equal, None where any is infinite."""
    if not np.isfinite(array).all() or not np.size(array):
        return None
    flat = np.ravel(array)
    return float(flat[0]) if (flat == flat[0]).all() else tuple(map(float, flat))


def scale_action(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From the engine's [-1, 1] to the environment's bounds, elementwise; all three of one shape, float64 result.

    The action is clipped to [-1, 1] first. Where both bounds are finite -1 goes to `low` and 1 to `high`; where they are
    not, the clipped number passes through (and still respects a bound that exists on one side only).
    """
    clipped = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    bounded = np.isfinite(low) & np.isfinite(high)
    base, top = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return np.clip((clipped + 1.0) / 2.0 * (top - base) + base, low, high)


def check_action(spec: Spec, action: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The action as arrays of the spec's shapes and dtypes.

    Raises KeyError for a missing or unknown key, ValueError for a wrong shape, a number that is not finite or a class out
    of range; each names the key.
    """
    for key in action:
        if key not in spec.action:
            raise KeyError(f"no action {key!r}; {hint(key, spec.action)}")
    checked = {}
    for key, space in spec.action.items():
        if key not in action:
            raise KeyError(f"action {key!r} is missing; got {', '.join(action) or 'nothing'}")
        value = np.asarray(action[key])
        if value.shape != space.shape:
            raise ValueError(f"action {key!r} has shape {value.shape}, the task wants {space.shape}")
        if space.classes is None:
            if not np.isfinite(value).all():
                raise ValueError(f"action {key!r} is not finite: {value}")
        elif value.dtype.kind not in "iub" or (value.size and (value.min() < 0 or value.max() >= space.classes)):
            raise ValueError(f"action {key!r} must hold whole numbers 0 ... {space.classes - 1}, got {value}")
        checked[key] = value.astype(space.dtype, copy=False)
    return checked


@lru_cache(maxsize=64)
def _overlaps(old: int, new: int) -> np.ndarray:
    """(new, old) weights: which share of each new pixel an old pixel covers. Rows sum to 1."""
    edges = np.arange(new + 1) * old / new
    starts = np.arange(old)
    shared = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (np.clip(shared, 0, None) * new / old).astype(np.float32)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, C) to (height, width, C); every new pixel is the mean of the area it covers (box filter, both ways)."""
    rows, columns, channels = image.shape
    if (rows, columns) == (height, width):
        return image
    tall = _overlaps(rows, height) @ image.reshape(rows, columns * channels).astype(np.float32)
    mixed = np.matmul(_overlaps(columns, width), tall.reshape(height, columns, channels))
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


class Episodic(ABC):
    """A task written as three parts: begin an episode, advance one environment step, observe.

    Gives them what all families share: actions checked and repeated (rewards summed, stopping where the episode ends),
    the flags, and an error instead of a step after the end. `name` is what error messages call the task.
    """

    def __init__(self, name: str, spec: Spec, seed: int = 0) -> None:
        self.name, self.spec = name, spec
        self._seed: int | None = seed
        self._running = False

    @abstractmethod
    def _begin(self, seed: int | None) -> None:
        """Start an episode; None goes on with the present random numbers."""

    @abstractmethod
    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        """One environment step: reward, terminated, truncated."""

    @abstractmethod
    def _observe(self) -> dict[str, np.ndarray]:
        """Present observation, one array for every key of `spec.obs`."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """RGB picture of the present state, uint8 (height, width, 3)."""

    def close(self) -> None:
        """Release the environment's resources."""
        self._running = False

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode. Without a seed the first one uses the seed the task was made with, later ones go on from there."""
        self._begin(self._seed if seed is None else seed)
        self._seed, self._running = None, True
        return self._row(0.0, first=True, last=False, terminal=False)

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """One decision, repeated `spec.repeat` times or until the episode ends; the reward is the sum.

        Raises RuntimeError before the first reset and after the last step of an episode, and what `check_action` raises.
        """
        if not self._running:
            raise RuntimeError(f"{self.name}: no episode is running, call reset() first")
        checked = check_action(self.spec, action)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self.spec.repeat):
            reward, terminated, truncated = self._advance(checked)
            total += reward
            if terminated or truncated:
                self._running = False
                break
        return self._row(total, first=False, last=not self._running, terminal=terminated)

    def _row(self, reward: float, *, first: bool, last: bool, terminal: bool) -> Step:
        return {
            "obs": self._observe(),
            "reward": np.float32(reward),
            "is_first": first,
            "is_last": last,
            "is_terminal": terminal,
        }
