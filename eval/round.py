"""Judging one agent on several tasks: each task by itself, their unweighted mean, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.specs import Member, Shared, Task
from .rollout import Evaluation, Mode


def alone(make_task: Callable[[], Task], index: int, count: int) -> Task:
    """An environment that plays only the task of number `index` out of `count`."""
    task = make_task()
    if not isinstance(task, Shared):
        raise TypeError(f"{type(task).__name__} names several tasks and cannot play one of them: it has no method `share`")
    task.share(index, count)
    return task


class Round:
    """Evaluations of all tasks of a spec, by name and in its order. A mean that lacked one would say nothing of it.

    Raises ValueError for a task that was not evaluated and for one that the spec does not have.
    """

    def __init__(self, members: Mapping[str, Member], found: Mapping[str, Evaluation]) -> None:
        if missing := [name for name in members if name not in found]:
            raise ValueError(f"no evaluation of {', '.join(missing)}: all of {', '.join(members)} are needed")
        if strange := [name for name in found if name not in members]:
            raise ValueError(f"{strange[0]!r} is none of the tasks {', '.join(members)}")
        self.members, self.found = dict(members), {name: found[name] for name in members}

    def score(self, name: str) -> float:
        """Mean return of a task, normalised: 0 at the member's `low`, 1 at its `high`."""
        member = self.members[name]
        return (self.found[name].return_mean - member.low) / (member.high - member.low)

    def success(self, name: str) -> float | None:
        """Share of a task's episodes that succeeded, by its own report or by their return; None where it has no such thing."""
        member, result = self.members[name], self.found[name]
        if member.success is not None:
            return float(np.mean([score >= member.success for score in result.returns]))
        return None if result.successes is None else float(np.mean(result.successes))

    def row(self) -> dict[str, Any]:
        """The row for all tasks together."""
        return self.rows()[-1]

    def rows(self) -> list[dict[str, Any]]:
        """One "eval" row for each task with `task`, `score_mean` and, where there is one, `success_mean`; then one for all.

        That one has the unweighted means over tasks, and the worst task: `score_worst`, `worst`, `success_worst`.
        """
        rows = []
        for name, result in self.found.items():
            success = self.success(name)
            row = {"task": name, **result.row(), "score_mean": self.score(name)}
            rows.append(row if success is None else row | {"success_mean": success})
        scores = {name: self.score(name) for name in self.found}
        worst = min(scores, key=scores.__getitem__)
        means = {key: float(np.mean([row[key] for row in rows])) for key in ("return_mean", "length_mean", "terminated_mean", "score_mean")}
        total = {"mode": self.mode, **means, "return_std": self.return_std, "score_worst": scores[worst], "worst": worst}
        successes = [row["success_mean"] for row in rows if "success_mean" in row]
        if successes:
            total |= {"success_mean": float(np.mean(successes)), "success_worst": min(successes)}
        return [*rows, total]

    @property
    def mode(self) -> Mode:
        """How actions were chosen."""
        return next(iter(self.found.values())).mode

    @property
    def return_mean(self) -> float:
        """Mean over tasks of their mean returns."""
        return float(np.mean([result.return_mean for result in self.found.values()]))

    @property
    def return_std(self) -> float:
        """Mean over tasks of the deviation between episodes of one."""
        return float(np.mean([result.return_std for result in self.found.values()]))

    @property
    def returns(self) -> tuple[float, ...]:
        """Returns of all episodes, task by task."""
        return tuple(score for result in self.found.values() for score in result.returns)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the same episodes, in decisions."""
        return tuple(length for result in self.found.values() for length in result.lengths)

    @property
    def terminated(self) -> tuple[bool, ...]:
        """Which of them the environment ended."""
        return tuple(ended for result in self.found.values() for ended in result.terminated)

    @property
    def video(self) -> Path | None:
        """The film of the first task that has one."""
        return next((result.video for result in self.found.values() if result.video), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong besides."""
        return tuple(dict.fromkeys(text for result in self.found.values() for text in result.warnings))
