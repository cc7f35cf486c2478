"""Train: a short real run, end to end. Environment steps and updates per second, and where the wall time goes.

    python -m benchmarks.train [--task dmc/walker_walk] [--size size1m] [--updates 60] [--set env.count=4] [--json FILE]
    python -m benchmarks.train --ahead 0 4 --rounds 3

The loop is the one of `polydream train`, timed from outside: its parts' methods are wrapped. Time counts from the end of the
first `--warmup` updates (compilation, allocation) to the end of the last one; each part gets the time spent in itself,
without the parts that it calls. On a GPU the parts are waited for, so that each gets its own. Of what a flight does beside the
updates (`env.ahead`) nothing is booked but the time the learner waits for its landing: `waiting`. Several numbers with `--ahead`
take turns, a whole run each, and are compared.
"""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from polydream.core.config import ConfigError
from polydream.core.presets import resolve
from polydream.core.run import RunConfig
from polydream.core.train import Trainer

from . import machine, rounds

PARTS = ("update", "acting", "environment", "replay", "waiting", "rest")
SPEEDS = ("updates per second", "environment steps per second")
TARGET = 0.9
"""Share of the wall time that should be spent inside the update."""


class Clock:
    """Seconds that this thread spends in each wrapped part itself; what no part claims is `rest`. Other threads are not timed."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._owner = threading.get_ident()
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._inside = ["rest"]
        self._since = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Totals so far, by part."""
        machine.synchronize(self.device)
        now = time.perf_counter()
        self._spent[self._inside[-1]] += now - self._since
        self._since = now
        return dict(self._spent)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Let every call of a method of `owner` be booked to `part`."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._owner:
                return inner(*args, **kwargs)
            self.read()
            self._inside.append(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self.read()
                self._inside.pop()

        setattr(owner, name, timed)


def configuration(given: argparse.Namespace, folder: str, ahead: int = 0) -> RunConfig:
    """The run: as on the command line, but without evaluation, tracking and checkpoints on the way."""
    quiet = {"ratio": given.ratio, "device": given.device, "threads": given.threads, "log.mlflow": False, "save_every": 0.0, "dir": folder}
    single = dict(text.partition("=")[::2] for text in given.set)
    return resolve({"task": given.task, "size": given.size}, quiet | {"env.ahead": ahead} | single)


def measure(trainer: Trainer, warmup: int, updates: int) -> dict[str, Any]:
    """Run until that many updates are done; seconds by part, environment steps and updates of the measured stretch."""
    cfg = trainer.cfg
    rows = (cfg.warmup or cfg.batch * cfg.length) + math.ceil((warmup + updates) * cfg.batch * cfg.length / cfg.ratio)
    rows += 2 * cfg.env.ahead * cfg.env.count  # in the air, or landed and not yet learned from
    trainer.cfg = replace(cfg, steps=rows * trainer.spec.repeat)
    clock = Clock(str(trainer.device))
    clock.wrap(trainer.agent, "update", "update")
    clock.wrap(trainer.collector, "decide", "acting")
    clock.wrap(trainer, "land", "waiting")
    clock.wrap(trainer.envs, "step", "environment")
    clock.wrap(trainer.batches, "next", "replay")
    for name in ("add", "write"):
        clock.wrap(trainer.replay, name, "replay")
    learn, marks = trainer.learn, []

    def noted() -> None:
        learn()
        if warmup <= trainer.count.updates <= warmup + updates:
            marks.append((trainer.count.updates, trainer.step, clock.read()))

    trainer.learn = noted  # type: ignore[method-assign]
    others = machine.Others()
    trainer.run()
    (first, begin, before), (last, end, after) = marks[0], marks[-1]
    spent = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in PARTS}
    return {"seconds": spent, "updates": last - first, "environment steps": end - begin, "others": others.cores()}


def run(given: argparse.Namespace, ahead: int = 0) -> dict[str, Any]:
    """Train, and say how fast it went."""
    with TemporaryDirectory() as folder:
        cfg = configuration(given, folder, ahead)
        with Trainer(cfg) as trainer:
            found = measure(trainer, given.warmup, given.updates)
            device = str(trainer.device)
    wall = sum(found["seconds"].values())
    speeds = {speed: found[speed.removesuffix(" per second")] / wall for speed in SPEEDS}
    shares = {part: seconds / wall for part, seconds in found["seconds"].items()}
    setup = {"task": given.task, "size": given.size, "ratio": given.ratio, "threads": given.threads, "set": given.set, "ahead": ahead}
    return {"benchmark": "train", **setup, "machine": machine.describe(device), **found, "wall": wall, **speeds, "shares": shares}


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Runs with each of `--ahead` in turn, and one row for each: medians over rounds, and how much faster than the first of a round."""
    runs: dict[int, list[dict[str, Any]]] = {ahead: [] for ahead in given.ahead}
    for number in range(given.rounds):
        for ahead, found in runs.items():
            found.append(run(given, ahead))
            print(f"round {number + 1}, ahead {ahead}: {found[-1][SPEEDS[0]]:.3g} updates per second", flush=True)
    first = runs[given.ahead[0]]
    rows = []
    for ahead, found in runs.items():
        row: dict[str, Any] = {"ahead": ahead} | {key: median(f[key] for f in found) for key in (*SPEEDS, "others")}
        row |= {part: f"{median(f['shares'][part] for f in found):.1%}" for part in PARTS}
        row["times as fast"] = median(a[SPEEDS[0]] / b[SPEEDS[0]] for a, b in zip(found, first, strict=True))
        rows.append(row)
    return {"benchmark": "train", "rounds": given.rounds, "rows": rows, "runs": [f for found in runs.values() for f in found]}


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="dmc/walker_walk")
    parser.add_argument("--size", default="size1m")
    parser.add_argument("--ratio", type=float, default=512.0, help="replayed steps trained on per decision")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3, help="first updates that do not count; at least 1")
    parser.add_argument("--updates", type=int, default=60, help="updates that do")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0], help="env.ahead: steps taken beside updates; several are compared")
    parser.add_argument("--rounds", type=int, default=1, help="times that each of several has its turn")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further options of the run, as on its command line")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    given = parser.parse_args()
    if min(given.warmup, given.updates, given.rounds) < 1:
        parser.error("--warmup, --updates and --rounds must be at least 1")
    try:
        result = compare(given) if len(given.ahead) > 1 else run(given, given.ahead[0])
    except (ConfigError, KeyError) as error:
        parser.error(str(error.args[0]))
    if len(given.ahead) > 1:
        print(rounds.table(result["rows"], ("ahead", *SPEEDS, "times as fast", *PARTS, "others")))
    else:
        show(result)
    rounds.write(result, given.json)


def show(result: Mapping[str, Any]) -> None:
    """One run: a row for each part."""
    rows = [{"part": part, "seconds": result["seconds"][part], "share": f"{result['shares'][part]:.1%}"} for part in PARTS]
    print(rounds.table(rows, ("part", "seconds", "share")))
    speeds = f"{result['updates per second']:.3g} updates and {result['environment steps per second']:.3g} environment steps per second"
    print(f"{speeds}; others used {result['others']:.2g} cores")
    print(f"{'met' if result['shares']['update'] >= TARGET else 'MISSED'}: at least {TARGET:.0%} of the wall time inside the update")


if __name__ == "__main__":
    main()
