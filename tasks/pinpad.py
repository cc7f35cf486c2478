"""PinPad: step on coloured pads in the right order, which nothing shows (Hafner et al. 2022, "Deep Hierarchical Planning
from Pixels", https://arxiv.org/abs/2206.04114). Written from the description there; the layouts are our own.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..core.specs import Space
from .base import Common
from .grids import place, places
from .world import AGENT, FLOOR, MOVES, WALL, World, number

ROWS, COLUMNS = 14, 16
PAD = (4, 4)
# Top left cell of pads 1, 2, ...: pads that follow one another lie across the room.
PLACES = ((1, 1), (9, 11), (1, 11), (9, 1), (1, 6), (9, 6))
COLOURS = ((219, 68, 55), (66, 133, 244), (244, 180, 0), (15, 157, 88), (171, 71, 188), (0, 172, 193))
REWARD = 10.0


def layout(pads: int) -> np.ndarray:
    """int (14, 16): -1 wall, 0 floor, 1 ... pads where the pads lie."""
    cells = np.pad(np.zeros((ROWS - 2, COLUMNS - 2), int), 1, constant_values=-1)
    for pad, (row, column) in enumerate(PLACES[:pads], 1):
        cells[row : row + PAD[0], column : column + PAD[1]] = pad
    return cells


class PinPad(World):
    """Pads 1 ... N (N = 3 ... 6, from the name) in a room of 12 x 14 cells; actions stay, up, down, left, right.

    Stepping on a pad other than the last one stepped on appends it to the history, which remembers the last N. When the
    history reads 1, 2, ..., N the reward is 10 and the history is emptied; the episode goes on until it is truncated after
    2000 steps. It starts at a random cell without pad. Vectors: the classes `x`, `y` and `history`, N entries over
    (none, 1 ... N), oldest first. Pictures show the history as two rows under the room. With probability `sticky` a move
    repeats the previous one instead of the action (0 in the paper).
    A uniformly random policy collects 34 per 10 000 steps with three pads and 1.3 with four (exact), next to nothing with more.
    """

    memory: ClassVar[tuple[str, ...]] = ("_cell", "_history", "_last")

    def __init__(self, name: str, common: Common, *, sticky: float = 0.0, limit: int = 2000) -> None:
        if isinstance(sticky, bool) or not isinstance(sticky, (int, float)) or not 0 <= sticky < 1:
            raise ValueError(f"sticky must be a probability from 0 to below 1, not {sticky!r}")
        self._pads = int(name.removeprefix("pinpad"))
        self._layout, self._sticky = layout(self._pads), float(sticky)
        self._starts = np.argwhere(self._layout == 0)
        self._cell, self._last = self._starts[0], 0
        self._history = np.zeros(self._pads, int)
        vector = {
            **places(self._layout),
            "history": Space(shape=(self._pads,), dtype="int32", classes=self._pads + 1),
        }
        super().__init__(name, common, vector=vector, action=Space(dtype="int32", classes=5), limit=number("limit", limit, 1, 10**6))

    def _start(self) -> None:
        self._cell = self._starts[self._rng.integers(len(self._starts))]
        self._history, self._last = np.zeros(self._pads, int), 0

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        if not (self._sticky and self._rng.random() < self._sticky):
            self._last = int(action)
        there = self._cell + MOVES[self._last]
        if self._layout[tuple(there)] >= 0:
            self._cell = there
        pad = int(self._layout[tuple(self._cell)])
        if pad > 0 and pad != self._history[-1]:
            self._history = np.append(self._history[1:], pad)
        if (self._history == np.arange(1, self._pads + 1)).all():
            self._history = np.zeros(self._pads, int)
            return REWARD, False
        return 0.0, False

    def _vectors(self) -> dict[str, np.ndarray]:
        return {**place(self._cell), "history": self._history.astype(np.int32)}

    def _cells(self) -> np.ndarray:
        palette = np.array((FLOOR, *COLOURS, WALL), np.uint8)
        cells = np.concatenate([palette[self._layout], np.zeros((2, COLUMNS, 3), np.uint8)])
        cells[tuple(self._cell)] = AGENT
        for slot, pad in enumerate(self._history):
            if pad:
                cells[ROWS:, 2 * slot : 2 * slot + 2] = COLOURS[pad - 1]
        return cells
