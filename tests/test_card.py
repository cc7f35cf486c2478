"""The model card: facts of the checkpoint, scores with their window, written beside every run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polydream.core import checkpoint
from polydream.core.agent import Dreamer
from polydream.core.presets import resolve
from polydream.eval.card import card, fingerprint, write_card
from polydream.eval.judge import Judge
from tests.fixtures import VECTOR, tiny

ROWS = [
    {"step": 0, "kind": "run", "parameters": 1234, "git": "abc"},
    {"step": 0, "kind": "eval", "mode": "random", "return_mean": -3.0, "return_std": 1.0, "returns": [-4.0, -2.0]},
    {"step": 10, "kind": "episode", "return": 1.0, "length": 10},
    {"step": 30, "kind": "episode", "return": 2.0, "length": 10},
    {"step": 40, "kind": "episode", "return": 6.0, "length": 10},
    {"step": 20, "kind": "eval", "mode": "sample", "return_mean": 2.5, "return_std": 0.0, "returns": [2.5]},
    {"step": 40, "kind": "eval", "mode": "sample", "return_mean": 7.0, "return_std": 2.0, "returns": [5.0, 9.0], "success_mean": 0.5},
    {"step": 60, "kind": "eval", "mode": "sample", "return_mean": 99.0, "return_std": 0.0, "returns": [99.0]},
    {"step": 60, "kind": "episode", "return": 99.0, "length": 10},
]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 40 in a run that went on to 60."""
    cfg = replace(resolve({"preset": "smoke", "task": "world/chain"}, {"seed": "5"}), agent=tiny())
    agent = Dreamer(VECTOR, cfg.agent)
    agent.updates += 17
    (tmp_path / "config.yaml").write_text("task: world/chain\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row | {"time": 0.0}) + "\n" for row in ROWS))
    return checkpoint.save(tmp_path / "checkpoints", 40, {"agent": agent.state_dict()}, checkpoint.header(cfg, VECTOR))


def test_a_card_tells_what_is_known_at_its_checkpoint(saved: Path) -> None:
    lines = card(saved).splitlines()
    for line in (
        "# world/chain, base",
        "| seed | 5 |",
        "| preset | smoke |",
        "| environment steps | 40 |",
        "| updates | 17 |",
        "| trainable parameters | 1,234 |",
        f"| weights, SHA-256 | `{fingerprint(saved)}` |",
        "| training episodes | 4.0 (2 episodes, steps 20 to 40) |",
        "| evaluation, sampled actions | 7.0 ± 2.0 (2 episodes, step 40); success 50% |",
        "| evaluation, uniformly random actions | -3.0 ± 1.0 (2 episodes, step 0) |",
    ):
        assert line in lines, line
    assert f"torch {torch.__version__}" in card(saved) and "git abc" in card(saved) and "99.0" not in card(saved)
    assert "deter: 32" in card(saved), "all settings"


def test_the_hash_is_of_the_weights(saved: Path) -> None:
    import hashlib

    assert fingerprint(saved) == hashlib.sha256((saved / "agent.safetensors").read_bytes()).hexdigest()


def test_without_a_run_the_scores_are_unknown(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").unlink()
    assert "## Scores\n\nUnknown" in card(saved)
    assert write_card(saved, tmp_path).read_text() == card(saved)


def test_every_report_comes_with_the_card_of_the_newest_good_checkpoint(saved: Path, tmp_path: Path) -> None:
    (saved.parent / "000000000050").mkdir()  # damaged: it has no manifest
    Judge().report(tmp_path)
    assert (tmp_path / "card.md").read_text() == card(saved)
