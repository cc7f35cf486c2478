"""metrics.jsonl is exact, survives kills and full disks, rewinds; MLflow gets all of it, late or twice, and can fail without harm."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydream.core.log import Log, mend, read_metrics, resend
from polydream.core.tracking import clean, clip, flatten


def quiet(tmp_path: Path, **options: Any) -> Log:
    return Log(tmp_path / "run", mlflow=False, **options)


# the file


def test_rows_are_read_back_as_written(tmp_path: Path) -> None:
    with quiet(tmp_path) as log:
        log.scalars(10, {"loss/dyn": 1.5, "count": np.int64(3), "third": torch.tensor(0.25), "list": np.array([1.0, 2.0]), "none": None})
        log.episode(12, np.float32(7.5), 100, env=1, success=True)
        log.health(12, "NaN")
    rows = read_metrics(tmp_path / "run")
    times = [row.pop("time") for row in rows]
    assert rows == [
        {"step": 10, "kind": "train", "loss/dyn": 1.5, "count": 3, "third": 0.25, "list": [1.0, 2.0], "none": None},
        {"step": 12, "kind": "episode", "return": 7.5, "length": 100, "env": 1, "success": True},
        {"step": 12, "kind": "health", "warning": "NaN"},
    ]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 60


def test_nonfinite_numbers_stay_legal_json_and_come_back(tmp_path: Path) -> None:
    with quiet(tmp_path) as log:
        log.scalars(1, {"a": math.nan, "b": math.inf, "c": [-math.inf, 1.0], "d": torch.tensor(float("nan"))})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / "run/metrics.jsonl").read_text(), parse_constant=refuse)
    row = read_metrics(tmp_path / "run/metrics.jsonl")[0]
    assert math.isnan(row["a"])
    assert math.isnan(row["d"])
    assert row["b"] == math.inf
    assert row["c"] == [-math.inf, 1.0]


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    log = quiet(tmp_path)
    for i in range(5):
        log.scalars(i, {"x": i})
        assert len(read_metrics(log.path)) == i + 1
    log.close()


def test_bad_rows_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    log = quiet(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        log.scalars(0, {}, kind="trian")
    with pytest.raises(ValueError, match="step"):
        log.scalars(0, {"step": 1})
    with pytest.raises(TypeError, match="'thing'"):
        log.scalars(0, {"thing": object()})
    with pytest.raises(ValueError, match="did you mean 'FINISHED'"):
        log.close("finish")
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        log.artifact(tmp_path / "gone.txt")
    assert read_metrics(log.path) == []
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.scalars(0, {})


def test_a_torn_last_line_is_left_out_and_cut_when_going_on(tmp_path: Path) -> None:
    with quiet(tmp_path) as log:
        log.scalars(1, {"x": 1})
        log.scalars(2, {"x": 2})
    whole = log.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        log.path.write_bytes(whole[:cut])
        ended = [n for n in (first, len(whole)) if cut >= n - 1]  # a row is whole when only its newline is missing
        assert [row["x"] for row in read_metrics(log.path)] == list(range(1, len(ended) + 1))
        assert mend(log.path) == len(ended)
        assert log.path.read_bytes() == whole[: ended[-1] if ended else 0]


def test_damage_elsewhere_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "time": 0, "kind": "train"}\n{"step\n{"step": 3, "time": 0, "kind": "train"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_going_on_keeps_rows_and_rewind_drops_what_comes_after(tmp_path: Path) -> None:
    with quiet(tmp_path) as log:
        for step in (10, 20, 30, 20, 40):  # rows need not be in order of steps
            log.scalars(step, {"x": step})
    with quiet(tmp_path) as log:
        assert log.step == 40
        assert log.rewind(50) == 0
        assert log.rewind(20) == 2
        assert log.step == 20
        log.scalars(30, {"x": -30})
    assert [row["x"] for row in read_metrics(log.path)] == [10, 20, 20, -30]


def test_a_refusing_disk_keeps_rows_in_memory(tmp_path: Path) -> None:
    said: list[str] = []
    log = quiet(tmp_path, say=said.append)
    log.scalars(1, {"x": 1})
    size = log.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        log.scalars(2, {"x": 2})
        log.scalars(3, {"x": 3})
        during = log.path.stat().st_size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert during == size
    assert len(said) == 1
    assert "metrics.jsonl" in said[0]
    log.scalars(4, {"x": 4})
    assert [row["x"] for row in read_metrics(log.path)] == [1, 2, 3, 4]
    log.close()


def test_the_context_manager_tells_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    monkeypatch.setattr(Log, "close", lambda self, status="FINISHED", grace=30.0: ends.append(status) or True)
    with quiet(tmp_path):
        pass
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), quiet(tmp_path):
            raise error
    assert ends == ["FINISHED", "FAILED", "KILLED", "KILLED"]


# names and values for MLflow


def test_metric_names_are_always_legal_and_stay_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert clean("train/loss/dyn") == "train/loss/dyn"
    names = ["a[0]", "a(0)", "a=b", "/abs", "../up", "a//b", "a/./b", "a\nb", "", ".", "..", "x" * 251, "x" * 252, "é/ü", "a:b", "a\tb"]
    cleaned = [clean(name) for name in names]
    assert len(set(cleaned)) == len(names)
    for name in cleaned:
        _validate_metric_name(name)
        assert len(name) <= 250


def test_params_are_flat_and_fit() -> None:
    assert flatten({"agent": {"rssm": {"deter": 512}, "horizon": 15}, "task": "a/b", "modes": ("sample", "mode")}) == {
        "agent.rssm.deter": "512",
        "agent.horizon": "15",
        "task": "a/b",
        "modes": "('sample', 'mode')",
    }
    assert clip("short", 6000) == "short"
    assert len(clip("x" * 7000, 6000)) == 6000
    assert clip("x" * 7000, 6000).endswith("config.yaml)")


# MLflow itself, on a real sqlite store


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a store that all tests of this file share, because making its tables takes seconds."""
    base = tmp_path_factory.getbasetemp() / "store"
    base.mkdir(exist_ok=True)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    monkeypatch.chdir(base)
    from polydream.core.tracking import silence

    silence()
    from mlflow.tracking import MlflowClient

    yield MlflowClient()


def only_run(store: Any, experiment: str) -> Any:
    runs = store.search_runs([store.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 1
    return runs[0]


def history(store: Any, run: Any, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.get_metric_history(run.info.run_id, key))


def test_mlflow_gets_everything(tmp_path: Path, store: Any) -> None:
    said: list[str] = []
    log = Log(
        tmp_path / "run",
        mlflow=True,
        experiment="all",
        run_name="one",
        params={"agent": {"horizon": 15}, "big": "y" * 7000},
        system=False,
        tags={"variant": "base"},
        say=said.append,
    )
    for i in range(1200):  # more than one request holds
        log.scalars(i, {"loss/a[0]": i / 2})
    log.scalars(7, {"mode": "sample", "return_mean": 3.0, "returns": [1.0, 5.0]}, "eval")
    log.episode(8, 12.5, 100)
    log.episode(8, 13.5, 100, env=1)
    log.scalars(9, {"version": 1.0, "command": "train"}, "run")
    (log.directory / "videos").mkdir()
    (log.directory / "videos/a.txt").write_text("film")
    log.artifact(log.directory / "videos/a.txt")
    log.artifact(log.directory / "videos")
    assert log.close("KILLED")
    run = only_run(store, "all")
    assert (run.info.status, run.info.run_name) == ("KILLED", "one")
    assert run.data.params["agent.horizon"] == "15"
    assert len(run.data.params["big"]) == 6000
    assert run.data.tags["variant"] == "base"
    assert history(store, run, clean("train/loss/a[0]")) == [(i, i / 2) for i in range(1200)]
    assert history(store, run, "episode/return") == [(8, 12.5), (8, 13.5)]
    assert set(run.data.metrics) == {clean("train/loss/a[0]"), "eval/sample/return_mean", "episode/return", "episode/length"}
    assert [f.path for f in store.list_artifacts(run.info.run_id, "videos")] == ["videos/a.txt"]
    assert said == []


def test_attaches_to_the_open_run_and_leaves_its_params(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = store.create_experiment("outer")
    outer = store.create_run(experiment).info.run_id
    store.log_param(outer, "steps", "1e5")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    said: list[str] = []
    log = Log(tmp_path / "run", mlflow=True, experiment="ignored", params={"steps": 100_000, "task": "a/b"}, system=False, say=said.append)
    log.scalars(1, {"x": 1.0})
    assert log.close()
    run = only_run(store, "outer")
    assert run.info.run_id == outer
    assert run.data.params == {"steps": "1e5", "task": "a/b"}
    assert run.data.metrics == {"train/x": 1.0}
    assert store.get_experiment_by_name("ignored") is None
    child = Log(tmp_path / "child", mlflow=True, experiment="outer", system=False, tags={"mlflow.parentRunId": outer}, say=said.append)
    assert child.close()
    runs = store.search_runs([experiment], "tags.mlflow.parentRunId = '" + outer + "'")
    assert len(runs) == 1
    assert runs[0].info.run_id != outer
    assert said == []


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(tmp_path: Path, store: Any) -> None:
    with Log(tmp_path / "run", mlflow=True, experiment="resumed", params={"lr": 1}, system=False) as log:
        for step in (1, 2, 3):
            log.scalars(step, {"x": step})
    with Log(tmp_path / "run", mlflow=True, experiment="resumed", params={"lr": 2, "new": 3}, system=False) as log:
        assert log.rewind(2) == 1
        log.scalars(4, {"x": 4})
    run = only_run(store, "resumed")
    assert history(store, run, "train/x") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert run.data.params == {"lr": "1", "new": "3"}
    assert run.info.status == "FINISHED"


def test_system_metrics_arrive(tmp_path: Path, store: Any) -> None:
    pytest.importorskip("psutil")
    log = Log(tmp_path / "run", mlflow=True, experiment="system", system=True)
    assert log.sync()
    deadline = time.monotonic() + 20
    while not any(k.startswith("system/") for k in only_run(store, "system").data.metrics):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert log.close()


def test_nothing_is_printed_into_the_users_face(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from polydream.core.log import Log\n"
        "log = Log(Path('run'), mlflow=True, experiment='e', params={'a': 1})\n"
        "log.scalars(1, {'x': 1}); assert log.close()\n"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment(root), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()  # MLflow's own default store, where nothing else is set


def environment(root: str, **extra: str) -> dict[str, str]:
    clean_environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "GIT_PYTHON"))}
    return clean_environment | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | extra


# MLflow failing


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_dead_server_costs_one_warning_and_nothing_is_lost(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = store.tracking_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{dead_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    log = Log(tmp_path / "run", mlflow=True, experiment="dead", params={"a": 1}, system=False, say=said.append)
    for step in range(10):
        log.scalars(step, {"x": step})
    assert not log.sync(timeout=3)
    assert not log.close("FAILED", grace=3)
    assert len(said) == 2  # that it failed, and how to send the rest
    assert "MLflow failed" in said[0]
    assert "resend" in said[1]
    rows = read_metrics(log.path)
    assert [row["x"] for row in rows if row["kind"] == "train"] == list(range(10))
    assert [row["warning"] for row in rows if row["kind"] == "health"] == said[:1]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", alive)
    assert resend(tmp_path / "run")
    run = only_run(store, "dead")
    assert history(store, run, "train/x") == [(step, float(step)) for step in range(10)]
    assert (run.info.status, run.data.params) == ("FAILED", {"a": "1"})


def test_a_server_that_hangs_holds_up_nobody(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        log = Log(tmp_path / "run", mlflow=True, experiment="hang", system=False, say=said.append)
        for step in range(100):
            log.scalars(step, {"x": step})
        assert not log.close(grace=0.5)
    assert len([row for row in read_metrics(log.path) if row["kind"] == "train"]) == 100
    assert any("resend" in line for line in said)


def test_an_outage_in_the_middle_heals_by_itself(tmp_path: Path, store: Any) -> None:
    said: list[str] = []
    log = Log(tmp_path / "run", mlflow=True, experiment="outage", system=False, say=said.append)
    log.scalars(1, {"x": 1})
    assert log.sync()
    database = Path(store.tracking_uri.removeprefix("sqlite:///"))
    with sqlite3.connect(database) as blocker:
        blocker.execute("alter table metrics rename to metrics_away")
    try:
        log.scalars(2, {"x": 2})
        assert not log.sync(timeout=2)
    finally:
        with sqlite3.connect(database) as blocker:
            blocker.execute("alter table metrics_away rename to metrics")
    log.scalars(3, {"x": 3})
    assert log.close()
    assert history(store, only_run(store, "outage"), "train/x") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(said) == 1


def test_resend_of_an_untracked_run_says_so(tmp_path: Path) -> None:
    quiet(tmp_path).close()
    with pytest.raises(FileNotFoundError, match="mlflow off"):
        resend(tmp_path / "run")
