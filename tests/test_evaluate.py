"""`polydream eval` repeats the evaluation that was made in the run, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polydream.__main__ import main
from polydream.core.log import read_metrics
from polydream.core.presets import resolve
from polydream.core.train import train
from polydream.eval.judge import Judge


@pytest.mark.parametrize(("task", "first"), [("dmc/cartpole_balance", "sample"), ("world/chain", "mode")])
def test_the_evaluation_of_a_run_is_repeated(task: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"dir": str(tmp_path / "run"), "log.mlflow": False, "eval.video": False, "steps": 120, "eval.episodes": 3}
    values |= {
        "eval.baseline": 1,
        "eval.modes": "mode,sample" if first == "mode" else "sample,mode",
        "env.repeat": 20 if "dmc" in task else 0,
    }
    run = train(resolve({"preset": "smoke", "task": task}, values), Judge())
    rows = [row for row in read_metrics(run) if row["kind"] == "eval" and row["step"] >= 120]
    found, evaluate = [], Judge.evaluate

    def watched(*args: Any, **kwargs: Any) -> Any:
        found.append(evaluate(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(Judge, "evaluate", watched)
    for words, mode in (([], first), (["--mode", "sample"], "sample"), (["--mode", "mode"], "mode")):
        assert main(["eval", str(run), *words]) == 0
        (told,) = (row for row in rows if row["mode"] == mode)
        assert found[-1].mode == mode and list(found[-1].returns) == told["returns"]
    assert len({tuple(result.returns) for result in found}) > 1 or task == "world/chain", "the modes differ where returns are numbers"
