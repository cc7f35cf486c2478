"""Every test starts in an empty folder of its own, on one CPU thread, away from the user's tracking server."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two threads of each of several processes are slower

import pytest


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the checkout, finds what another left, or attaches to an MLflow run that happens to be open."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The fault campaigns (tests/faults) as a table: cases that held, of how many."""
    ended = [r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "teardown"]
    rows = [row for report in ended for name, row in report.user_properties if name == "fault campaign"]
    if rows:
        terminalreporter.section(f"faults, {'full' if os.environ.get('POLYDREAM_FAULTS') == 'full' else 'short'} lane")
        for campaign, held, cases, remark in sorted(rows):
            terminalreporter.write_line(f"{campaign:70} {held:4} of {cases:4}  {remark}")
        terminalreporter.write_line(f"{'all of these':70} {sum(r[1] for r in rows):4} of {sum(r[2] for r in rows):4}")
