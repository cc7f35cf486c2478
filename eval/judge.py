"""What a training run asks of this room: play, film, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.specs import Task
from .rollout import Evaluation, Mode, Player, RandomPlayer, evaluate
from .video import openloop_video, save_video

MAX_STEPS = 20_000
"""Decisions after which an evaluation episode is broken off, for tasks that never end."""


class Judge:
    """Fits `core.train.Judge`. parallel: episodes played at a time; fps: frames per second of videos."""

    def __init__(self, parallel: int = 5, fps: float = 30.0) -> None:
        self.parallel, self.fps = parallel, fps

    def evaluate(
        self, player: Player, make_task: Callable[[], Task], *, episodes: int, seed: int, mode: Mode, video: Path | None
    ) -> Evaluation:
        """Play `episodes` episodes on seeds that training never uses."""
        return evaluate(
            player,
            make_task,
            episodes=episodes,
            seed=seed,
            mode=mode,
            video=video,
            max_steps=MAX_STEPS,
            parallel=self.parallel,
            fps=self.fps,
        )

    def baseline(self, make_task: Callable[[], Task], *, episodes: int, seed: int) -> dict[str, Any]:
        """A row for the log: how a uniformly random policy does on the same evaluation seeds."""
        probe = make_task()
        player = RandomPlayer(probe.spec, seed)
        probe.close()
        result = evaluate(player, make_task, episodes=episodes, seed=seed, max_steps=MAX_STEPS, parallel=self.parallel)
        return result.row() | {"mode": "random"}

    def film(self, path: Path, frames: Mapping[str, np.ndarray], context: int) -> None:
        """Write an open-loop video: truth, model, error of (B, T, H, W, C) in [0, 1]."""
        save_video(path, openloop_video(frames["truth"], frames["model"], context), fps=10)

    def report(self, run_dir: Path) -> Path:
        """Write the run's report page."""
        from .report import write_report

        return write_report(run_dir)
