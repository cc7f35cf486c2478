"""Time of a training step beside tracking servers that fail: `python -m tests.faults.pace`. Told, not judged.

Every case trains in a process of its own. They take turns of a few steps, so that a machine that grows slower does so for all, and
each turn is compared with those of the two that do not track at all. What these two differ by is what cannot be told apart.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from polydream.core.train import Trainer

from .harness import child, ended, tiny
from .test_tracking import Outage, free_port

OFF = ("no tracking", "no tracking, again")
CASES = (OFF[0], "refuses at start", "500 for a while", "hangs", "401", "closes after accept", OFF[1])
TURN, WARM = 8, 40  # steps, each with an update


def life(place: Path, pipe: Connection, tracked: bool) -> None:
    """Train by turns; answer each with its median step in milliseconds."""
    cfg = tiny(place, steps=10**6, ratio=16.0, warmup=20, log__mlflow=tracked, log__system=False, log__every=5)
    with Trainer(cfg) as trainer:
        trainer.log.say = lambda text: None
        while count := pipe.recv():
            times = []
            for _ in range(count):
                begun = time.perf_counter()
                trainer.collect()
                for _ in range(trainer._due()):
                    trainer.learn()
                trainer._log_training()
                times.append(1000 * (time.perf_counter() - begun))
            pipe.send(statistics.median(times))
        os._exit(0)  # not waiting for the server


def main(turns: int) -> None:
    """Print each case's median, and the median of its turns' ratios to those of the two that do not track."""
    import mlflow.tracking  # noqa: F401  otherwise each process imports it while it trains

    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
    found: dict[str, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        pipes, children, outages = {}, [], []
        for case in CASES:
            place = Path(folder) / case.replace(" ", "-")
            place.mkdir()
            outages.append(Outage(place, free_port()))
            outages[-1].begin(case)
            os.environ["MLFLOW_TRACKING_URI"] = outages[-1].uri
            pipes[case], theirs = Pipe()
            tracked = case not in OFF
            children.append(child(lambda place=place, theirs=theirs, tracked=tracked: life(place / "run", theirs, tracked)))  # type: ignore[misc]
        for turn in range(-1, turns):
            for case in CASES[:: 1 if turn % 2 else -1]:
                pipes[case].send(WARM if turn < 0 else TURN)
                found[case].append(pipes[case].recv())
        for case in CASES:
            pipes[case].send(0)
        assert [ended(pid) for pid in children] == [0] * len(CASES)
        for outage in outages:
            outage.end()
    base = [(a + b) / 2 for a, b in zip(*(found[case][1:] for case in OFF), strict=True)]
    for case, times in found.items():
        ratio = statistics.median(t / b for t, b in zip(times[1:], base, strict=True))
        print(f"{case:22} {statistics.median(times[1:]):7.2f} ms, {100 * (ratio - 1):+.1f} %, {turns} turns of {TURN} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
