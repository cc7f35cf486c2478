"""Train: a short real run, end to end. Environment steps and updates per second, and where the wall time goes.

    python -m benchmarks.train [--task dmc/walker_walk] [--size size1m] [--updates 60] [--set env.count=4] [--json FILE]

The loop is the one of `polydream train`, timed from outside: its parts' methods are wrapped. Time counts from the end of the
first `--warmup` updates (compilation, allocation) to the end of the last one; each part gets the time spent in itself,
without the parts that it calls. On a GPU the parts are waited for, so that each gets its own.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polydream.core.config import ConfigError
from polydream.core.presets import resolve
from polydream.core.run import RunConfig
from polydream.core.train import Trainer

from . import machine, rounds

PARTS = ("update", "acting", "environment", "replay", "rest")
TARGET = 0.9
"""Share of the wall time that should be spent inside the update."""


class Clock:
    """Seconds spent in each wrapped part itself; what no part claims is `rest`."""

    def __init__(self, device: str) -> None:
        self.device = device
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
            self.read()
            self._inside.append(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self.read()
                self._inside.pop()

        setattr(owner, name, timed)


def configuration(given: argparse.Namespace, folder: str) -> RunConfig:
    """The run: as on the command line, but without evaluation, tracking and checkpoints on the way."""
    quiet = {"ratio": given.ratio, "device": given.device, "threads": given.threads, "log.mlflow": False, "save_every": 0.0, "dir": folder}
    single = dict(text.partition("=")[::2] for text in given.set)
    return resolve({"task": given.task, "size": given.size}, quiet | single)


def measure(trainer: Trainer, warmup: int, updates: int) -> dict[str, Any]:
    """Run until that many updates are done; seconds by part, environment steps and updates of the measured stretch."""
    cfg = trainer.cfg
    rows = (cfg.warmup or cfg.batch * cfg.length) + math.ceil((warmup + updates) * cfg.batch * cfg.length / cfg.ratio)
    trainer.cfg = replace(cfg, steps=rows * trainer.spec.repeat)
    clock = Clock(str(trainer.device))
    clock.wrap(trainer.agent, "update", "update")
    clock.wrap(trainer, "_decide", "acting")
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


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how fast it went."""
    with TemporaryDirectory() as folder:
        cfg = configuration(given, folder)
        with Trainer(cfg) as trainer:
            found = measure(trainer, given.warmup, given.updates)
            device = str(trainer.device)
    wall = sum(found["seconds"].values())
    speeds = {f"{what} per second": found[what] / wall for what in ("updates", "environment steps")}
    shares = {part: seconds / wall for part, seconds in found["seconds"].items()}
    setup = {"task": given.task, "size": given.size, "ratio": given.ratio, "threads": given.threads, "set": given.set}
    return {"benchmark": "train", **setup, "machine": machine.describe(device), **found, "wall": wall, **speeds, "shares": shares}


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
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further options of the run, as on its command line")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    given = parser.parse_args()
    if given.warmup < 1 or given.updates < 1:
        parser.error("--warmup and --updates must be at least 1")
    try:
        result = run(given)
    except (ConfigError, KeyError) as error:
        parser.error(str(error.args[0]))
    rows = [{"part": part, "seconds": result["seconds"][part], "share": f"{result['shares'][part]:.1%}"} for part in PARTS]
    print(rounds.table(rows, ("part", "seconds", "share")))
    speeds = f"{result['updates per second']:.3g} updates and {result['environment steps per second']:.3g} environment steps per second"
    print(f"{speeds}; others used {result['others']:.2g} cores")
    print(f"{'met' if result['shares']['update'] >= TARGET else 'MISSED'}: at least {TARGET:.0%} of the wall time inside the update")
    rounds.write(result, given.json)


if __name__ == "__main__":
    main()
