"""What a training run asks of this room: play, film, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..core.specs import Spec, Task
from .rollout import Evaluation, Mode, Player, RandomPlayer, evaluate
from .round import Round, alone
from .video import openloop_video, save_video

MAX_STEPS = 20_000
"""Decisions after which an evaluation episode is broken off, for tasks that never end. One with a limit of its own gets to it."""


class Judge:
    """Fits `core.train.Judge`. parallel: episodes played at a time; fps: frames per second of videos."""

    def __init__(self, parallel: int = 5, fps: float = 30.0) -> None:
        self.parallel, self.fps = parallel, fps

    def evaluate(
        self, player: Player, make_task: Callable[[], Task], *, episodes: int, seed: int, mode: Mode, video: Path | None
    ) -> Evaluation | Round:
        """Play `episodes` episodes on seeds that training never uses, of every task where there are several."""
        settings: dict[str, Any] = {"episodes": episodes, "seed": seed, "mode": mode, "fps": self.fps}
        return self._evaluate(player, make_task, _spec(make_task), video, settings)

    def baseline(self, make_task: Callable[[], Task], *, episodes: int, seed: int) -> list[dict[str, Any]]:
        """Rows for the log: how a uniformly random policy does on the same evaluation seeds."""
        spec = _spec(make_task)
        result = self._evaluate(RandomPlayer(spec, seed), make_task, spec, None, {"episodes": episodes, "seed": seed})
        return [row | {"mode": "random"} for row in result.rows()]

    def _evaluate(
        self, player: Player, make: Callable[[], Task], spec: Spec, video: Path | None, settings: dict[str, Any]
    ) -> Evaluation | Round:
        settings = {"max_steps": max(MAX_STEPS, spec.limit or 0), "parallel": self.parallel, **settings}
        if not spec.tasks:
            return evaluate(player, make, video=video, **settings)
        found = {}
        for index, name in enumerate(spec.tasks):
            film = video.with_stem(f"{video.stem}-{name}") if video else None
            found[name] = evaluate(player, partial(alone, make, index, len(spec.tasks)), video=film, **settings)
        return Round(spec.tasks, found)

    def film(self, path: Path, frames: Mapping[str, np.ndarray], context: int) -> None:
        """Write an open-loop video: truth, model, error of (B, T, H, W, C) in [0, 1]."""
        save_video(path, openloop_video(frames["truth"], frames["model"], context), fps=10)

    def report(self, run_dir: Path) -> Path:
        """Write the run's report page, and the model card of its newest checkpoint."""
        from ..core.checkpoint import intact
        from .card import write_card
        from .report import write_report

        if path := next(intact(run_dir / "checkpoints"), None):
            write_card(path, run_dir)
        return write_report(run_dir)


def _spec(make_task: Callable[[], Task]) -> Spec:
    task = make_task()
    task.close()
    return task.spec
