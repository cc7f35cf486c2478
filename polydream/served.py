"""An agent in MLflow, as a model from code: MLflow copies this file beside a checkpoint and runs it when the model is loaded.

    model.predict({"obs/...", "is_first", "state/..."}, params={"mode": "sample", "seed": 0}) -> {"action/...", "state/..."}

Nothing is unpickled: the weights are safetensors, read as `polydream.load` reads them. A prediction depends on its inputs alone. Its
noise comes from the seed, the row and `state/calls`, which counts calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

import polydream
from polydream.core.rng import Draws, seed_for
from polydream.policystep import CALLS, MODES, PolicyStep


class Served(PythonModel):
    """The agent of the artifact `checkpoint`."""

    def load_context(self, context: Any) -> None:
        """Load the agent. What its variant is called is part of the model, which runs its own code anyway."""
        agent = polydream.load(context.artifacts["checkpoint"], code=context.model_config["code"]).agent
        self.steps = {mode: PolicyStep(agent, mode) for mode in MODES}

    # Without types, in which MLflow would see a schema of its own kind.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Actions and next states of n rows, arrays by name as the signature has them. params: mode, sample or mode; seed of the noise."""
        chosen: dict[str, Any] = {"mode": "sample", "seed": 0} | dict(params or {})
        if chosen["mode"] not in self.steps:
            raise ValueError(f"mode={chosen['mode']!r}: choose {' or '.join(self.steps)}")
        step, calls = self.steps[chosen["mode"]], np.asarray(model_input[CALLS])
        tensors = {k: torch.as_tensor(np.array(v)) for k, v in model_input.items()}
        seen = {k: tensors[f"obs/{k}"] for k in step.observation}
        state = {k: tensors[f"state/{k}"] for k in step.state}
        noise = _noise(step, int(chosen["seed"]), calls)
        action, after = step(seen, state, tensors["is_first"], noise)
        out = {f"action/{k}": v.numpy() for k, v in action.items()} | {f"state/{k}": v.numpy() for k, v in after.items()}
        return out | {CALLS: calls + 1}


def _noise(step: PolicyStep, seed: int, calls: np.ndarray) -> dict[str, torch.Tensor]:
    rows = [step.draw(Draws(seed_for(seed, "served", row), int(call)), 1) for row, call in enumerate(calls)]
    return {k: torch.cat([drawn[k] for drawn in rows], port.axis) for k, port in step.noise.items()}


set_model(Served())
