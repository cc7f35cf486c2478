"""A run that goes on for long takes no more memory, descriptors, threads, children or files than at first."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from polydream.core.train import Trainer

from .harness import FULL, child, ended, record, stray, tiny


def held(directory: Path) -> int:
    """Files and folders of a run but for the replay's segments.

    How many segments there are goes up and down with what the kept checkpoints share of them; that each of them is still needed by
    one is what `stray` asks.
    """
    segments = [p for p in (directory / "replay").glob("*.safetensors") if not p.name.startswith("order-")]
    return len(list(directory.rglob("*"))) - len(segments)


def test_nothing_grows(tmp_path: Path) -> None:
    def run() -> None:
        me = psutil.Process()
        cfg = tiny(tmp_path / "run", steps=10**9, replay__capacity=200, save_every=2.0, log__every=50)
        with Trainer(cfg) as trainer:
            begun, marks, files = time.monotonic(), [], []
            length = 1200.0 if FULL else 60.0
            while time.monotonic() - begun < length:
                for _ in range(100):
                    trainer.collect()
                    for _ in range(trainer._due()):
                        trainer.learn()
                trainer._log_training()
                trainer._save_when_due()
                trainer.saver.finish()  # a file that is being written in the background is not a leak
                children = len(me.children(recursive=True))
                marks.append((me.memory_info().rss / 2**20, me.num_fds(), me.num_threads(), children, trainer.step))
                files.append(held(tmp_path / "run"))
                assert not stray(tmp_path / "run")
            warm = marks[len(marks) // 3]
            last = marks[-1]
            assert last[1:4] <= warm[1:4], (warm, last)
            assert last[0] - warm[0] < max(20.0, (last[4] - warm[4]) / 10_000), (warm, last)
            third = len(files) // 3
            assert max(files[third:]) <= max(files[:third]), files
            os._exit(0)

    code = ended(child(run), 1500)
    record("soak: memory, descriptors, threads, children, files flat", int(code == 0), 1, "20 min" if FULL else "1 min")
    assert code == 0
