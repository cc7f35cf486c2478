"""Whatever spaces arrays can hold, nested in any way: an agent trains on them, and what it stores is what it saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from polydream.core.train import Trainer

from .harness import lane, record, tiny

UPDATES = 20


def trained(number: int, directory: Path) -> str:
    """Twenty updates on environment `number`. Returns what went wrong, or nothing."""
    cfg = tiny(
        directory,
        task="tests.faults.nested:make",
        env__options=f"number={number}",
        steps=10_000,
        warmup=20,
        ratio=16.0,
        env__restarts=0,
        log__every=10_000,
    )
    try:
        with Trainer(cfg) as trainer:
            while trainer.count.updates < UPDATES:
                trainer.collect()
                for _ in range(trainer._due()):
                    trainer.learn()
            wrong = [name for name, p in trainer.agent.named_parameters() if not bool(torch.isfinite(p).all())]
            kept = trainer.replay.sample()
            for key, space in trainer.spec.obs.items():
                wrong += [f"{key}: {kept['obs', key].shape}"] if tuple(kept["obs", key].shape[2:]) != space.shape else []
            for key, space in trainer.spec.action.items():
                chosen = kept["action", key].numpy()
                inside = (chosen >= 0) & (chosen < space.classes) if space.classes else np.isfinite(chosen)
                wrong += [f"action {key}: {chosen.min()} to {chosen.max()}"] if not inside.all() else []
            return ", ".join(wrong) or ("skipped updates" if trainer.guard.skipped else "")
    except Exception as error:  # noqa: BLE001  told below, with its number
        return f"{type(error).__name__}: {error}"


def test_agents_train_on_random_nested_spaces(tmp_path: Path) -> None:
    cases = lane(100, 10)
    found = {number: trained(number, tmp_path / str(number)) for number in range(cases)}
    wrong = {number: what for number, what in found.items() if what}
    record(f"random nested spaces, {UPDATES} updates on each", cases - len(wrong), cases)
    assert not wrong, "\n".join(f"{number}: {what}" for number, what in wrong.items())
