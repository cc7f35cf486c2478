"""Small worlds in NumPy as `world/<name>`: deterministic given the seed, restorable to the bit, no dependency.

| name | what it is for |
|---|---|
| fourrooms, rooms25 | reaching cells, exploring (`grids.py`) |
| grid4 | four tasks that contradict each other (`grids.py`) |
| pinpad3 ... pinpad6 | long orders of subgoals (`pinpad.py`) |
| bandit, chain, reach, dots | smoke tests: credit, delay, continuous actions, images (`toys.py`) |
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from ..core.specs import Space, Spec
from .base import Common, Episodic, decisions, hint, refuse_options, resize
from .snapshot import rng_text, set_rng

WORLDS = {
    "fourrooms": "grids:FourRooms",
    "rooms25": "grids:Rooms25",
    "grid4": "grids:Grid4",
    **{f"pinpad{n}": "pinpad:PinPad" for n in (3, 4, 5, 6)},
    "bandit": "toys:Bandit",
    "chain": "toys:Chain",
    "reach": "toys:Reach",
    "dots": "toys:Dots",
}
PICTURE = 256

# Moves of (row, column): stay, up, down, left, right.
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))

WALL, FLOOR, AGENT, GOAL = (64, 64, 72), (236, 236, 228), (32, 32, 32), (44, 160, 44)


def make(name: str, *, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1, **options: Any) -> World:
    """A world: `make("fourrooms", obs="both", size=64)`.

    Raises KeyError for an unknown world and TypeError for an option that it does not take, both with the nearest valid one.
    """
    if name not in WORLDS:
        raise KeyError(f"no world/{name}; {hint(name, WORLDS)}")
    common = Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera)
    common.refuse_camera(f"world/{name}")
    module, _, attribute = WORLDS[name].partition(":")
    world = getattr(import_module(f".{module}", __package__), attribute)
    refuse_options(options, set(inspect.signature(world).parameters) - {"name", "common"}, f"world/{name}")
    return world(name, common, **options)


def onehot(index: int, width: int) -> np.ndarray:
    """float32 (width,) with a 1 at `index`."""
    vector = np.zeros(width, np.float32)
    vector[index] = 1.0
    return vector


def number(name: str, value: Any, least: int, most: int) -> int:
    """`value` if it is a whole number from `least` to `most`; raises ValueError naming the option otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


class World(Episodic):
    """A world with one clock and one random generator, drawn as coloured cells.

    A subclass says what its vectors and actions are, names in `memory` the attributes that change, and writes `_start`,
    `_move`, `_vectors` and `_cells`. `limit` is the longest episode in environment steps; reaching it is a truncation.
    """

    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, common: Common, *, vector: Mapping[str, Space], action: Space, limit: int) -> None:
        seen = dict(vector) if common.vector else {}
        repeat = common.repeat or 1
        spec = Spec(
            obs=seen | ({"image": common.image} if common.pixels else {}),
            action={"action": action},
            repeat=repeat,
            limit=decisions(limit, repeat),
        )
        super().__init__(f"world/{name}", spec, common.seed)
        self._size = common.size
        self._limit, self._clock = limit, 0
        self._rng = np.random.default_rng(common.seed)

    @abstractmethod
    def _start(self) -> None:
        """Put the attributes in `memory` to the start of an episode."""

    @abstractmethod
    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        """Reward and whether the world ends the episode."""

    @abstractmethod
    def _vectors(self) -> dict[str, np.ndarray]:
        """The observation without the picture."""

    @abstractmethod
    def _cells(self) -> np.ndarray:
        """The picture, one pixel per cell: uint8 (rows, columns, 3)."""

    def _begin(self, seed: int | None) -> None:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._clock = 0
        self._start()

    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        self._clock += 1
        reward, terminated = self._move(action["action"])
        return reward, terminated, not terminated and self._clock >= self._limit

    def _observe(self) -> dict[str, np.ndarray]:
        seen = {key: value for key, value in self._vectors().items() if key in self.spec.obs}
        return seen | ({"image": resize(self._cells(), self._size, self._size)} if "image" in self.spec.obs else {})

    def render(self) -> np.ndarray:
        """Square picture of the whole world, (256, 256, 3) or larger: every cell gets the same whole number of pixels."""
        cells = self._cells()
        side = max(cells.shape[:2])
        margin = [((side - n) // 2, side - n - (side - n) // 2) for n in cells.shape[:2]]
        square = np.pad(cells, (*margin, (0, 0)))
        scale = -(-PICTURE // side)
        return square.repeat(scale, 0).repeat(scale, 1)

    def get_state(self) -> dict[str, Any]:
        """Clock, random generator, and the attributes named in `memory` as arrays."""
        state: dict[str, Any] = {name: np.array(getattr(self, name)) for name in self.memory}
        return state | {"rng": rng_text(self._rng), "clock": self._clock, "running": int(self._running)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_state` returned, in this instance or in another one made with the same arguments."""
        for name in self.memory:
            value = np.array(state[name])
            setattr(self, name, value.item() if value.ndim == 0 else value)
        set_rng(self._rng, state["rng"])
        self._clock = int(state["clock"])
        self._running, self._seed = bool(state["running"]), None
