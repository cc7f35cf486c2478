"""One task out of a run of several, as a run of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


def names(rows: Rows) -> list[str]:
    """The tasks that a run of several tells apart, in the order in which they are evaluated."""
    found = [str(row["task"]) for kind in ("eval", "episode") for row in rows if row["kind"] == kind and row.get("task") is not None]
    return list(dict.fromkeys(found))


def apart(rows: Rows, task: str) -> list[dict[str, Any]]:
    """Episodes and evaluations of one task, on the axis of its own environment steps.

    Where the run has made s steps, its own are s times its share of the decisions in all episodes that have ended by then; between
    ends of episodes they grow linearly. So curves of a single task, and published ones, can lie beside it.
    """
    ended = sorted((row["step"], row["length"], row.get("task") == task) for row in rows if row["kind"] == "episode")
    at, own = _own(ended)
    found = [dict(row) for row in rows if row["kind"] in ("episode", "eval") and row.get("task") == task]
    for row in found:
        row["step"] = round(float(np.interp(row["step"], at, own)) if row["step"] <= at[-1] else row["step"] * own[-1] / max(at[-1], 1))
        del row["task"]
    return found


def _own(ended: Sequence[tuple[int, int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the run, ascending, and how many of them were a task's. ended: of every episode its step, its length, whether it was one."""
    at, own = [0.0], [0.0]
    mine = total = 0
    for step, length, is_mine in ended:
        mine, total = mine + length * is_mine, total + length
        share = step * mine / max(total, 1)
        if step == at[-1]:
            own[-1] = share
        else:
            at.append(float(step))
            own.append(share)
    return np.array(at), np.maximum.accumulate(own)
