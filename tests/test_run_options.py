"""Options of a run, each turned: what it says it does is what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polydream.core.config import ConfigError
from polydream.core.launch import command_line
from polydream.core.log import read_metrics
from polydream.core.train import Trainer
from polydream.eval.judge import Judge
from tests.faults.harness import tiny


def ran(place: Path, judged: bool = True, **options: Any) -> list[dict[str, Any]]:
    """Metric rows of a run."""
    with Trainer(tiny(place, **{"steps": 60, "eval__every": 0, "eval__episodes": 1} | options), Judge() if judged else None) as trainer:
        trainer.run()
    return read_metrics(place)


def steps(rows: list[dict[str, Any]], kind: str, **wanted: Any) -> list[int]:
    """Where the rows of a kind lie."""
    return [r["step"] for r in rows if r["kind"] == kind and all(r.get(k) == v for k, v in wanted.items())]


@pytest.mark.parametrize(("warmup", "first"), [(20, 20), (45, 45), (0, 2 * 8)])
def test_the_first_update_waits_for_warmup(warmup: int, first: int, tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", warmup=warmup)) as trainer:
        while not trainer._due():
            trainer.collect()
        assert trainer.count.rows == first


@pytest.mark.parametrize("every", [10, 25])
def test_log_every_spaces_the_rows_of_training(every: int, tmp_path: Path) -> None:
    found = steps(ran(tmp_path / "run", judged=False, log__every=every), "train")
    assert [b - a for a, b in zip(found, found[1:], strict=False)] == [every] * (len(found) - 1)
    assert len(found) == (60 - found[0]) // every + 1 and found[0] <= 32 + every


def test_evaluations_come_as_often_as_long_and_in_the_modes_asked_for(tmp_path: Path) -> None:
    rows = ran(tmp_path / "run", eval__every=20, eval__episodes=3, eval__baseline=2, eval__modes="mode", log__report=40)
    assert steps(rows, "eval", mode="mode") == [20, 40, 60] and steps(rows, "eval", mode="random") == [0]
    assert {r["mode"] for r in rows if r["kind"] == "eval"} == {"mode", "random"}
    assert {len(r["returns"]) for r in rows if r.get("mode") == "mode"} == {3}
    assert [len(r["returns"]) for r in rows if r.get("mode") == "random"] == [2]
    assert not list((tmp_path / "run").rglob("eval-*.mp4"))


def test_films_and_reports_come_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = ran(tmp_path / "run", eval__every=20, eval__baseline=0, eval__video=True, log__report=20, length=4)
    assert steps(rows, "eval", mode="random") == []
    assert steps(rows, "report") == [20, 40, 60][-len(steps(rows, "report")) :] and len(steps(rows, "report")) >= 2
    assert len(list((tmp_path / "run").rglob("eval-*-mode.mp4"))) == 3
    seldom = ran(tmp_path / "seldom", eval__every=20, log__report=1000, length=4)
    assert steps(seldom, "report") == [60]  # the last one always


@pytest.mark.parametrize(("every", "saves"), [(0.0, 1), (1e-9, 20)])
def test_save_every_is_how_often_it_saves(every: float, saves: int, tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=30, save_every=every)) as trainer:
        submitted, original = [0], trainer.saver.submit

        def submit(run: Trainer) -> Any:
            submitted[0] += 1
            return original(run)

        trainer.saver.submit = submit  # type: ignore[method-assign]
        trainer.run()
    assert submitted[0] == 1 if saves == 1 else submitted[0] > saves


def test_limits_and_sizes_reach_those_who_keep_them(tmp_path: Path) -> None:
    cfg = tiny(
        tmp_path / "run", grace=7.0, patience=4, batch=3, length=6, env__timeout=11.0, env__restarts=5, env__window=13.0, device="cpu"
    )
    before = torch.get_num_threads()
    try:
        with Trainer(cfg) as trainer:
            assert torch.get_num_threads() == cfg.threads == 1 and trainer.device.type == "cpu"
            assert (trainer.signals.grace, trainer.guard.patience, trainer.envs.timeout) == (7.0, 4, 11.0)
            assert (trainer.faults.allowed, trainer.faults.window) == (5, 13.0)
            for _ in range(40):
                trainer.collect()
            assert tuple(trainer.replay.sample().batch_size) == (3, 6 + cfg.replay.context)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("program", "module", "expected"),
    [
        ("/home/me/polydream/polydream/__main__.py", "polydream.__main__", "python -m polydream --seed 1"),
        ("/home/me/polydream/.venv/bin/polydream", "", "python -m polydream --seed 1"),
        ("/home/me/polydream/benchmarks/tasks.py", "benchmarks.tasks", "python -m benchmarks.tasks --seed 1"),
        ("/home/me/polydream/mine.py", "", "python mine.py --seed 1"),
    ],
)
def test_a_result_tells_its_command_without_folders_of_this_machine(program: str, module: str, expected: str) -> None:
    assert command_line([program, "--seed", "1"], module) == expected


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("eval.modes", "greedy", "eval.modes wants one of sample, mode, got 'greedy'"),
        ("replay.half_life", "inf", "replay.half_life must be above 0 and finite"),
    ],
)
def test_values_that_cannot_work_are_refused_where_they_are_set(option: str, value: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(tmp_path, **{option.replace(".", "__"): value})


def test_a_schedule_that_cannot_be_is_refused_before_the_first_update(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.schedule=linear needs optim\.anneal above the warm-up of \d+ updates, got 0"):
        Trainer(tiny(tmp_path / "run", agent__optim__schedule="linear"))
    assert not (tmp_path / "run").exists()
