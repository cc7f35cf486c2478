"""A trained agent in MLflow's model registry: its checkpoint, the code that loads it, and a signature."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .core import checkpoint
from .core.config import Failure
from .core.tracking import STATE, silence
from .policystep import CALLS, PolicyStep, Port

LIBRARIES = ("mlflow", "torch", "tensordict", "numpy", "einops", "safetensors", "pyyaml")
"""What loading and acting needs."""


def register(name: str, path: Path, step: PolicyStep, card: Path, code: Collection[str] = ()) -> str:
    """Put the agent of a checkpoint into the registry as a new version of `name`; returns its address, `models:/name/1`.

    card: a folder whose card.md and policy.json go along. code: the variant where it is not registered; its module goes along.
    Raises Failure where MLflow takes it not.
    """
    silence()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        artifacts = {"checkpoint": str(_slim(path, Path(folder)))} | {"card": str(card / "card.md"), "interface": str(card / "policy.json")}
        try:
            return _log(name, artifacts, step, path, code)
        except MlflowException as error:
            raise Failure(f"MLflow did not take the model: {' '.join(str(error).split())[:300]}") from error


def _log(name: str, artifacts: Mapping[str, str], step: PolicyStep, path: Path, code: Collection[str]) -> str:
    import mlflow
    from mlflow.models import Model

    info = Model.log(
        artifact_path=None,
        flavor=mlflow.pyfunc,
        name=name,
        registered_model_name=name,
        run_id=_run(path),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts=dict(artifacts),
        model_config={"code": list(code)},
        signature=signature(step),
        input_example=start(step),
        pip_requirements=[_pinned(library) for library in LIBRARIES] + ([] if _checkout() else [_own()]),
        code_paths=[str(p) for p in (*_checkout(), *_modules(code))],
    )
    return f"models:/{name}/{info.registered_model_version}"


def signature(step: PolicyStep) -> Any:
    """The names, shapes and types of a prediction, as MLflow checks them: (observation, state, is_first) -> (action, state)."""
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    def specs(prefix: str, ports: Mapping[str, Port]) -> Iterator[Any]:
        for key, port in ports.items():
            kind = np.dtype(str(port.dtype).removeprefix("torch."))
            yield TensorSpec(kind, (-1, *port.shape), f"{prefix}/{key}")

    states = [*specs("state", step.state), TensorSpec(np.dtype("int64"), (-1,), CALLS)]
    inputs = [*specs("obs", step.observation), TensorSpec(np.dtype("bool"), (-1,), "is_first"), *states]
    params = ParamSchema([ParamSpec("mode", DataType.string, "sample"), ParamSpec("seed", DataType.long, 0)])
    return ModelSignature(Schema(inputs), Schema([*specs("action", step.action), *states]), params)


def start(step: PolicyStep, rows: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a prediction at the start of an episode, observations of zeros."""
    seen, state, first, _ = step.example(rows)
    named = {f"obs/{k}": v for k, v in seen.items()} | {f"state/{k}": v for k, v in state.items()}
    return {k: v.numpy() for k, v in named.items()} | {"is_first": first.numpy(), CALLS: np.zeros(rows, np.int64)}


def _slim(path: Path, folder: Path) -> Path:
    """A checkpoint with the weights alone, which is all that acting needs."""
    groups, state = checkpoint.read(path)
    kept = {"config": state["config"], "spec": state["spec"]}
    number = int(checkpoint.read_json(path / "manifest.json")["step"])
    return checkpoint.save(folder / "checkpoint", number, {"agent": groups["agent"]}, kept)


def _run(path: Path) -> str | None:
    """The MLflow run that the model comes from: the agent's own where this server knows it, else one that `mlflow run` opened."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from .eval.card import run_of

    run = run_of(path)
    saved = json.loads((run / STATE).read_text()) if run and (run / STATE).is_file() else {}
    for known in filter(None, (saved.get("run_id"), os.environ.get("MLFLOW_RUN_ID"))):
        try:
            return str(MlflowClient().get_run(known).info.run_id)
        except MlflowException:
            continue  # trained under another tracking server
    return None


def _checkout() -> list[Path]:
    """The folders and the file that make a checkout work as a package; none where polydream is installed from a wheel."""
    root = Path(__file__).parent.parent
    parts = [root / name for name in ("polydream", "core", "variants", "tasks", "eval", "pyproject.toml")]
    return parts if all(p.exists() for p in parts) else []


def _pinned(library: str) -> str:
    return f"{library}=={version(library).partition('+')[0]}"  # 2.13.0+cpu is on no index


def _own() -> str:
    from . import __version__

    return f"polydream=={__version__}"


def _modules(code: Collection[str]) -> list[Path]:
    """Files of variants that are no registered ones."""
    named = {part.partition(":")[0].partition(".")[0] for name in code for part in name.split("+") if ":" in part}
    files = (Path(str(sys.modules[m].__file__)) for m in sorted(named) if m in sys.modules)
    return [f.parent if f.name == "__init__.py" else f for f in files]
