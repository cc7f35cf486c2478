"""Same seed, separate processes: all hashes equal; another seed differs; what looks on changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polydream.core.registry import registered
from polydream.core.train import Trainer
from polydream.eval.judge import Judge

from .harness import FULL, child, digest, ended, record, tiny


def train(cfg, out: Path, judged: bool) -> None:  # type: ignore[no-untyped-def]
    with Trainer(cfg, Judge() if judged else None) as trainer:
        trainer.run()
        segments = trainer.replay.segments
        kept = {"/".join(k): a[: trainer.replay.steps] for k, a in segments.arrays.items()}
        out.write_text(digest([dict(trainer.agent.state_dict()), kept, trainer.count.updates]))


@pytest.mark.parametrize("variant", sorted(registered("polydream.variants")) if FULL else ["base"])
def test_hashes_depend_on_the_seed_and_on_nothing_that_looks_on(variant: str, tmp_path: Path) -> None:
    plain = tiny(tmp_path / "a", variant=variant, steps=90, eval__every=0)
    watched = replace(
        plain, eval=replace(plain.eval, every=30, episodes=1, video=True), log=replace(plain.log, every=10, report=30), save_every=0.5
    )
    found = []
    for name, cfg, judged in (("a", plain, False), ("b", plain, False), ("c", watched, True), ("d", replace(plain, seed=1), False)):
        out, cfg = tmp_path / f"{name}.txt", replace(cfg, dir=str(tmp_path / name))
        assert ended(child(lambda cfg=cfg, out=out, judged=judged: train(cfg, out, judged))) == 0  # type: ignore[misc]
        found.append(out.read_text())
    same = found[0] == found[1] == found[2] != found[3]
    record(f"determinism, {variant}", int(same), 1)
    assert same, found
