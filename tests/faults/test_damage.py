"""Damaged files: every one is noticed, named in a line, and the checkpoint before it is used; none is loaded as if it were whole."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from pathlib import Path

import pytest

from polydream.core import checkpoint, durable, saving
from polydream.core.log import Log
from polydream.core.train import Trainer

from .harness import child, contents, ended, lane, record, tiny

HARMS = ("flip", "empty", "half", "most", "delete", "swap", "zero")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, and what each of them holds."""
    place = tmp_path_factory.mktemp("damage")

    def make() -> None:
        trainer = Trainer(tiny(place / "run", steps=10_000, replay__capacity=120))
        for round in range(2):
            for _ in range(60):
                trainer.collect()
                for _ in range(trainer._due()):
                    trainer.learn()
            trainer.save()
            (place / f"{round}.txt").write_text(contents(trainer))

    assert ended(child(make)) == 0
    return place


def harm(file: Path, kind: str, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if kind == "delete":
        return file.unlink()
    if kind == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "swap":
        others = [p for p in file.parent.iterdir() if p.suffix == file.suffix and p.read_bytes() != bytes(content)]
        content = bytearray(others[0].read_bytes() if others else b"other")
    elif kind == "zero":
        content = bytearray(len(content))
    else:
        content = content[: {"empty": 0, "half": len(content) // 2, "most": len(content) * 99 // 100}[kind]]
    file.write_bytes(content)
    return None


def test_every_damaged_file_is_noticed(home: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    newest = checkpoint.complete(home / "run" / "checkpoints")[-1]
    mine = sorted(p.relative_to(home / "run") for p in newest.iterdir())
    shared = sorted(p.relative_to(home / "run") for p in (home / "run" / "replay").iterdir() if "index" in p.name or "-data-" in p.name)
    cases = [(rng.choice(mine if i % 4 else shared), HARMS[i % len(HARMS)]) for i in range(lane(200, 40))]
    expected = [(home / f"{i}.txt").read_text() for i in range(2)]
    held, place = 0, tmp_path / "run"

    def campaign() -> None:
        trainer = Trainer(tiny(tmp_path / "fresh", steps=10_000, replay__capacity=120))
        good = 0
        for name, kind in cases:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(home / "run", place)
            harm(place / name, kind, rng)
            said: list[str] = []

            def resume(said: list[str] = said, name: Path = name) -> None:
                trainer.dir, trainer.log = place, Log(place, mlflow=False)
                saving.restore(trainer, said.append)
                found = contents(trainer)
                aware = any(name.name in line or name.parent.name in line for line in said[:-1])
                unused = len(said) == 1 and found == expected[1]  # a file that only the older checkpoint needs
                os._exit(0 if (aware and found != expected[1]) or unused else 3)

            passed = ended(child(resume)) == 0
            good += passed
            if not passed:
                print(f"not noticed: {name}, {kind}")
        (tmp_path / "result.txt").write_text(str(good))

    assert ended(child(campaign), 3000) == 0
    held = int((tmp_path / "result.txt").read_text())
    record("damaged files: noticed, none loaded silently", held, len(cases))
    assert held == len(cases)


@pytest.mark.parametrize("way", ["enospc", "limit", "readonly"])
def test_a_disk_that_refuses_costs_no_checkpoint(way: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on, warns in one line each time, and the old checkpoint stays good."""
    if way == "readonly" and os.geteuid() == 0:
        refusals = [errno.EROFS]  # root writes where it may not: the error itself is injected
    else:
        refusals = [errno.ENOSPC] * lane(20, 3)
    held = 0
    for i, number in enumerate(refusals):
        place = tmp_path / str(i)

        def train(i: int = i, number: int = number, place: Path = place) -> None:
            shutil.copytree(home / "run", place)
            with Trainer(tiny(place, steps=10_000, replay__capacity=120, save_every=1e-9), resume=place) as trainer:
                trainer.collect()
                room = [i * 5000 + (0 if way == "readonly" else 100)]
                original = durable.write

                def write(path: Path, content: bytes, **options: bool) -> durable.Fingerprint:
                    room[0] -= len(content)
                    if room[0] < 0 or way == "readonly":
                        if way != "readonly":
                            path.write_bytes(content[: max(len(content) + room[0], 0)])
                        raise OSError(number, os.strerror(number))
                    return original(path, content, **options)

                if way == "limit":
                    signal_ignored()
                    resource.setrlimit(resource.RLIMIT_FSIZE, (i * 5000 + 100, resource.RLIM_INFINITY))
                else:
                    durable.write = write
                lines: list[str] = []
                trainer._warn = lambda texts: lines.extend(texts)  # type: ignore[method-assign]
                for _ in range(2):
                    trainer.saved = 0.0
                    trainer._save_when_due()
                    trainer.collect()
                trainer.saved = 0.0
                trainer._save_when_due()
                assert lines and all("no checkpoint could be written" in line and "\n" not in line for line in lines), lines
                os._exit(0)

        code = ended(child(train))
        good = (
            code == 0 and checkpoint.newest(place / "checkpoints", print).name == checkpoint.complete(home / "run" / "checkpoints")[-1].name
        )
        held += good
    record(f"disk that refuses: {way}", held, len(refusals))
    assert held == len(refusals)


def signal_ignored() -> None:
    """A write beyond the limit is an error, not the end of the process."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
