"""The MLflow run that all cells of a benchmark are children of. MLflow failing costs the tracking, never the benchmark."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..core.tracking import STATE, clean, first_line, flatten, silence
from .grid import Cell

FILE = "parent.json"
TAG = "mlflow.parentRunId"


class Lineage:
    """The parent: the run that `mlflow run` opened, else the one this directory had before, else a new one.

    params: logged once. enabled: False leaves MLflow alone. say: where a failure of MLflow is told, one line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        experiment: str,
        params: Mapping[str, Any],
        enabled: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.directory, self._say = directory, say
        self._client: Any = None
        self.run_id = self.experiment_id = ""
        try:
            if enabled:
                self._open(name, experiment, params)
        except Exception as error:  # noqa: BLE001  a tracking server may fail in any way; the files of the cells are the truth
            self._client = None
            self._say(f"MLflow failed ({first_line(error)}); cells go on without a parent run")

    def _open(self, name: str, experiment: str, params: Mapping[str, Any]) -> None:
        silence()
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient
        from mlflow.tracking.context.registry import resolve_tags

        client = MlflowClient()
        saved = json.loads((self.directory / FILE).read_text()) if (self.directory / FILE).is_file() else {}
        self.run_id = os.environ.get("MLFLOW_RUN_ID", "") or (saved.get("run_id", "") if saved.get("uri") == client.tracking_uri else "")
        if self.run_id:
            client.update_run(self.run_id, status="RUNNING")
        else:
            place = self._experiment(client, experiment)
            self.run_id = client.create_run(place, run_name=name, tags=resolve_tags({})).info.run_id
        run = client.get_run(self.run_id)
        self.experiment_id = run.info.experiment_id
        fresh = {clean(k): v[:6000] for k, v in flatten(params).items()}
        client.log_batch(self.run_id, params=[Param(k, v) for k, v in fresh.items() if k not in run.data.params][:100])
        (self.directory / FILE).write_text(json.dumps({"run_id": self.run_id, "uri": client.tracking_uri}))
        self._client = client

    @staticmethod
    def _experiment(client: Any, name: str) -> str:
        if (known := os.environ.get("MLFLOW_EXPERIMENT_ID", "")) and not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or name
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name))

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process open a child run; "" stands for taking a variable away."""
        if self._client is None:
            return {"MLFLOW_RUN_ID": ""}
        return {
            "MLFLOW_RUN_ID": "",
            "MLFLOW_EXPERIMENT_NAME": "",
            "MLFLOW_EXPERIMENT_ID": self.experiment_id,
            "MLFLOW_TRACKING_URI": absolute(self._client.tracking_uri),
            "MLFLOW_RUN_CONTEXT": json.dumps({TAG: self.run_id}),
        }

    def claim(self, cells: Iterable[Cell]) -> None:
        """Make the runs of these cells children of this parent, also those that an earlier parent had."""
        for cell in cells:
            path = cell.directory / STATE
            child = json.loads(path.read_text()).get("run_id", "") if path.is_file() else ""
            if child and self._client is not None:
                self._try(partial(self._client.set_tag, child, TAG, self.run_id))

    def close(self, numbers: Mapping[str, float], artifact: Path, status: str) -> None:
        """Log what was found and the report, and end the run."""
        if self._client is None:
            return
        for key, value in numbers.items():
            self._try(partial(self._client.log_metric, self.run_id, clean(key), value))
        if artifact.is_file():
            self._try(lambda: self._client.log_artifact(self.run_id, str(artifact)))
        self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  the same
            self._say(f"MLflow failed ({first_line(error)})")


def absolute(uri: str) -> str:
    """A tracking address that means the same in every folder: `sqlite:///mlflow.db` is relative to the present one."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or Path(path).is_absolute() else f"sqlite:///{Path(path).absolute()}"
