"""The runner, with real processes: resuming, retrying, adopting, stopping; one failing cell never stops the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from polydream.core.log import FILE
from polydream.eval import runner
from polydream.eval.board import Board
from polydream.eval.grid import DONE, FAILED, OUTPUT, WAITING, Cell, Glance, Grid, identity
from polydream.eval.runner import Local, judge

from .benches import finish, small_grid


class Scripted(Local):
    """Cells as processes that run a script of the test instead of training; everything else is the real thing."""

    def __init__(self, script: str, **more: object) -> None:
        super().__init__(2, **more)  # type: ignore[arg-type]
        self.script, self.most = script, 0

    def start(self, cell: Cell) -> None:
        code = f"cell, variant, seed = {str(cell.directory)!r}, {cell.variant!r}, {cell.seed}\n{self.script}"
        os.environ["SCRIPT"] = code
        super().start(cell)
        self.most = max(self.most, len(self._running))


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(self: Cell) -> list[str]:
        return [sys.executable, "-c", "import os; exec(os.environ['SCRIPT'])"]

    monkeypatch.setattr(Cell, "command", command)
    monkeypatch.setattr(runner, "PERIOD", 0.02)


def quiet(_: Mapping[Cell, Glance]) -> None:
    """No table."""


NOTE = "open(cell + '/ran', 'a').write('x')\n"


def times(cell: Cell) -> int:
    path = cell.directory / "ran"
    return len(path.read_text()) if path.is_file() else 0


def test_all_cells_run_once_two_at_a_time(tmp_path: Path) -> None:
    grid, backend = small_grid(tmp_path), Scripted(NOTE)
    assert runner.run(grid, backend, quiet)
    assert [times(cell) for cell in grid.cells] == [1] * 8
    assert backend.most == 2
    assert {cell.state for cell in grid.cells} == {DONE}
    assert runner.run(grid, Scripted("raise SystemExit('again')"), quiet)  # nothing is left to do
    assert [times(cell) for cell in grid.cells] == [1] * 8


def test_a_failing_cell_is_tried_twice_and_stops_nobody(tmp_path: Path) -> None:
    grid, said = small_grid(tmp_path), list[str]()
    script = NOTE + "if variant == 'other' and seed == 1: raise RuntimeError('no such luck')"
    assert not runner.run(grid, Scripted(script), quiet, said.append)
    for cell in grid.cells:
        bad = cell.variant == "other" and cell.seed == 1
        assert (cell.state, times(cell)) == ((FAILED, 2) if bad else (DONE, 1))
        if bad:
            assert cell.reason == "RuntimeError: no such luck" and cell.read()["exit"] == 1
    assert sum("it is tried once more" in text for text in said) == 2
    assert sum("given up" in text and "no such luck" in text for text in said) == 2
    runner.forgive(grid)
    assert runner.run(grid, Scripted(NOTE), quiet)
    assert max(times(cell) for cell in grid.cells) == 3


def test_a_crash_that_passes_is_healed_by_the_second_attempt(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, seeds=1)
    script = NOTE + "if len(open(cell + '/ran').read()) == 1: raise SystemExit(3)"
    assert runner.run(grid, Scripted(script), quiet, lambda _: None)
    assert [times(cell) for cell in grid.cells] == [2] * 4
    assert (grid.cells[0].directory / OUTPUT).read_text().count("$ ") == 2


def test_an_attempt_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    (cell, *_) = small_grid(tmp_path).cells
    finish(cell, 1.0)
    cell.write(done=False)
    (cell.directory / "config.yaml").touch()
    runner.prepare(cell)
    assert not (cell.directory / "metrics.jsonl").exists() and not (cell.directory / "config.yaml").exists()
    assert cell.read()["attempts"] == 2


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, seeds=1)
    assert not runner.run(grid, Scripted(NOTE + "raise SystemExit(2 if variant == 'other' else 0)"), quiet, lambda _: None)
    assert [times(cell) for cell in grid.cells] == [1] * 4
    assert [cell.state for cell in grid.cells] == [DONE, FAILED, DONE, FAILED]


def test_a_checkpoint_that_cannot_be_gone_on_from_is_given_up(tmp_path: Path) -> None:
    grid = Grid(small_grid(tmp_path).suite.only(("chain",)), ("base",), (0,), tmp_path)
    (cell,) = grid.cells
    saved = cell.directory / "checkpoints" / "000000000500.001"
    saved.mkdir(parents=True)
    (saved / "manifest.json").touch()
    (cell.directory / "config.yaml").touch()
    script = NOTE + "import os\nassert not os.path.exists(cell + '/checkpoints'), 'damaged'"
    assert runner.run(grid, Scripted(script), quiet, lambda _: None)
    assert times(cell) == 2 and not saved.exists()


def test_interrupting_stops_the_cells_and_the_next_call_goes_on(tmp_path: Path) -> None:
    grid = small_grid(tmp_path)
    slow = NOTE + "import time, signal\nsignal.signal(signal.SIGTERM, lambda *_: (open(cell + '/saved', 'w'), exit(143)))\n"
    slow += "open(cell + '/ready', 'w')\nwhile seed == 1: time.sleep(0.01)"
    backend = Scripted(slow)

    def interrupt(running: Mapping[Cell, Glance]) -> None:
        if len(running) == 2 and all(cell.seed == 1 and (cell.directory / "ready").exists() for cell in running):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(grid, backend, interrupt)
    stopped = [cell for cell in grid.cells if (cell.directory / "saved").exists()]
    assert len(stopped) == 2 and {cell.state for cell in stopped} == {WAITING}
    assert sum(cell.state == DONE for cell in grid.cells) == 4
    assert runner.run(grid, Scripted(NOTE), quiet)
    assert {cell: times(cell) for cell in grid.cells} == {cell: 2 if cell in stopped else 1 for cell in grid.cells}


def test_a_process_left_by_a_killed_runner_is_watched_not_started_again(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, ("sb3-ppo",), seeds=1)
    first, second = grid.cells
    orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first.write(process=identity(orphan.pid), command=first.words)

    def release(running: Mapping[Cell, Glance]) -> None:
        if second.state == DONE and orphan.poll() is None:
            finish(first, 1.0)
            first.write(done=False)
            orphan.communicate(b"\n")

    assert runner.run(grid, Scripted(NOTE), release)
    assert times(first) == 0 and times(second) == 1 and first.state == DONE


def test_a_vanished_cell_is_no_crash_until_it_happens_too_often(tmp_path: Path) -> None:
    (cell, *_) = small_grid(tmp_path).cells
    states = [judge(cell, runner.LOST) for _ in range(runner.LOSSES)]
    assert set(states) == {WAITING} and cell.read()["losses"] == runner.LOSSES - 1 and cell.read()["crashes"] == 1
    assert judge(cell, runner.LOST) == FAILED


def test_cores_and_devices_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "outer")
    seen = "import json, os; json.dump({k: os.environ.get(k) for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'MLFLOW_RUN_ID', 'X')}, "
    seen += "open(cell + '/env.json', 'w')); import time; time.sleep(0.3)"
    grid = small_grid(tmp_path, seeds=1)
    assert runner.run(grid, Scripted(seen, threads=3, devices=("4", "7"), environment={"MLFLOW_RUN_ID": "", "X": "y"}), quiet)
    found = [json.loads((cell.directory / "env.json").read_text()) for cell in grid.cells]
    assert {(f["OMP_NUM_THREADS"], f["MLFLOW_RUN_ID"], f["X"]) for f in found} == {("3", None, "y")}
    assert {f["CUDA_VISIBLE_DEVICES"] for f in found} == {"4", "7"}
    with pytest.raises(ValueError, match="at least 1"):
        Local(0)


def test_the_board_tells_states_scores_and_time_left(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    grid: Grid = small_grid(tmp_path)
    done, running = grid.cells[:2]
    finish(done, 3.0)
    grid.cells[2].write(crashes=2)
    out = StringIO()
    board = Board(grid, Console(file=out, width=200), every=0.0)
    at = {running: Glance(400, 2.5, 10.0)}
    states = board.states(at)
    assert board.left(states, 1) == pytest.approx(60.0 * 6)  # a done cell took 60 s; six are left
    assert board.line(states, at) == (
        "1 of 8 cells done | 1 running | 5 waiting | 1 failed | about 6 min 00 s left | other chain seed 0 at 400, 2.5"
    )
    Console(file=out, width=200).print(board.table(states, at))
    text = out.getvalue()
    assert "400/1,000" in text and "1 min 00 s" in text and "failed" in text and "1,000/1,000" in text
    with board:
        board.show(at)
    assert out.getvalue().count("1 of 8 cells done") == 1


def test_the_clock_of_a_cell_adds_up_over_attempts(tmp_path: Path) -> None:
    (cell, *_) = small_grid(tmp_path).cells
    cell.directory.mkdir(parents=True)
    rows = [("run", 1000.0), ("episode", 1040.0), ("run", 9000.0), ("episode", 9060.5)]
    (cell.directory / FILE).write_text("".join(json.dumps({"step": 0, "time": time, "kind": kind}) + "\n" for kind, time in rows))
    cell.write(seconds=7.0)
    judge(cell, 0)  # long after, on whatever machine
    assert cell.read()["seconds"] == 100.5
