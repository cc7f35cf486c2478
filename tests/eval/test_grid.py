"""Cells: their commands, and their state as the files tell it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydream.core.config import ConfigError
from polydream.core.log import Log
from polydream.eval import runner
from polydream.eval.grid import DONE, FAILED, RUNNING, WAITING, Glance, Grid, alive, identity, safe
from polydream.eval.suites import find

from .benches import STEPS, finish, finished, small_grid, small_suite


def test_cells_come_seed_by_seed_and_have_directories_of_their_own(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, ("base", "my_file:Agent"))
    order = [(cell.seed, cell.entry.name, cell.variant) for cell in grid.cells]
    assert order[:4] == [(0, "chain", "base"), (0, "chain", "my_file:Agent"), (0, "reach", "base"), (0, "reach", "my_file:Agent")]
    assert len({cell.directory for cell in grid.cells}) == len(grid.cells) == 8
    assert grid.cells[1].directory == tmp_path / "my_file-Agent" / "chain" / "my_file-Agent-chain-0"
    assert safe("a/b:c d") == "a-b-c-d" and safe("multitask+ensemble") == "multitask+ensemble"


def test_the_command_says_everything_about_a_cell(tmp_path: Path) -> None:
    grid = Grid(find("worlds"), ("base", "sb3-dqn"), (3,), tmp_path, {"ratio": "64", "env.count": "2"})
    base, dqn = grid.cells[:2]
    assert base.words[:9] == ["train", "--variant", "base", "--task", "world/chain", "--seed", "3", "--steps", "2500"]
    pairs = dict(zip(base.words[1::2], base.words[2::2], strict=True))
    assert pairs["--ratio"] == "64" and pairs["--preset"] == "laptop" and pairs["--eval.episodes"] == "20"
    assert dqn.words[:3] == ["baseline", "--method", "sb3-dqn"]
    assert "--ratio" not in dqn.words and "--preset" not in dqn.words and dqn.words[-2:] == ["--env.count", "2"]
    assert base.command()[-2:] == ["--dir", str(base.directory)]


def test_a_step_budget_from_the_command_line_holds_for_every_task(tmp_path: Path) -> None:
    grid = Grid(find("worlds"), ("base",), (0,), tmp_path, {"steps": "1e3"})
    assert [cell.steps for cell in grid.cells] == [1000, 1000, 1000]
    assert [cell.steps for cell in Grid(find("worlds"), ("base",), (0,), tmp_path).cells] == [2500, 2500, 2500]


def test_states_are_read_from_the_files(tmp_path: Path) -> None:
    grid = small_grid(tmp_path)
    done, failed, running, fresh = grid.cells[:4]
    finish(done, 1.0)
    failed.write(crashes=2)
    running.write(process=identity(os.getpid()))
    assert [cell.state for cell in (done, failed, running, fresh)] == [DONE, FAILED, RUNNING, WAITING]
    failed.write(crashes=1)
    assert failed.state == WAITING
    running.write(process=[os.getpid(), 5.0])  # the id was given to another process
    assert running.state == WAITING


def test_a_process_is_known_by_its_time_of_creation_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = identity(child.pid)
    assert alive(known) and not alive([known[0], known[1] - 60]) and not alive(None)
    child.communicate(b"\n")
    assert not alive(known)


def test_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    (cell, *_) = small_grid(tmp_path).cells
    assert not cell.begun and not cell.complete()
    (cell.directory / "checkpoints" / f"{STEPS // 2:012d}.001").mkdir(parents=True)
    assert not cell.begun  # no manifest: it was never finished
    (cell.directory / "checkpoints" / f"{STEPS // 2:012d}.001" / "manifest.json").touch()
    (cell.directory / "config.yaml").touch()
    assert cell.begun and cell.saved == STEPS // 2 and not cell.complete()
    assert cell.command()[-2:] == ["resume", str(cell.directory)]
    (cell.directory / "checkpoints" / f"{STEPS:012d}").mkdir()
    (cell.directory / "checkpoints" / f"{STEPS:012d}" / "manifest.json").touch()
    assert cell.complete()


def test_a_baseline_is_complete_with_its_last_evaluation(tmp_path: Path) -> None:
    (cell, *_) = small_grid(tmp_path, ("sb3-ppo",)).cells
    with Log(cell.directory, mlflow=False) as log:
        log.scalars(STEPS, {"mode": "sample", "return_mean": 1.0}, "eval")
        assert not cell.complete()
        log.scalars(STEPS, {"mode": "mode", "return_mean": 1.0}, "eval")
    assert cell.complete()


def test_a_glance_reads_only_the_end(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    assert grid.cells[0].glance() == Glance(STEPS, pytest.approx((5 * 0.0 + 5 * 1.0) / 10), 100.0)
    (tmp_path / "x").mkdir()
    assert small_grid(tmp_path / "x").cells[0].glance() == Glance(0, None, 0.0)
    path = grid.cells[0].directory / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 9999, "ki')  # being written
    assert grid.cells[0].glance().step == STEPS


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    finished(tmp_path)
    runner.check(small_grid(tmp_path, seeds=3))  # more seeds, more variants: welcome
    with pytest.raises(ConfigError, match="--steps 1000 -> --steps 500"):
        runner.check(small_grid(tmp_path, options={"steps": "500"}))
    with pytest.raises(ConfigError, match="other options"):
        runner.check(small_grid(tmp_path, options={"ratio": "64"}))


def test_cells_are_found_by_variant_and_task(tmp_path: Path) -> None:
    grid = Grid(small_suite("chain", "reach"), ("a", "b"), (0, 5), tmp_path)
    assert [cell.label for cell in grid.of("b", grid.suite.tasks[1])] == ["b reach seed 0", "b reach seed 5"]
