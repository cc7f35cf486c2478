"""kill -9 at random moments of training and saving, again and again on one run: nothing that was saved is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from polydream.core import checkpoint
from polydream.core.train import Trainer

from .harness import child, ended, lane, loadable, record, stray, tiny


def test_kills_at_random_lose_no_checkpoint(tmp_path: Path) -> None:
    place, cases = tmp_path / "run", lane(200, 10)
    cfg = tiny(place, steps=1_000_000, save_every=0.05, eval__every=0)

    def train() -> None:
        with Trainer(cfg, resume=place if checkpoint.complete(place / "checkpoints") else None) as trainer:
            (tmp_path / "stray.txt").write_text("\n".join(stray(place)))
            (tmp_path / "begun.txt").write_text(str(trainer.step))
            trainer.run()

    def begin() -> None:
        with Trainer(cfg) as trainer:
            trainer.collect()
            trainer.save()

    assert ended(child(begin)) == 0
    rng, held, reached, clean = random.Random(1), 0, 0, True
    for _ in range(cases):
        (tmp_path / "begun.txt").unlink(missing_ok=True)
        pid = child(train)
        while not (tmp_path / "begun.txt").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        newest = checkpoint.newest(place / "checkpoints")
        step = int(newest.name[:12])
        begun = int((tmp_path / "begun.txt").read_text())
        held += step >= reached and begun == reached and loadable(place)
        clean = clean and not (tmp_path / "stray.txt").read_text()
        reached = step
    record("random kill -9 while saving and training", held, cases, f"reached step {reached}")
    assert held == cases and clean and reached > 0
