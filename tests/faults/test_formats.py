"""Checkpoints of released formats, kept as they were written: each loads, acts as it did, and goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polydream.asked import stored_config
from polydream.core import checkpoint
from polydream.core.train import Trainer
from tests.data.checkpoints.freeze import acted

from .harness import record

HOME = Path(__file__).parent.parent / "data" / "checkpoints"
FORMATS = sorted(p.name for p in HOME.glob("schema-*"))


def test_the_format_that_is_written_now_is_among_the_frozen_ones() -> None:
    """A new format comes with a frozen checkpoint: `python tests/data/checkpoints/freeze.py`."""
    assert f"schema-{checkpoint.SCHEMA}" in FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_frozen_checkpoint_acts_as_it_did(name: str) -> None:
    expected, found = json.loads((HOME / name / "acted.json").read_text()), acted(HOME / name)
    for mode in ("sample", "mode"):
        assert found[mode] == expected[mode]
        # Another processor adds in another order; the actions must not notice.
        assert np.allclose(found[f"{mode} deter"], expected[f"{mode} deter"], rtol=0, atol=1e-6)
    assert len(set(expected["sample"])) > 2 and expected["sample"] != expected["mode"]
    record(f"frozen checkpoint, {name}: 40 stored actions again", 1, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_frozen_run_goes_on(name: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(HOME / name, place)
    cfg = replace(stored_config(place), dir=str(place), steps=140)
    with Trainer(cfg, resume=place) as trainer:
        before = trainer.count.updates
        assert trainer.step == 120 and trainer.replay.steps > 120 and before > 0
        trainer.run()
        assert trainer.step == 140 and trainer.count.updates > before and not trainer.guard.skipped
