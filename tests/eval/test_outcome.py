"""The table at the end of a run over several tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polydream.eval.outcome import outcome


def run_of(path: Path, *rows: dict[str, Any]) -> Path:
    lines = [{"step": 10, "time": 0.0, "kind": "eval", **row} for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_task_has_a_row_beside_random_play_and_the_worst_is_named(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        {"mode": "random", "task": "stand", "return_mean": 132.0, "score_mean": 0.0},
        {"mode": "random", "task": "run", "return_mean": 23.4, "score_mean": 0.0},
        {"mode": "sample", "task": "stand", "return_mean": 1.0, "score_mean": -0.1},  # an earlier evaluation
        {"mode": "sample", "task": "stand", "return_mean": 901.0, "score_mean": 0.886, "success_mean": 0.75},
        {"mode": "sample", "task": "run", "return_mean": 200.0, "score_mean": 0.181, "success_mean": 0.0},
        {"mode": "sample", "return_mean": 550.5, "score_mean": 0.534, "success_mean": 0.375, "worst": "run", "score_worst": 0.181},
        {"mode": "random", "return_mean": 77.7, "score_mean": 0.0, "worst": "stand", "score_worst": 0.0},
    )
    assert outcome(run).splitlines() == [
        "task           random play        sampled actions",
        "stand          132 (score 0.00)   901 (score 0.89, success 75%)",
        "run            23.4 (score 0.00)  200 (score 0.18, success 0%)",
        "mean of tasks  77.7 (score 0.00)  550 (score 0.53, success 38%)",
        "worst task     stand, score 0.00  run, score 0.18",
    ]


def test_one_task_and_no_evaluation_have_none(tmp_path: Path) -> None:
    assert outcome(run_of(tmp_path, {"mode": "sample", "return_mean": 3.0})) == ""
    assert outcome(run_of(tmp_path, {"kind": "episode", "return": 1.0})) == ""
