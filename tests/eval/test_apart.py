"""Tasks of one run, each by itself: whose steps are whose, and what the report and its picture show of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from polydream.eval.account import MOST, Run
from polydream.eval.apart import apart, names
from polydream.eval.curves import reference, window_mean
from polydream.eval.report import curve_png, write_report


def episode(step: int, task: str, score: float, length: int) -> dict[str, Any]:
    return {"step": step, "time": float(step), "kind": "episode", "return": score, "length": length, "task": task}


def evaluation(step: int, task: str | None, score: float) -> dict[str, Any]:
    row = {"step": step, "time": float(step), "kind": "eval", "mode": "sample", "return_mean": score, "returns": [score]}
    return row if task is None else row | {"task": task}


def test_steps_are_shared_out_by_hand() -> None:
    # Decisions count two steps. After 40 steps each has had one episode of ten decisions; then `b` alone plays 30.
    rows = [episode(40, "a", 1.0, 10), episode(40, "b", 2.0, 10), episode(100, "b", 3.0, 30), evaluation(70, "a", 5.0)]
    rows += [evaluation(100, "b", 6.0), evaluation(100, None, 9.0), {"step": 100, "time": 1.0, "kind": "train", "loss/rec": 1.0}]
    assert names(rows) == ["a", "b"]
    assert [(r["step"], r.get("return", r.get("return_mean"))) for r in apart(rows, "a")] == [(20, 1.0), (20, 5.0)]
    assert [(r["step"], r.get("return", r.get("return_mean"))) for r in apart(rows, "b")] == [(20, 2.0), (80, 3.0), (80, 6.0)]
    assert not any("task" in r for r in apart(rows, "b"))
    assert rows[0]["task"] == "a" and rows[0]["step"] == 40, "what was read stays as it was"


def test_between_and_after_episodes_steps_go_on() -> None:
    rows = [
        episode(40, "a", 1.0, 10),
        episode(40, "b", 2.0, 10),
        evaluation(20, "a", 0.0),
        evaluation(60, "a", 0.0),
        evaluation(0, "a", 0.0),
    ]
    assert [r["step"] for r in apart(rows, "a")] == [20, 10, 30, 0]


def write(run: Path, tasks: list[str]) -> Path:
    rows: list[dict[str, Any]] = [{"step": 0, "time": 0.0, "kind": "run", "parameters": 7}]
    for k in range(1, 51):
        rows += [episode(2_000 * k, name, 10.0 * k + i, 500) for i, name in enumerate(tasks)]
    rows += [evaluation(100_000, name, 3.0) | {"score_mean": 0.1} for name in tasks]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"variant": "multitask", "task": "suite/my", "seed": 4, "steps": 100_000, "env": {"obs": "vector"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_the_report_has_a_curve_for_each_task_with_those_of_agents_that_have_it_alone(tmp_path: Path) -> None:
    page = write_report(write(tmp_path, ["walker_walk", "mine"])).read_text()
    found = {n: json.loads(t) for n, t in re.findall(r'<script type="application/json" data-plot="(curve-[^"]*)">(.*?)</script>', page)}
    assert list(found) == ["curve-walker_walk", "curve-mine"]
    walk, mine = Run.read(tmp_path).parts
    assert walk.end == mine.end == 50_000 and mine.published is None
    ours, theirs = window_mean(walk.rows, walk.last), reference("walker_walk").window_mean(50_000)
    assert (ours.start, ours.end, ours.count, ours.mean) == (30_000, 50_000, 20, 405.0)
    assert "walker_walk: 405.0 while training (mean of 20 episodes, steps 30,000 to 50,000, 1 seed of its own)" in page
    assert f"published, of agents with this task alone, {theirs.mean:.1f} in the same steps" in page
    assert any("published" in str(trace.get("name")) for trace in found["curve-walker_walk"]["data"])
    assert not any("published" in str(trace.get("name")) for trace in found["curve-mine"]["data"])


@pytest.mark.parametrize(("count", "size"), [(1, (1720, 860)), (2, (2080, 800)), (3, (2080, 1500)), (MOST + 1, (1720, 860))])
def test_a_picture_for_documents_has_a_panel_for_each(tmp_path: Path, count: int, size: tuple[int, int]) -> None:
    from PIL import Image

    with Image.open(curve_png(write(tmp_path, [f"task{i}" for i in range(count)]))) as image:
        assert image.size == size
