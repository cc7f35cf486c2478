"""`--log.trace` writes a trace and says what an update spends its time on."""

import json
import re
from pathlib import Path

from polydream.core.presets import resolve
from polydream.core.trace import PARTS, SKIPPED
from polydream.core.train import train


def test_writes_the_trace_and_the_most_expensive_parts(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    values = {"dir": str(tmp_path / "run"), "log.mlflow": "false", "log.trace": "4", "steps": "200", "ratio": "16"}
    directory = train(resolve({"task": "world/reach", "preset": "smoke"}, values))
    events = json.loads((directory / "trace.json").read_text())["traceEvents"]
    for name in (*PARTS, "update"):
        assert sum(e.get("name") == name and e.get("ph") == "X" for e in events) == 4, name
    table = (directory / "trace.txt").read_text()
    shown = capsys.readouterr().out
    assert all(line in shown for line in table.splitlines())
    parts, operations = table.split("\n\n")
    shares = [float(x) for x in re.findall(r"([\d.]+)%", parts)]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.5
    assert len(operations.splitlines()) == 6 and "aten::" in operations


def test_a_run_that_ends_before_its_trace_does_leaves_none(tmp_path: Path) -> None:
    values = {"dir": str(tmp_path / "run"), "log.mlflow": "false", "log.trace": "1000", "steps": "150", "ratio": "8"}
    directory = train(resolve({"task": "world/reach", "preset": "smoke"}, values))
    assert SKIPPED < 1000 and (directory / "metrics.jsonl").exists()
