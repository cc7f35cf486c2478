"""Make the frozen checkpoint of the format that this version writes: `python tests/data/checkpoints/freeze.py`, once per format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import polydream
from polydream.core.checkpoint import SCHEMA
from polydream.core.presets import resolve
from polydream.core.registry import task
from polydream.core.train import Trainer

HERE = Path(__file__).parent
SMALL = {"agent.rssm.deter": 16, "agent.rssm.hidden": 8, "agent.encoder.layers": 1, "agent.decoder.layers": 1, "replay.capacity": 200}
RUN = {"steps": 120, "batch": 2, "length": 8, "warmup": 32, "threads": 1, "log.mlflow": False, "log.system": False, "replay.memmap": False}


def acted(run: Path) -> dict[str, Any]:
    """What the agent of a run does in an episode of 20 decisions: drawn actions, most likely ones, and its state after them."""
    found: dict[str, Any] = {}
    for mode in ("sample", "mode"):
        agent, world, state, chosen = polydream.load(run, seed=7), task("world/fourrooms", seed=0), None, []
        step = world.reset(3)
        for _ in range(20):
            action, state = agent.act(step["obs"], state, mode=mode)
            chosen.append(int(action["action"]))
            step = world.step(action)
        assert state is not None
        found |= {mode: chosen, f"{mode} deter": np.round(state["deter"][0].double().numpy(), 8).tolist()}
    return found


def main() -> None:
    """Train for seconds and keep the run, with what its agent does."""
    place = Path(os.path.relpath(HERE / f"schema-{SCHEMA}"))  # where the project lies has no place in it
    cfg = resolve({"preset": "smoke", "task": "world/fourrooms"}, RUN | SMALL | {"dir": str(place), "save_every": 0})
    with Trainer(cfg) as trainer:
        trainer.run()
    for path in (place / "metrics.jsonl", place / ".lock"):
        path.unlink()
    (place / "acted.json").write_text(json.dumps(acted(place), indent=1))


if __name__ == "__main__":
    main()
