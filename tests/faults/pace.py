"""Time of a training step beside tracking servers that fail: `python -m tests.faults.pace`. Told, not judged.

Every case of the campaign (test_tracking.py) trains in a process of its own. They take turns of a few steps, so that a machine that
grows slower does so for all, and each turn is compared with those of the two that do not track at all. What these two differ by is
what cannot be told apart. Faults that come midway begin after the first turn, which is not counted.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from polydream.core.train import Trainer

from .harness import child, ended, tiny
from .test_tracking import SERVER, SQLITE, Fault, Outage, full, locked, mlflow_server

OFF = (Fault("no tracking", False, False), Fault("no tracking, again", False, False))
CASES = (OFF[0], *SERVER, *SQLITE, OFF[1])
TURN, WARM = 8, 40  # steps, each with an update


def life(place: Path, pipe: Connection, tracked: bool, database: Path) -> None:
    """Train by turns; answer each with its median step in milliseconds. Told "full", go on with a database that cannot grow."""
    cfg = tiny(place, steps=10**6, ratio=16.0, warmup=20, log__mlflow=tracked, log__system=False, log__every=5)
    with Trainer(cfg) as trainer, ExitStack() as failing:
        trainer.log.say = lambda text: None
        while count := pipe.recv():
            if count == "full":
                failing.enter_context(full(database))
                continue
            times = []
            for _ in range(count):
                begun = time.perf_counter()
                trainer.collect()
                for _ in range(trainer._due()):
                    trainer.learn()
                trainer._log_training()
                times.append(1000 * (time.perf_counter() - begun))
            if tracked and count == WARM:
                trainer.log.sync(20.0)  # where the server works, it has the first rows
            pipe.send(statistics.median(times))
        os._exit(0)  # not waiting for the server


class Entrant:
    """One case: its process, and the fault that befalls it."""

    def __init__(self, fault: Fault, folder: Path, behind: int, exits: ExitStack) -> None:
        self.fault, self.exits, self.times = fault, exits, list[float]()
        self.place = folder / fault.name.replace(" ", "-").replace(":", "")
        self.place.mkdir()
        self.database = self.place / "mlflow.db"
        self.outage = Outage(self.place, behind) if fault in SERVER else None
        if self.outage and fault.at_start:
            self.outage.begin(fault.name)
        os.environ["MLFLOW_TRACKING_URI"] = self.outage.uri if self.outage else f"sqlite:///{self.database}"
        self.pipe, theirs = Pipe()
        self.pid = child(lambda: life(self.place / "run", theirs, fault not in OFF, self.database))

    def befall(self) -> None:
        """Begin the fault, where it did not begin at once."""
        if self.outage and not self.fault.at_start:
            self.outage.begin(self.fault.name)
        elif self.fault.name == "sqlite locked":
            self.exits.enter_context(locked(self.database))
        elif self.fault in SQLITE:
            self.pipe.send("full")

    def turn(self, steps: int) -> None:
        """Let it train some steps, the others standing still."""
        self.pipe.send(steps)
        self.times.append(self.pipe.recv())

    def end(self) -> None:
        """End its process and its server's door."""
        self.pipe.send(0)
        assert ended(self.pid) == 0
        if self.outage:
            self.outage.end()


def main(turns: int) -> None:
    """Print each case's median, and the median of its turns' ratios to those of the two that do not track."""
    import mlflow.tracking  # noqa: F401  otherwise each process imports it while it trains

    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        behind, _ = exits.enter_context(mlflow_server(Path(folder)))
        entrants = [Entrant(fault, Path(folder), behind, exits) for fault in CASES]
        for entrant in entrants:
            entrant.turn(WARM)
            entrant.befall()
        for turn in range(turns):
            for entrant in entrants[:: 1 if turn % 2 else -1]:
                entrant.turn(TURN)
        for entrant in entrants:
            entrant.end()
    base = [(a + b) / 2 for a, b in zip(entrants[0].times[1:], entrants[-1].times[1:], strict=True)]
    for entrant in entrants:
        ratio = statistics.median(t / b for t, b in zip(entrant.times[1:], base, strict=True))
        shown = f"{statistics.median(entrant.times[1:]):7.2f} ms, {100 * (ratio - 1):+.1f} %"
        print(f"{entrant.fault.name:22} {shown}, {turns} turns of {TURN} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
