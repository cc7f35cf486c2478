"""The agent in MLflow's registry: loads without pickle, elsewhere, and acts as the agent does, from its inputs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polydream.core import checkpoint
from polydream.core.agent import Dreamer
from polydream.core.presets import resolve
from polydream.core.rng import Draws, seed_for
from polydream.core.specs import Space, Spec
from polydream.policystep import PolicyStep
from polydream.register import register, signature, start
from tests.fixtures import tiny

SPEC = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(shape=(2,), low=(0.0, -2.0), high=(10.0, 2.0))})
CLIENT = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
inputs = {k: np.repeat(v, 2, 0) for k, v in model.input_example.items()}
found = []
for t in range(3):
    inputs |= {"obs/vector": np.full((2, 4), t, np.float32), "is_first": np.array([t == 0, t != 1])}
    out = model.predict(inputs, params={"seed": 9})
    again = model.predict(inputs, params={"seed": 9})
    assert all((out[k] == again[k]).all() for k in out), "nothing but the inputs counts"
    assert (model.predict(inputs, params={"seed": 8})["action/action"] != out["action/action"]).any()
    likeliest = [model.predict(inputs, params={"mode": "mode", "seed": 9})["action/action"].tolist() for _ in range(2)]
    found.append([out["action/action"].tolist(), out["state/calls"].tolist(), likeliest[0]])
    inputs |= {k: v for k, v in out.items() if k.startswith("state/")}
import polydream
print(json.dumps([found, polydream.__file__]))
"""


def test_the_signature_names_everything() -> None:
    step = PolicyStep(Dreamer(SPEC, tiny()))
    told = signature(step)
    assert told.inputs.input_names() == ["obs/vector", "is_first", "state/action/action", "state/deter", "state/stoch", "state/calls"]
    assert told.outputs.input_names() == ["action/action", "state/action/action", "state/deter", "state/stoch", "state/calls"]
    assert {spec.name: spec.shape for spec in told.inputs}["obs/vector"] == (-1, 4)
    assert start(step, 3)["is_first"].tolist() == [True] * 3 and not start(step)["state/deter"].any()


@pytest.mark.slow
def test_a_registered_agent_loads_without_pickle_and_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"sqlite:///{tmp_path}/mlflow.db")
    cfg = replace(resolve({"preset": "smoke", "task": "world/chain"}), agent=tiny())
    agent = Dreamer(SPEC, cfg.agent, 4)
    tensors = {"agent": agent.state_dict(), "optimizer": {"weight": agent.updates}}
    path = checkpoint.save(tmp_path / "run" / "checkpoints", 7, tensors, checkpoint.header(cfg, SPEC))
    (tmp_path / "card.md").write_text("a card")
    (tmp_path / "policy.json").write_text("{}")
    step = PolicyStep(agent)
    address = register("walker", path, step, tmp_path)
    assert address == "models:/walker/1"
    models = list((tmp_path.cwd() / "mlruns").glob("*/models/*/artifacts"))
    assert len(models) == 1 and not [p for p in models[0].rglob("*") if p.suffix == ".pkl" or p.name == "optimizer.safetensors"]

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", CLIENT, address]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found, home = json.loads(done.stdout.splitlines()[-1])
    assert str(models[0]) in home, "the model brings the code that it was saved with"
    inputs, likeliest = start(step, 2), PolicyStep(agent, "mode")
    state = {k.removeprefix("state/"): v for k, v in inputs.items() if k.startswith("state/") and k != "state/calls"}
    import torch

    memory = {k: torch.as_tensor(v) for k, v in state.items()}
    for t, (action, calls, most) in enumerate(found):
        noise = [step.draw(Draws(seed_for(9, "served", row), t), 1) for row in range(2)]
        drawn = {k: torch.cat([n[k] for n in noise]) for k in step.noise}
        given = {"vector": torch.full((2, 4), float(t))}, memory, torch.tensor([t == 0, t != 1])
        expected, after = step(*given, drawn)
        np.testing.assert_allclose(action, expected["action"].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(most, likeliest(*given, drawn)[0]["action"].numpy(), rtol=1e-5, atol=1e-5)
        assert calls == [t + 1] * 2
        memory = after
