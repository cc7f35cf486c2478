"""Keep what a finished run showed: `python -m benchmarks.results RUN [RUN ...] [--out docs/results]`.

For each run directory: its episodes and evaluations as a small file `<name>.jsonl`, the learning curve as `<name>.png`, and a row
for the table in docs/results.md, printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from polydream.core.log import read_metrics
from polydream.eval.account import Run
from polydream.eval.curves import window_mean
from polydream.eval.report import curve_png

KEPT = ("run", "episode", "eval", "health")
HEAD = "| run | budget | seed | size, batch, ratio | training return, window | final evaluation | random play |"


def keep(run: Path, out: Path) -> str:
    """Write the small files of one run and return its row of the table."""
    rows = read_metrics(run)
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    name = run.name
    kept = [{k: v for k, v in row.items() if k != "time"} for row in rows if row["kind"] in KEPT]
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    curve_png(run, out / f"{name}.png")
    return f"| [{name}](results/{name}.png) | {row(cfg, rows, {part.part: part.rows for part in Run.read(run).parts})} |"


def row(cfg: dict[str, Any], rows: list[dict[str, Any]], parts: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """What the table says of a run, beside its name. parts: rows of each task of several, on the axis of its own steps."""
    step = max(r["step"] for r in rows)
    window = window_mean(rows)
    finals = {r["mode"]: r for r in rows if r["kind"] == "eval" and r["mode"] != "random"}
    # The last row of several tasks is their mean, which has no episodes of its own.
    told = {mode: f"{len(r['returns'])} episodes" if "returns" in r else "mean over tasks" for mode, r in finals.items()}
    evaluation = ", ".join(f"{r['return_mean']:.3g} ({mode}, {told[mode]})" for mode, r in finals.items())
    played = [f"{r['return_mean']:.3g}" for r in rows if r["kind"] == "eval" and r["mode"] == "random"]
    random = played[-1] if played else "not played"
    if apart := {task: window_mean(own) for task, own in parts.items()}:
        first = next(iter(apart.values()))
        training = ", ".join(f"{task} {w.mean:.3g}" for task, w in apart.items()) + f", ({first.start:,}, {first.end:,}] of each"
    else:
        training = f"{window.mean:.3g}, ({window.start:,}, {window.end:,}], {window.count} episodes"
    cells = [
        f"{step:,} steps",
        str(cfg["seed"]),
        f"{cfg['size']} {cfg['profile']}, {cfg['batch']} x {cfg['length']}, {cfg['ratio']:g}",
        training,
        evaluation or "none",
        random,
    ]
    return " | ".join(cells)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(HEAD, "|---|---|---|---|---|---|---|", sep="\n")
    for run in given.runs:
        print(keep(run, given.out))


if __name__ == "__main__":
    main()
