"""One measured workload: a model by its widths, the batch it is trained on, where it runs. Imports no polydream: the peers have none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

CONTEXT = 1  # stored steps before each sequence that give the state to start from (K)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Widths of a DreamerV3, the shape of its batch, and its device. `ours.case` fills in the widths of a named size."""

    size: str
    deter: int
    hidden: int
    stoch: int
    classes: int
    units: int
    depth: int  # channels of the convolutions are multiples of it
    obs: Literal["vector", "image"] = "vector"
    vector: int = 24
    image: int = 64  # height and width
    actions: int = 6  # continuous
    batch: int = 16  # B
    length: int = 64  # T, without the context
    horizon: int = 15  # H
    device: str = "cpu"
    threads: int = 2

    def to_json(self) -> str:
        """For the command line of another process; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Case:
        """The case that `to_json` wrote."""
        return Case(**json.loads(text))

    @property
    def key(self) -> str:
        """Name of the one observation."""
        return self.obs

    @property
    def steps(self) -> int:
        """Trained steps per update, B * T."""
        return self.batch * self.length


def observations(case: Case, *lead: int) -> np.ndarray:
    """Random observations: float32 (*lead, V) or uint8 (*lead, height, width, 3)."""
    rng = np.random.default_rng(1)
    if case.obs == "image":
        return rng.integers(0, 256, (*lead, case.image, case.image, 3), np.uint8)
    return rng.standard_normal((*lead, case.vector), np.float32)


def arrays(case: Case) -> dict[str, Any]:
    """The batch (B, K + T) that every contender trains on, in the dtypes of a replay: the same numbers for all.

    Keys: obs, action in [-1, 1], reward, is_first, is_last, is_terminal, deter (float16), stoch (uint8 classes).
    """
    rng = np.random.default_rng(0)
    lead = (case.batch, CONTEXT + case.length)
    flags = {key: np.zeros(lead, bool) for key in ("is_first", "is_last", "is_terminal")}
    return {
        "obs": observations(case, *lead),
        "action": rng.uniform(-1, 1, (*lead, case.actions)).astype(np.float32),
        "reward": rng.standard_normal(lead, np.float32),
        "deter": rng.uniform(-1, 1, (*lead, case.deter)).astype(np.float16),
        "stoch": rng.integers(0, case.classes, (*lead, case.stoch)).astype(np.uint8),
        **flags,
    }
