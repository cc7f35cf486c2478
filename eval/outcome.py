"""How a run over several tasks came out, as text for the end of it: the report's table in short."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .account import Run

COLUMNS = {"random": "random play", "sample": "sampled actions", "mode": "greedy actions"}


def outcome(run_dir: Path) -> str:
    """The last evaluation of each task: return, score (0 to 1) and success, random play beside it; then means and the worst task.

    Nothing where the run has one task or no evaluation.
    """
    run = Run.read(run_dir)
    names = list(dict.fromkeys(str(row["task"]) for row in run.rows if row["kind"] == "eval" and row.get("task") is not None))
    played = [mode for mode in COLUMNS if any(run.evaluation(mode, name) for name in names)]
    if not names:
        return ""
    rows = [["task", *(COLUMNS[mode] for mode in played)]]
    rows += [[name, *(_cell(run.evaluation(mode, name)) for mode in played)] for name in names]
    rows.append(["mean of tasks", *(_cell(run.evaluation(mode)) for mode in played)])
    rows.append(["worst task", *(_worst(run.evaluation(mode)) for mode in played)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not played"
    success = f", success {row['success_mean']:.0%}" if "success_mean" in row else ""
    return f"{row['return_mean']:.3g} (score {row['score_mean']:.2f}{success})"


def _worst(row: Mapping[str, Any] | None) -> str:
    return f"{row['worst']}, score {row['score_worst']:.2f}" if row else "not played"
