"""How many updates are due: training keeps a fixed proportion to experience."""

from __future__ import annotations

from fractions import Fraction
from typing import Any


class TrainRatio:
    """Counts the updates due as experience comes in.

    ratio: updates per step of experience (`train_ratio / (batch * length)` where train_ratio counts replayed steps), 0 for
    no training at all. It is kept as the nearest fraction with a denominator up to a million, so that the credit below one
    update is carried exactly for ever and not rounded away. Behaviour as released with DreamerV3.
    """

    def __init__(self, ratio: float) -> None:
        if not 0 <= ratio < float("inf"):
            raise ValueError(f"the train ratio must be at least 0 and finite, got {ratio}")
        self.ratio = Fraction(ratio).limit_denominator(1_000_000)
        if ratio and not self.ratio:
            raise ValueError(f"a train ratio of {ratio} is less than one update in a million steps; use 0 to switch training off")
        self._step: int | None = None
        self._credit = Fraction(0)

    def __call__(self, step: int) -> int:
        """Updates due now that `step` steps were taken. The first call returns 1 and starts the count.

        Steps taken before the first call, while the replay was filling, are not made up for. Raises ValueError when steps
        run backwards.
        """
        if not self.ratio:
            return 0
        if self._step is None:
            self._step = step
            return 1
        if step < self._step:
            raise ValueError(f"steps ran backwards, from {self._step} to {step}")
        self._credit += (step - self._step) * self.ratio
        self._step = step
        due = int(self._credit)
        self._credit -= due
        return due

    def state_dict(self) -> dict[str, Any]:
        """The last step seen (None before the first call) and the credit below one update as [numerator, denominator]."""
        return {"step": self._step, "credit": [self._credit.numerator, self._credit.denominator]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved counter stood. The ratio itself stays that of this object."""
        self._step = None if state["step"] is None else int(state["step"])
        self._credit = Fraction(*state["credit"])
