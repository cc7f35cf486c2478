"""Which sequences of the replay are drawn: all alike, by priority, or the recent ones more often."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .columns import PRIORITY, Column, Key
from .segments import Segments


class Sampler(Protocol):
    """Draws sequences of `length` steps, each named by (stream, first step). Told about every row that comes and goes."""

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n sequences that are held completely, int64 (n, 2). At least one must exist."""
        ...

    def added(self, rows: np.ndarray) -> None:
        """New steps lie in these rows (n,)."""
        ...

    def evicted(self, row: int) -> None:
        """The step of a row is gone."""
        ...


class Uniform:
    """Every complete sequence is equally likely; sequences begin at every step and overlap."""

    def __init__(self, segments: Segments, length: int) -> None:
        self.segments, self.length = segments, length

    def counts(self) -> np.ndarray:
        """Complete sequences of every stream, int64 (streams,)."""
        return np.maximum(self.segments.end - self.segments.first - (self.length - 1), 0)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        counts = self.counts()
        bound = np.cumsum(counts)
        index = rng.integers(0, bound[-1], n)
        stream = np.searchsorted(bound, index, side="right")
        start = self.segments.first[stream] + index - (bound - counts)[stream]
        return np.stack([stream, start], -1)

    def added(self, rows: np.ndarray) -> None:
        pass

    def evicted(self, row: int) -> None:
        pass


class Recency(Uniform):
    """A sequence is half as likely as one that began `half_life` steps later, steps counted over all streams together.

    Ages are counted along each stream, whose steps are taken to be as frequent as those of the others.
    blend: share of the draws that are uniform.
    """

    def __init__(self, segments: Segments, length: int, *, half_life: float, blend: float) -> None:
        super().__init__(segments, length)
        self.half_life, self.blend = half_life, blend

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        drawn = super().draw(rng, n)
        counts = self.counts()
        rate = -np.log(2) * np.count_nonzero(counts) / self.half_life  # log of the decay from one step of a stream to the next
        mass = -np.expm1(rate * counts)  # of the geometric distribution cut off at the stream's oldest sequence
        bound = np.cumsum(mass)
        stream = np.searchsorted(bound, rng.random(n) * bound[-1], side="right")
        stream = np.minimum(stream, np.flatnonzero(counts)[-1])
        age = np.log1p(-rng.random(n) * mass[stream]) / rate
        age = np.minimum(age.astype(np.int64), counts[stream] - 1)
        start = self.segments.end[stream] - self.length - age
        recent = rng.random(n) >= self.blend
        return np.where(recent[:, None], np.stack([stream, start], -1), drawn)


class Priority(Uniform):
    """A sequence is as likely as the sum of its steps' priority ** exponent says.

    A step is drawn by its own weight, then one of the sequences around it, all alike; so near the two ends of a stream,
    where a step lies in fewer sequences, these few get its whole weight. Draws that meet a stream still shorter than a
    sequence become uniform ones. New steps get the highest priority seen, so that each is soon drawn. Prioritised replay:
    Schaul et al. 2016 (without the importance weights: a world model is to be right where it is trained).

    Weights are float32 in the replay's own rows and saved with them; sums are kept per segment, so a draw costs one
    cumulative sum over the segments and one inside a segment. blend: share of the draws that are uniform.
    """

    column = Column((), np.dtype(np.float32), group="latent")

    def __init__(self, segments: Segments, length: int, *, exponent: float, blend: float) -> None:
        super().__init__(segments, length)
        self.exponent, self.blend = exponent, blend
        self.highest = 1.0  # weight of new steps
        self._weights = segments.arrays[PRIORITY]
        self._sums = np.zeros(segments.slots)
        self._stale = np.ones(segments.slots, bool)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        drawn = super().draw(rng, n)
        bound = np.cumsum(self._totals())
        if bound[-1] == 0:
            return drawn
        size, ends = self.segments.size, self.segments
        inside = rng.random(n) * bound[-1]
        slot = np.minimum(np.searchsorted(bound, inside, side="right"), np.flatnonzero(self._sums)[-1])
        weights = np.cumsum(self._weights.reshape(-1, size)[slot], axis=1, dtype=np.float64)
        inside -= bound[slot] - self._sums[slot]
        offset = np.minimum((weights <= inside[:, None]).sum(1), size - 1)
        stream, step = ends.steps(slot * size + offset)
        low = np.maximum(step - self.length + 1, ends.first[stream])
        high = np.minimum(step, ends.end[stream] - self.length)
        start = low + (rng.random(n) * (high - low + 1)).astype(np.int64)
        keep = (rng.random(n) >= self.blend) & (low <= high) & (step >= ends.first[stream])
        return np.where(keep[:, None], np.stack([stream, start], -1), drawn)

    def _totals(self) -> np.ndarray:
        stale = np.flatnonzero(self._stale)
        self._sums[stale] = self._weights.reshape(-1, self.segments.size)[stale].sum(1, dtype=np.float64)
        self._stale[stale] = False
        return self._sums

    def added(self, rows: np.ndarray) -> None:
        self._set(rows, np.float32(self.highest))

    def evicted(self, row: int) -> None:
        self._weights[row] = 0
        self._stale[row // self.segments.size] = True

    def put(self, rows: np.ndarray, priority: np.ndarray) -> None:
        """Priorities (n,) of the steps in rows (n,). Where a row comes twice the later value stays.

        Raises ValueError for negative and non-finite priorities.
        """
        if not (np.isfinite(priority) & (priority >= 0)).all():
            raise ValueError("priorities must be finite and at least 0")
        weights = (priority**self.exponent).astype(np.float32)
        self.highest = max(self.highest, float(weights.max(initial=0)))
        self._set(rows, weights)

    def refresh(self) -> None:
        """Read all weights anew after the rows were restored from a file; rows of no held step weigh nothing."""
        held = np.zeros(len(self._weights), bool)
        for stream, (first, end) in enumerate(zip(self.segments.first, self.segments.end, strict=True)):
            held[self.segments.rows(np.array(stream), np.arange(first, end))] = True
        self._weights[~held] = 0
        self._stale[:] = True

    def _set(self, rows: np.ndarray, weights: np.ndarray | np.float32) -> None:
        self._weights[rows] = weights
        self._stale[rows // self.segments.size] = True
        self.segments.mark(rows, "latent")


def extra_columns(sampler: str) -> dict[Key, Column]:
    """Arrays kept beside the steps for the sampler's own use."""
    return {PRIORITY: Priority.column} if sampler == "priority" else {}
