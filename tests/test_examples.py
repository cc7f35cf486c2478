"""The examples of the README run as they stand, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from tensordict import TensorDict

from examples.thrifty import Thrifty, ThriftyConfig
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from polydream.core.train import train
from tests.fixtures import tiny
from tests.test_train import smoke

ROOT = Path(__file__).parent.parent


def test_a_variant_of_ones_own_trains_by_name(tmp_path: Path) -> None:
    from polydream.core.presets import resolve

    values = {"dir": str(tmp_path / "run"), "log.mlflow": False, "steps": 120, "agent.price": 0.5}
    cfg = resolve({"variant": "examples.thrifty:Thrifty", "task": "world/reach", "preset": "smoke"}, values)
    assert isinstance(cfg.agent, ThriftyConfig) and cfg.agent.price == 0.5
    train(cfg)


def test_effort_is_paid_on_arrival() -> None:
    spec = Spec(obs={"vector": Space(shape=(2,))}, action={"action": Space(shape=(1,))})
    config = ThriftyConfig(**{k: getattr(tiny(), k) for k in tiny().__dataclass_fields__}, price=2.0)
    dreamer = Thrifty(spec, config)
    dream = dreamer.imagine(TensorDict({"deter": torch.zeros(3, 32), "stoch": torch.zeros(3, 4, 4)}, [3]), Draws(0))
    plain = super(Thrifty, dreamer).rewards(dream)["extrinsic"]
    paid = plain - dreamer.rewards(dream)["extrinsic"]
    torch.testing.assert_close(paid[:, 1:], 2.0 * dream["action", "action"][:, :-1, 0].square())
    assert bool((paid[:, 0] == 0).all())


def test_an_environment_of_ones_own_passes_the_check_and_trains(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "polydream", "check-env", "examples.own_env:make"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout + run.stderr
    train(smoke(tmp_path, task="examples.own_env:make", steps=120))
