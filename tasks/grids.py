"""Worlds of rooms: walk to a cell. Actions 0 ... 4 are stay, up, down, left, right; walls stop the agent.

The agent's column and row are seen as the classes `x` and `y`. In pictures the agent is dark, the goal green.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ..core.specs import Space
from .base import Common, resize
from .world import AGENT, FLOOR, GOAL, MOVES, WALL, World, number

FOUR_ROOMS = (
    "###########",
    "#    #    #",
    "#    #    #",
    "#         #",
    "#    #    #",
    "## #### ###",
    "#    #    #",
    "#    #    #",
    "#         #",
    "#    #    #",
    "###########",
)
CORNERS = ((219, 68, 55), (66, 133, 244), (244, 180, 0), (15, 157, 88))


def read_map(lines: tuple[str, ...]) -> np.ndarray:
    """bool (rows, columns), True where the agent can walk."""
    return np.array([[mark != "#" for mark in line] for line in lines])


def rooms(across: int, width: int) -> np.ndarray:
    """bool map of across x across square rooms of `width` cells, a one-cell door in the middle of every inner wall."""
    side = across * (width + 1) + 1
    free = np.ones((side, side), bool)
    walls = np.arange(0, side, width + 1)
    free[walls, :] = free[:, walls] = False
    middles = walls[:-1] + (width + 1) // 2
    free[np.ix_(walls[1:-1], middles)] = free[np.ix_(middles, walls[1:-1])] = True
    return free


def place(cell: np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """A (row, column) as observations."""
    return {f"{prefix}x": np.asarray(cell[1], np.int32), f"{prefix}y": np.asarray(cell[0], np.int32)}


def places(free: np.ndarray, prefix: str = "") -> dict[str, Space]:
    """The spaces of `place`. Classes, so that a model is fitted to them by cross-entropy: squared errors of one-hot vectors tell it
    too little to be worth a latent."""
    rows, columns = free.shape
    return {f"{prefix}x": Space(dtype="int32", classes=columns), f"{prefix}y": Space(dtype="int32", classes=rows)}


class Grid(World):
    """Walking on a map. Subclasses choose where episodes start and what is rewarded.

    `_free`: bool (rows, columns). `_cell`: the agent's (row, column). `_spots`: walkable cells in reading order, (n, 2).
    """

    memory: ClassVar[tuple[str, ...]] = ("_cell",)

    def __init__(self, name: str, common: Common, free: np.ndarray, limit: int, extra: dict[str, Space] | None = None) -> None:
        self._free, self._spots = free, np.argwhere(free)
        self._cell = self._spots[0]
        super().__init__(name, common, vector={**places(free), **(extra or {})}, action=Space(dtype="int32", classes=5), limit=limit)

    def _walk(self, action: np.ndarray) -> None:
        there = self._cell + MOVES[int(action)]
        if self._free[tuple(there)]:
            self._cell = there

    def _draw(self, not_at: np.ndarray | None = None) -> np.ndarray:
        """A walkable cell, uniformly; never `not_at`."""
        spots = self._spots if not_at is None else self._spots[(self._spots != not_at).any(1)]
        return spots[self._rng.integers(len(spots))]

    def _vectors(self) -> dict[str, np.ndarray]:
        return place(self._cell)

    def _marks(self) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
        """Coloured cells under the agent."""
        return []

    def _cells(self) -> np.ndarray:
        return self._cells_with(self._cell, self._marks())

    def _cells_with(self, agent: np.ndarray, marks: Iterable[tuple[np.ndarray, tuple[int, int, int]]] = ()) -> np.ndarray:
        """The map with the agent in a cell of our choosing."""
        cells = np.where(self._free[..., None], np.array(FLOOR, np.uint8), np.array(WALL, np.uint8))
        for cell, colour in marks:
            cells[tuple(cell)] = colour
        cells[tuple(agent)] = AGENT
        return cells


class FourRooms(Grid):
    """Four rooms: 11 x 11, walls in a cross, 68 walkable cells, four doors (after Sutton, Precup and Singh 1999).

    Every episode starts at a random cell and has a goal, seen as `goal_x` and `goal_y`: another random cell, or always the
    cell number `goal` (0 ... 67, in reading order). Reaching it gives reward 1 and ends the episode; after 50 steps
    the episode is truncated. A uniformly random policy reaches 0.184 of random goals (exact).
    With `seen=false` pictures do not show the goal; it has one of its own, `goal_image`: the agent standing there.
    """

    memory: ClassVar[tuple[str, ...]] = ("_cell", "_goal")

    def __init__(self, name: str, common: Common, *, goal: int = -1, limit: int = 50, seen: bool = True) -> None:
        free = read_map(FOUR_ROOMS)
        self._fixed = number("goal", goal, -1, int(free.sum()) - 1)
        super().__init__(name, common, free, number("limit", limit, 1, 10**6), places(free, "goal_"))
        self._goal = self._spots[max(goal, 0)]
        self._apart = common.pixels and not seen
        if self._apart:
            self.spec = replace(self.spec, obs={**self.spec.obs, "goal_image": common.image})

    def _start(self) -> None:
        self._goal = self._spots[self._fixed] if self._fixed >= 0 else self._draw()
        self._cell = self._draw(not_at=self._goal)

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._walk(action)
        reached = bool((self._cell == self._goal).all())
        return float(reached), reached

    def _vectors(self) -> dict[str, np.ndarray]:
        return super()._vectors() | place(self._goal, "goal_")

    def _observe(self) -> dict[str, np.ndarray]:
        seen = super()._observe()
        if self._apart:
            seen |= {
                k: resize(self._cells_with(at), self._size, self._size) for k, at in (("image", self._cell), ("goal_image", self._goal))
            }
        return seen

    def _marks(self) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
        return [(self._goal, GOAL)]


class Rooms25(Grid):
    """25 rooms: 5 x 5 rooms of 5 x 5 cells, 665 walkable cells, for exploring without reward.

    Every episode starts in the middle of the top left room. The only reward is 1 in the bottom right cell, 52 steps away at
    least, where the episode ends; after `limit` steps it is truncated. The goal is drawn but not part of the vectors.
    A uniformly random policy finds it in 3 of 100 000 episodes (exact).
    """

    def __init__(self, name: str, common: Common, *, limit: int = 500) -> None:
        super().__init__(name, common, rooms(5, 5), number("limit", limit, 1, 10**6))
        self._goal = self._spots[-1]

    def _start(self) -> None:
        self._cell = np.array([3, 3])

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._walk(action)
        reached = bool((self._cell == self._goal).all())
        return float(reached), reached

    def _marks(self) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
        return [(self._goal, GOAL)]


class Grid4(Grid):
    """Four tasks in one 7 x 7 room (25 walkable cells) that want opposite things: `goal=0 ... 3` names a corner.

    Corners count from the top left in reading order. The goal's corner gives reward 1, every other corner -1, and both end
    the episode; it starts at a random other cell and is truncated after 20 steps. The goal is neither in the vectors nor
    in the picture, so that an agent that does not know its task can do no better over the four than stay away: 0. One that
    knows it scores 1, a uniformly random policy -0.36 (exact).
    """

    def __init__(self, name: str, common: Common, *, goal: int = 0, limit: int = 20) -> None:
        free = np.pad(np.ones((5, 5), bool), 1)
        self._corners = np.array([(1, 1), (1, 5), (5, 1), (5, 5)])
        self._target = number("goal", goal, 0, 3)
        super().__init__(name, common, free, number("limit", limit, 1, 10**6))

    def _at(self) -> int:
        """Number of the corner the agent stands in, -1 elsewhere."""
        hits = np.flatnonzero((self._corners == self._cell).all(1))
        return int(hits[0]) if len(hits) else -1

    def _start(self) -> None:
        self._cell = self._draw()
        while self._at() >= 0:
            self._cell = self._draw()

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._walk(action)
        corner = self._at()
        return (0.0, False) if corner < 0 else (1.0 if corner == self._target else -1.0, True)

    def _marks(self) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
        return list(zip(self._corners, CORNERS, strict=True))
