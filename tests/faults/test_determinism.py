"""Same seed, separate processes: all hashes equal; another seed differs; what looks on changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polydream.core.config import to_dict
from polydream.core.presets import restore
from polydream.core.registry import registered
from polydream.core.run import RunConfig
from polydream.core.train import Trainer
from polydream.eval.judge import Judge

from .harness import FULL, child, digest, ended, record, tiny

ROOT = Path(__file__).parent.parent.parent
VARIANTS = sorted(registered("polydream.variants"))


def train(cfg: RunConfig, out: Path, judged: bool) -> None:
    """Train and write the fingerprint of what was learned from what."""
    with Trainer(cfg, Judge() if judged else None) as trainer:
        trainer.run()
        segments = trainer.replay.segments
        kept = {"/".join(k): a[: trainer.replay.steps] for k, a in segments.arrays.items()}
        assert trainer.count.updates > 10
        out.write_text(digest([dict(trainer.agent.state_dict()), kept, trainer.count.updates]))


def watched(plain: RunConfig) -> RunConfig:
    """The same run with everything on that looks on: evaluations, films, reports, rows, saves."""
    looks = replace(plain.eval, every=30, episodes=1, video=True)
    return replace(plain, eval=looks, log=replace(plain.log, every=10, report=30), save_every=0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hashes_depend_on_the_seed_and_on_nothing_that_looks_on(variant: str, tmp_path: Path) -> None:
    plain = tiny(tmp_path / "a", variant=variant, steps=80, eval__every=0)
    runs = {"a": (plain, False), "looked on": (watched(plain), True), "other seed": (replace(plain, seed=1), False)}
    if FULL:
        runs["again"] = (plain, False)
    found = {}
    for name, (cfg, judged) in runs.items():
        out, cfg = tmp_path / f"{name}.txt", replace(cfg, dir=str(tmp_path / name))
        assert ended(child(lambda cfg=cfg, out=out, judged=judged: train(cfg, out, judged))) == 0  # type: ignore[misc]
        found[name] = out.read_text()
    same = found["a"] == found["looked on"] == found.get("again", found["a"]) != found["other seed"]
    record(f"determinism, {variant}: same seed, looked on or not, another seed", int(same), 1)
    assert same, found


@pytest.mark.parametrize("variant", VARIANTS if FULL else ["base"])
def test_hashes_do_not_depend_on_how_python_orders_its_sets(variant: str, tmp_path: Path) -> None:
    """Interpreters of their own, each with another seed for the hashes of texts."""
    found = []
    for seed in ("1", "2"):
        cfg = tiny(tmp_path / seed, variant=variant, steps=60, eval__every=0)
        code = f"from tests.faults.test_determinism import alone; alone({to_dict(cfg)!r}, {str(tmp_path / f'{seed}.txt')!r})"
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=600)
        found.append((tmp_path / f"{seed}.txt").read_text())
    record(f"determinism, {variant}: other interpreters, other hashes", int(found[0] == found[1]), 1)
    assert found[0] == found[1]


def alone(data: dict[str, object], out: str) -> None:
    """`train` in an interpreter of its own."""
    train(restore(data), Path(out), False)
