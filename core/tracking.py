"""MLflow fed from metrics.jsonl by a thread of its own: the file is the queue, so a slow or dead server loses nothing.

The thread reads the file behind the writer, sends what is new in batches and remembers in mlflow.json how far it came. Sending
is safe to repeat, because a point of a metric is known by its name, step, time and value, and all of these are in the file.
Artifacts often live on another server: those it refuses are owed, noted in mlflow.json and offered again, while metrics go on.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Condition, RLock, Thread
from typing import Any

STATE = "mlflow.json"
STATUSES = ("FINISHED", "FAILED", "KILLED")
UNCHARTED = ("run", "artifact")  # kinds of rows that hold no metrics
LABELS = ("task", "mode")  # texts of a row that become a part of the metric's name
PERIOD, PATIENCE = 2.0, 60.0  # seconds between sendings, and at most while the server fails
OWED = 300.0  # seconds until artifacts that were refused are offered again
CHUNK = 2**18  # bytes of metrics.jsonl read at a time
METRICS, PARAMS, KEY, VALUE, TAG = 1000, 100, 250, 6000, 8000  # MLflow's limits: per request, per request, and characters
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # no lines about migrations of its database, or system metrics having begun
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the thread tries again by itself, and must notice when the run ends
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Set where the user has not, when tracking begins; MLflow reads them when it is imported or when it sends."""


class MlflowSink(Thread):
    """Sends a growing metrics.jsonl to one MLflow run. Made and owned by `Log`.

    lock: held by whoever touches the file. settings: experiment, run_name, params, tags, system.
    warn: called with one line, from this thread, when tracking fails for the first time.
    """

    def __init__(self, path: Path, lock: RLock, settings: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        super().__init__(name="mlflow", daemon=True)
        self._path, self._lock, self._warn = path, lock, warn
        self._state_file = path.with_name(STATE)
        self._settings = dict(settings) | {"params": flatten(settings["params"]), "tags": dict(settings["tags"])}
        saved = load(self._state_file)
        self.sent: int = min(saved.get("sent", 0), path.stat().st_size)
        self.owed: list[str] = list(saved.get("owed", ()))  # artifacts that were refused, to be offered again
        self._offer = 0.0  # when, by the monotonic clock
        self._run_id: str = saved.get("run_id", "")
        self._store: str = saved.get("store", "")
        self._status: str = ""
        self._early: str = ""
        self._signal = Condition()
        self._asked = self._answered = 0  # requests of sync and close, and the last of them that was tried
        self._closing = self._warned = self._ended = False
        self._until = 0.0
        self._moves = 0
        self._client: Any = None
        self._monitor: Any = None
        self._names: dict[str, str] = {}

    def moved(self, sent: int) -> None:
        """The file was rewritten; the first `sent` bytes of it are known to MLflow. Called with the lock held."""
        self.sent = sent
        self._moves += 1

    def sync(self, timeout: float) -> bool:
        """Ask for everything to be sent now, and wait. True where nothing is left over."""
        deadline = time.monotonic() + timeout
        with self._lock:
            goal, moves = self._path.stat().st_size, self._moves
        while (left := deadline - time.monotonic()) > 0 and self.is_alive():
            with self._signal:
                self._asked += 1
                self._signal.notify_all()
                self._await(self._asked, min(left, 1.0))
            if self._moves == moves and self.sent >= goal:
                return True
            time.sleep(min(max(deadline - time.monotonic(), 0.0), 0.2))
        return self._moves == moves and self.sent >= goal

    def _await(self, request: int, timeout: float) -> None:
        self._signal.wait_for(lambda: self._answered >= request or not self.is_alive(), timeout)

    def ending(self, status: str) -> None:
        """Have the thread set the run's status before anything else it does. May be called from a signal handler."""
        self._early = status

    def close(self, status: str, grace: float) -> bool:
        """Send the rest, set the run's status and end the thread. False where this did not succeed within `grace` seconds."""
        with self._signal:
            self._status, self._closing, self._until = status, True, time.monotonic() + grace
            self._asked += 1
            self._signal.notify_all()
        self.join(grace)
        if not self._ended:
            with self._lock, suppress(OSError):  # a full disk: what it held before is true, too, only less far
                self._save()
        return self._ended and not self.owed

    def run(self) -> None:
        """Send every few seconds until closed; wait longer and longer while the server fails."""
        delay = 0.0
        while True:
            with self._signal:
                self._signal.wait_for(lambda: self._asked > self._answered, timeout=delay)
                asked, closing = self._asked, self._closing
            try:
                self._connect()
                self._tell()
                self._drain()
                self._repay()
                if closing:
                    return self._finish()
                delay = PERIOD
            except Exception as error:  # noqa: BLE001  a tracking server may fail in any way, and training must not notice
                self._failed(error)
                delay = min(max(2 * delay, PERIOD), PATIENCE)
            with self._signal:
                self._answered = asked
                self._signal.notify_all()
            if closing:
                if time.monotonic() + PERIOD > self._until:
                    return None
                time.sleep(PERIOD / 2)
                with self._signal:
                    self._asked += 1

    def _tell(self) -> None:
        early, self._early = self._early, ""
        if early:
            self._client.set_terminated(self._run_id, early)

    def _connect(self) -> None:
        """Open, or find again, the MLflow run of this directory. Does nothing where that is done."""
        if self._client is not None:
            return
        silence()
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        store = blake2b(client.tracking_uri.encode(), digest_size=8).hexdigest()  # the address may hold a password
        outer = os.environ.get("MLFLOW_RUN_ID", "")
        if outer == self._settings["tags"].get("mlflow.parentRunId"):
            outer = ""
        if store != self._store or (outer and outer != self._run_id):
            with self._lock:
                self._run_id, self._store, self.sent = outer, store, 0
        if self._run_id:
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create(client)
        with self._lock:
            self._save()
        self._describe(client)
        self._watch(client.tracking_uri)
        self._client = client

    def _create(self, client: Any) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
        if not experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._settings["experiment"]
            known = client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else client.create_experiment(name)
        tags = {k: str(v)[:TAG] for k, v in resolve_tags(self._settings["tags"]).items()}
        run_id: str = client.create_run(experiment, run_name=self._settings["run_name"] or None, tags=tags).info.run_id
        return run_id

    def _describe(self, client: Any) -> None:
        """Log the configuration, leaving alone what is there: MLflow refuses another value for a parameter it has."""
        from mlflow.entities import Param

        present = client.get_run(self._run_id).data.params
        fresh = {clean(k): clip(v, VALUE) for k, v in self._settings["params"].items()}
        params = [Param(k, v) for k, v in fresh.items() if k not in present]
        for i in range(0, len(params), PARAMS):
            client.log_batch(self._run_id, params=params[i : i + PARAMS])

    def _watch(self, uri: str) -> None:
        if not self._settings["system"] or self._monitor is not None:
            return
        if importlib.util.find_spec("psutil") is None:
            self._settings["system"] = False
            self._warn("CPU and memory use is not recorded: pip install psutil, or switch it off with --log.system false")
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def _drain(self) -> None:
        """Send what lies between `sent` and the end of the file."""
        while True:
            with self._lock:
                start, moves = self.sent, self._moves
                chunk = self._read(start)
            if not chunk:
                return
            done = self._send(chunk)
            with self._lock:
                if moves == self._moves:  # otherwise the file was rewritten meanwhile, and sent is right already
                    self.sent = start + done
                    self._save()

    def _read(self, start: int) -> list[bytes]:
        with self._path.open("rb") as file:
            file.seek(start)
            return [line for line in file.readlines(CHUNK) if line.endswith(b"\n")]

    def _send(self, lines: list[bytes]) -> int:
        """Send rows up to and including the first artifact. Returns the bytes of the lines that are done with."""
        points: list[Any] = []
        done = 0
        artifact = ""
        for line in lines:
            done += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                self._warn(f"a damaged row of {self._path} was not sent to MLflow: {line[:40]!r}")
                continue
            if row["kind"] == "artifact":
                artifact = row["path"]
                break
            points += self._points(row)
        for i in range(0, len(points), METRICS):
            self._client.log_batch(self._run_id, metrics=points[i : i + METRICS])
        if artifact and not self._upload(artifact):
            self.owed, self._offer = list(dict.fromkeys([*self.owed, artifact])), time.monotonic() + OWED
        return done

    def _repay(self) -> None:
        """Offer refused artifacts again, where it is time."""
        if self.owed and time.monotonic() > self._offer:
            self._offer = time.monotonic() + OWED
            self.owed = [name for name in self.owed if not self._upload(name)]
            with self._lock:
                self._save()

    def _points(self, row: Mapping[str, Any]) -> Iterator[Any]:
        from mlflow.entities import Metric

        if row["kind"] in UNCHARTED:
            return
        prefix = "/".join([row["kind"], *(str(row[k]) for k in LABELS if isinstance(row.get(k), str))])
        for key, value in row.items():
            if key in ("step", "time", "env") or isinstance(value, list) or value is None:
                continue
            if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
                continue
            name = key if key.startswith(f"{row['kind']}/") else f"{prefix}/{key}"
            if name not in self._names:
                self._names[name] = clean(name)
            yield Metric(self._names[name], float(value), int(1000 * row["time"]), row["step"])

    def _upload(self, name: str) -> bool:
        """Whether an artifact was taken, or is gone since. Says so once where one was not."""
        path = self._path.parent / name
        place = "" if Path(name).is_absolute() else str(Path(name).parent)
        try:
            if path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), path.name if place in ("", ".") else f"{place}/{path.name}")
            elif path.is_file():
                self._client.log_artifact(self._run_id, str(path), None if place in ("", ".") else place)
        except Exception as error:  # noqa: BLE001  artifacts often live on another server than metrics, which must not wait for it
            if not self.owed:
                self._warn(f"MLflow did not take {name} ({first_line(error)}); it is in {self._path.parent} and will be offered again")
            return False
        return True

    def _finish(self) -> None:
        self._client.set_terminated(self._run_id, self._status)
        self._offer = 0.0
        self._repay()
        if self._monitor is not None:
            self._monitor.finish()
        with self._lock:
            self._ended = True
            self._save()

    def _failed(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        self._warn(f"MLflow failed ({first_line(error)}); training goes on, and {self._path.name} is sent when it is back")

    def _save(self) -> None:
        """Write mlflow.json in one piece: how far sending came, and what is needed to go on in another process."""
        where = {"run_id": self._run_id, "store": self._store, "sent": self.sent, "owed": self.owed}
        state = where | {"status": self._status, "settings": self._settings}
        fresh = self._state_file.with_suffix(".json.new")
        fresh.write_text(json.dumps(state, indent=1))
        os.replace(fresh, self._state_file)


def load(path: Path) -> dict[str, Any]:
    """What mlflow.json says; nothing where there is none, or where a power failure has left half of one."""
    try:
        state = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def silence() -> None:
    """Keep MLflow and what it is built on from printing: a user's own settings stay, other threads' messages too."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for talkative in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        logger = logging.getLogger(talkative)
        if _foreign not in logger.filters:
            logger.addFilter(_foreign)


def _foreign(record: logging.LogRecord) -> bool:
    """False for messages, and tracebacks of a locked database, about what the tracking threads sent."""
    return record.threadName not in ("mlflow", "SystemMetricsMonitor")


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted names, as texts: {"agent": {"horizon": 15}} gives {"agent.horizon": "15"}."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def clean(name: str) -> str:
    """A name that MLflow takes: other characters become "_", path tricks vanish, and what was changed ends in a hash of the original.

    The hash keeps two names apart that would otherwise become one.
    """
    parts = [part for part in re.sub(r"[^\w.\- /]", "_", name).split("/") if part not in ("", ".", "..")]
    fair = "/".join(parts) or "_"
    if fair == name and len(name) <= KEY:
        return name
    return f"{fair[: KEY - 7]}-{blake2b(name.encode(), digest_size=3).hexdigest()}"


def clip(text: str, limit: int) -> str:
    """At most `limit` characters; what was cut says so."""
    note = " ... (cut; whole in config.yaml)"
    return text if len(text) <= limit else text[: limit - len(note)] + note


def first_line(error: Exception) -> str:
    """The first line of an error for a warning of one line, without a password from an address."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"//[^/@\s]+@", "//", text)[:160]
