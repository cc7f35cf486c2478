"""What of a multi-task agent's weights a later agent takes over: everything that is shared, and what belongs to tasks that both know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ..core.config import override
from ..core.run import RunConfig
from ..core.specs import Spec

SCALES = r"behaviors\.\w+\.objectives\.\w+\.(?:retnorm|deviation)"
OWNED = re.compile(rf"(nets\.(?:tasks|reward|cont|units)|behaviors\.manager\.policy|{SCALES})\.(\d+)\.(.+)")
"""Weights and statistics of one task: where, its number, the rest."""


def heir_of(name: str, ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    """What a weight of an agent of tasks `ours` is called in one of tasks `theirs`, numbers going by the tasks' names."""
    if name.startswith(("nets.trust.", "nets.pool.")) or name.endswith(".given"):
        return None  # new heads are to be waited for as well; kept goals are of numbered tasks; vectors that the user gives are his
    if not (found := OWNED.fullmatch(name)):
        return name
    where, number, rest = found.groups()
    task = ours[int(number)]
    return f"{where}.{theirs.index(task)}.{rest}" if task in theirs else None


class Heritage:
    """A variant's answer to `core.transfer.Heir`, for agents whose tasks are those of `spec.tasks`."""

    spec: Spec

    @staticmethod
    def adapt(cfg: RunConfig) -> RunConfig:
        """The configuration for another task: a task alone becomes a suite of one, which has a name and a number."""
        alone = cfg.task if cfg.task.startswith("suite/") else f"suite/{cfg.task}"
        return override(replace(cfg, task=alone), "agent.multitask.alone", "told")

    def heir_of(self, name: str, donor: Spec) -> str | None:
        """A weight's name in the agent trained on `donor`; None for those of tasks that it did not have."""
        return heir_of(name, list(self.spec.tasks), list(donor.tasks))
