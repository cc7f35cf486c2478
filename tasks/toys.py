"""The smallest worlds, each for one thing that an agent must be able to do within seconds."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..core.specs import Space
from .base import Common
from .world import AGENT, FLOOR, GOAL, MOVES, WALL, World, number, onehot

BLUE = (66, 133, 244)


class Bandit(World):
    """One choice: arm i of `arms` gives reward i / (arms - 1) and ends the episode, which is two rows long.

    Nothing to see: the vector is always [1]. With `noise` a normal number of that standard deviation is added to the reward.
    A uniformly random policy scores 0.5, the best 1.
    """

    memory: ClassVar[tuple[str, ...]] = ("_chosen",)

    def __init__(self, name: str, common: Common, *, arms: int = 4, noise: float = 0.0) -> None:
        self._arms, self._noise, self._chosen = number("arms", arms, 2, 100), float(noise), -1
        super().__init__(
            name, common, vector={"vector": Space(shape=(1,), low=0.0, high=1.0)}, action=Space(dtype="int32", classes=arms), limit=1
        )

    def _start(self) -> None:
        self._chosen = -1

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._chosen = int(action)
        noise = self._noise * self._rng.standard_normal() if self._noise else 0.0
        return self._chosen / (self._arms - 1) + noise, True

    def _vectors(self) -> dict[str, np.ndarray]:
        return {"vector": np.ones(1, np.float32)}

    def _cells(self) -> np.ndarray:
        cells = np.full((3, 2 * self._arms + 1, 3), FLOOR, np.uint8)
        cells[1, 1::2] = BLUE
        if self._chosen >= 0:
            cells[1, 2 * self._chosen + 1] = AGENT
        return cells


class Chain(World):
    """A corridor of `length` cells, actions 0 left and 1 right: reward 1 at the far end, which ends the episode.

    It starts at the near end and is truncated after 3 * `length` steps. The position is seen one-hot. With 8 cells a
    uniformly random policy scores 0.26 (exact), the best 1.
    """

    memory: ClassVar[tuple[str, ...]] = ("_place",)

    def __init__(self, name: str, common: Common, *, length: int = 8) -> None:
        self._length, self._place = number("length", length, 2, 1000), 0
        vector = {"vector": Space(shape=(length,), low=0.0, high=1.0)}
        super().__init__(name, common, vector=vector, action=Space(dtype="int32", classes=2), limit=3 * length)

    def _start(self) -> None:
        self._place = 0

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._place = min(max(self._place + (1 if action else -1), 0), self._length - 1)
        done = self._place == self._length - 1
        return float(done), done

    def _vectors(self) -> dict[str, np.ndarray]:
        return {"vector": onehot(self._place, self._length)}

    def _cells(self) -> np.ndarray:
        cells = np.full((3, self._length + 2, 3), WALL, np.uint8)
        cells[1, 1:-1] = FLOOR
        cells[1, -2] = GOAL
        cells[1, 1 + self._place] = AGENT
        return cells


class Reach(World):
    """A point on the line [-1, 1] and a target, both drawn uniformly; a continuous action a moves it by 0.2 a.

    Every step gives 1 - |point - target| / 2, never ends the episode, and 20 steps truncate it. Seen: `point` and
    `target`, scalars. Standing still scores 13.3 on average, a uniformly random policy 13.2, the best 19.3.
    """

    memory: ClassVar[tuple[str, ...]] = ("_point", "_target")
    speed: ClassVar[float] = 0.2

    def __init__(self, name: str, common: Common, *, limit: int = 20) -> None:
        self._point = self._target = 0.0
        vector = {key: Space(low=-1.0, high=1.0) for key in ("point", "target")}
        super().__init__(name, common, vector=vector, action=Space(shape=(1,), low=-1.0, high=1.0), limit=number("limit", limit, 1, 10**6))

    def _start(self) -> None:
        self._point, self._target = map(float, self._rng.uniform(-1.0, 1.0, 2))

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        push = min(max(float(action[0]), -1.0), 1.0)
        self._point = min(max(self._point + self.speed * push, -1.0), 1.0)
        return 1.0 - abs(self._point - self._target) / 2.0, False

    def _vectors(self) -> dict[str, np.ndarray]:
        return {"point": np.array(self._point, np.float32), "target": np.array(self._target, np.float32)}

    def _cells(self) -> np.ndarray:
        cells = np.full((32, 32, 3), FLOOR, np.uint8)
        cells[20:] = WALL
        for place, colour, top in ((self._target, GOAL, 8), (self._point, AGENT, 14)):
            column = round((place + 1.0) / 2.0 * 29.0)
            cells[top:20, column : column + 3] = colour
        return cells


class Dots(World):
    """A world of images: a dark dot on 8 x 8 cells is walked to a green one; actions stay, up, down, left, right.

    Touching the green dot gives reward 1 and puts it at another random cell; 30 steps truncate the episode. The picture is
    the world's own observation, so `obs="vector"` gives only `image` too; `both` adds the four numbers `x, y, goal_x, goal_y`
    as `vector`, divided by 7. A uniformly random policy scores 0.2, the best 5.4.
    """

    memory: ClassVar[tuple[str, ...]] = ("_cell", "_goal")
    side: ClassVar[int] = 8

    def __init__(self, name: str, common: Common, *, limit: int = 30) -> None:
        self._cell = self._goal = np.zeros(2, int)
        vector = {"vector": Space(shape=(4,), low=0.0, high=1.0)} if common.obs == "both" else {"image": common.image}
        super().__init__(name, common, vector=vector, action=Space(dtype="int32", classes=5), limit=number("limit", limit, 1, 10**6))

    def _start(self) -> None:
        self._cell = self._rng.integers(self.side, size=2)
        self._place_goal()

    def _place_goal(self) -> None:
        """Any cell but the agent's, uniformly."""
        here = int(self._cell[0] * self.side + self._cell[1])
        drawn = int(self._rng.integers(self.side**2 - 1))
        self._goal = np.array(divmod(drawn + (drawn >= here), self.side))

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._cell = np.clip(self._cell + MOVES[int(action)], 0, self.side - 1)
        reached = bool((self._cell == self._goal).all())
        if reached:
            self._place_goal()
        return float(reached), False

    def _vectors(self) -> dict[str, np.ndarray]:
        numbers = [self._cell[1], self._cell[0], self._goal[1], self._goal[0]]
        return {"vector": np.array(numbers, np.float32) / np.float32(self.side - 1)}

    def _cells(self) -> np.ndarray:
        cells = np.full((self.side, self.side, 3), FLOOR, np.uint8)
        cells[tuple(self._goal)] = GOAL
        cells[tuple(self._cell)] = AGENT
        return cells
