"""The command `benchmark`, from words to report, with real training where that matters."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import yaml

from polydream.__main__ import main
from polydream.benchmark import _grid, _seeds, benchmark
from polydream.core.config import ConfigError
from polydream.eval.lineage import Lineage, absolute
from polydream.eval.suites import find

from .benches import finished

ROOT = Path(__file__).parents[2]
SMOKE = [
    "--preset",
    "smoke",
    "--steps",
    "150",
    "--eval.episodes",
    "1",
    "--eval.baseline",
    "1",
    "--eval.video",
    "false",
    "--log.system",
    "false",
]


def test_seeds_are_a_number_or_a_list() -> None:
    suite = find("worlds")
    assert _seeds("", suite) == (0, 1, 2) and _seeds("2", suite) == (0, 1)
    assert _seeds("3,", suite) == (3,) and _seeds("3,7", suite) == (3, 7)
    for bad in ("0", "3,3", "-1", "-1,2"):
        with pytest.raises(ConfigError, match="seeds wants"):
            _seeds(bad, suite)


def test_the_directory_is_the_same_for_the_same_command() -> None:
    assert _grid({}, {}).directory == Path("runs/benchmark-worlds").absolute()
    assert (
        _grid({"suite": "dmc-proprio", "tasks": ("cheetah_run",), "variants": ("a", "b"), "seeds": "2"}, {}).cells[3].label
        == "b cheetah_run seed 1"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "world"], "did you mean 'worlds'"),
        (["--variants", "bose"], "no variant named 'bose'"),
        (["--variants", "sb3-sak"], "did you mean 'sb3-sac'"),
        (["--variants", "base,base"], "named twice"),
        (["--tasks", "chian"], "did you mean 'chain'"),
        (["--variant", "base"], "use --variants"),
        (["--agent.rssm.detr", "3"], "did you mean 'agent.rssm.deter'"),
        (["--env.repeat", "zero"], "env.repeat wants an integer"),
        (["--suite", "minecraft"], "needs minerl"),
        (["--jobs", "0"], "at least 1"),
        (["extra"], "unexpected 'extra'"),
    ],
)
def test_bad_input_is_found_before_anything_runs(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        benchmark([*words, "--log.mlflow", "false"])
    assert not list(tmp_path.glob("runs/*/*/*/*"))


def test_dry_run_prints_commands_that_can_be_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["benchmark", "--dir", str(tmp_path / "b"), "--variants", "base,sb3-ppo", "--seeds", "5,", "--tasks", "reach", "--dry-run"])
        == 0
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("python -m polydream train --variant base --task world/reach --seed 5 --steps 2500 --preset laptop")
    assert second.startswith("python -m polydream baseline --method sb3-ppo --task world/reach --seed 5 --steps 2500 --eval.every 0")
    assert not (tmp_path / "b").exists()


def test_report_only_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = finished(tmp_path / "b")
    suite = tmp_path / "small.yaml"
    tasks = [{"task": entry.task, "high": 10.0} for entry in grid.suite.tasks]
    suite.write_text(yaml.safe_dump({"steps": 1000, "window": 400, "tasks": tasks}))
    words = ["benchmark", "--suite", str(suite), "--variants", "base,other", "--seeds", "2", "--dir", str(tmp_path / "b"), "--report-only"]
    assert main(words) == 0
    assert "other is better than base" in (tmp_path / "b" / "report.html").read_text()
    assert main(["benchmark", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("--suite", "--variants", "--seeds", "--cluster", "--retry", "sb3-sac"):
        assert name in out


def test_mlproject_has_the_entry_point() -> None:
    entry = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["benchmark"]
    assert set(entry["parameters"]) == {"suite", "variants", "seeds"}
    assert entry["command"].startswith("python -m polydream benchmark ")


def test_a_relative_store_is_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in ("sqlite:////a/mlflow.db", "http://server:5000", "file:///x"):
        assert absolute(uri) == uri


def test_without_mlflow_cells_get_no_parent(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path, name="x", experiment="e", params={}, enabled=False)
    assert lineage.environment == {"MLFLOW_RUN_ID": ""}
    lineage.claim([])
    lineage.close({"a": 1.0}, tmp_path / "none", "FINISHED")


@pytest.mark.slow
def test_a_real_benchmark_has_one_parent_and_its_children_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One world, two seeds of `base`, real training in processes, MLflow in sqlite; then the same command again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = ["benchmark", "--tasks", "chain", "--seeds", "2", "--dir", "b", *SMOKE]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 of 2 cells done" in out and "report:" in out
    cells = sorted((tmp_path / "b").glob("base/chain/*/cell.json"))
    assert [json.loads(path.read_text())["attempts"] for path in cells] == [1, 1]
    assert "base reaches a normalised IQM" in (tmp_path / "b" / "report.html").read_text()
    query = "select r.name, r.status, t.value from runs r left join tags t on t.run_uuid = r.run_uuid and t.key = 'mlflow.parentRunId'"
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = list(store.execute(query))
        parent = json.loads((tmp_path / "b" / "parent.json").read_text())["run_id"]
        (value,) = store.execute("select value from latest_metrics where run_uuid = ? and key = 'sample/base/IQM'", (parent,)).fetchone()
    assert sorted(runs[1:]) == [("base-chain-0", "FINISHED", parent), ("base-chain-1", "FINISHED", parent)]
    assert runs[0][1:] == ("FINISHED", None)
    rows = [json.loads(line) for line in (cells[0].parent / "metrics.jsonl").read_text().splitlines()]
    assert -1 < value < 1.01 and rows[-1]["step"] >= 150
    assert main(words) == 0
    assert [json.loads(path.read_text())["attempts"] for path in cells] == [1, 1]
    assert "2 of them done" in capsys.readouterr().out
