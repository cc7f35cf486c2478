"""A crash at every system call of a save leaves a run that goes on: the newest finished checkpoint, and nothing else lying about."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polydream.core import checkpoint, saving
from polydream.core.log import Log
from polydream.core.saving import Saver
from polydream.core.train import Trainer

from .harness import FULL, child, contents, ended, record, stray, tiny

CALLS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "ftruncate")
CRASHED = 9


class Crash:
    """Ends the process at the k-th call that changes or syncs the disk; k = -1 only counts."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def now(self) -> bool:
        self.count += 1
        return self.count - 1 == self.at

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.wrap(getattr(os, name)))
        original = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            handle = original(file, mode, *args, **options)
            return Torn(handle, self) if "w" in mode else handle

        io.open = opened  # type: ignore[assignment]  # what Path.open calls

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def crashing(*args: Any, **options: Any) -> Any:
            if self.now():
                os._exit(CRASHED)
            return call(*args, **options)

        return crashing


class Torn:
    """A file that is half written when the crash comes."""

    def __init__(self, file: Any, crash: Crash) -> None:
        self.file, self.crash = file, crash

    def write(self, content: bytes) -> int:
        if self.crash.now():
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            os._exit(CRASHED)
        return int(self.file.write(content))

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


SCENARIOS = {
    "first": {"saves": 0},  # no checkpoint before
    "second": {"saves": 1},
    "prune": {"saves": 3},  # the new one drops an old one, and replay files with it
    "again": {"saves": 2, "same": True},  # a second checkpoint of one step
    "roll": {"saves": 3, "capacity": 80},  # the oldest segments of the replay are gone since
}


def prepare(directory: Path, saves: int, same: bool = False, capacity: int = 400) -> Trainer:
    """A run that has saved so often and has moved on since."""
    trainer = Trainer(tiny(directory, steps=10_000, replay__capacity=capacity))

    def advance(count: int) -> None:
        for _ in range(count):
            trainer.collect()
            for _ in range(trainer._due()):
                trainer.learn()

    advance(40)
    for _ in range(saves):
        trainer.save()
        advance(25)
    if same and saves:
        trainer.save()
    return trainer


def move(trainer: Trainer, place: Path) -> None:
    """Let a trainer, in a forked process, work on a copy of its directory."""
    trainer.dir = place
    trainer.saver = Saver(place / "checkpoints", trainer.replay)
    trainer.replay._archive_at(trainer.replay._archive.path if trainer.replay._archive else place / "replay").path = place / "replay"
    trainer.log = Log(place, mlflow=False)


def recover(trainer: Trainer, place: Path) -> None:
    """What a new process does with what a crash left: resume, and train and save again, twice."""
    move(trainer, place)
    if not checkpoint.complete(place / "checkpoints"):
        (place / "found.txt").write_text("none")
        return
    saving.restore(trainer)
    (place / "found.txt").write_text(contents(trainer))
    for _ in range(2):
        trainer.collect()
        trainer.save()
    assert not stray(place), stray(place)


@pytest.mark.parametrize("scenario", SCENARIOS if FULL else ["prune"])
def test_a_crash_at_every_call_of_a_save_recovers(scenario: str, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(SCENARIOS[scenario])

    # One child prepares the run, and forks others for every point of the crash, each on a copy of the directory.
    def campaign() -> None:
        home, place = tmp_path / "home", tmp_path / "point"
        trainer = prepare(home, **options)
        fresh = Trainer(tiny(tmp_path / "fresh", steps=10_000, replay__capacity=options.get("capacity", 400)))
        possible = [contents(trainer)]
        held = at = 0
        while True:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(home, place)
            if options["saves"] and len(possible) == 1:
                assert ended(child(lambda: recover(fresh, place))) == 0
                possible.append((place / "found.txt").read_text())
                continue

            def crash_there(at: int = at) -> None:
                move(trainer, place)
                Crash(at).install()
                trainer.save()

            code = ended(child(crash_there))
            if code == 0:
                break
            assert code == CRASHED, code
            assert ended(child(lambda: recover(fresh, place))) == 0, at
            held += (place / "found.txt").read_text() in ([*possible, "none"] if not options["saves"] else possible)
            at += 1
        (tmp_path / "result.txt").write_text(f"{held} {at}")

    assert ended(child(campaign), 3000) == 0
    held, cases = map(int, (tmp_path / "result.txt").read_text().split())
    record(f"crash at every call of a save: {scenario}", held, cases)
    assert held == cases > 20
