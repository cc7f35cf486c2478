"""The record of a run: metrics.jsonl is the truth, one JSON object per line; MLflow is fed from it. Format: docs/metrics.md."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any, Self

from .tracking import STATE, STATUSES, MlflowSink

FILE = "metrics.jsonl"
KINDS = ("run", "train", "episode", "eval", "report", "speed", "health", "artifact")
RESERVED = ("step", "time", "kind")
TEXTS = frozenset(("kind", "env", "task", "mode", "warning", "path", "command"))  # never read back as a number
NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
MEMORY = 16 * 2**20  # bytes of rows kept while the disk refuses them, then the error is let through


class Log:
    """Writer of one run's metrics.jsonl, and the only one: a run has a single writer.

    directory: the run directory, made where it does not exist. Existing rows are kept; an unfinished last line is cut off.
    mlflow: also send everything to MLflow, from a background thread that can neither block nor end training.
    experiment, run_name: of the MLflow run, unless one is already open (`MLFLOW_RUN_ID`) or was opened for this directory.
        MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, where set, win over `experiment`.
    params: the resolved configuration, nested or flat; logged once under dotted names.
    system: CPU, memory and GPU use through MLflow's own monitor (needs psutil).
    tags: MLflow tags. With `mlflow.parentRunId` equal to MLFLOW_RUN_ID a child of that run is opened.
    say: where warnings go, one plain line each; standard error by default, and an attribute that may be set later, to
        `Progress.warn` for one. May be called from another thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mlflow: bool,
        experiment: str = "polydream",
        run_name: str = "",
        params: Mapping[str, Any] | None = None,
        system: bool = True,
        tags: Mapping[str, str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / FILE
        self.step = mend(self.path)
        self.say: Callable[[str], None] = say or _stderr
        self._lock = RLock()
        self._unwritten = b""
        self._stuck = self._closed = False
        self._file = self.path.open("ab", buffering=0)
        self._sink: MlflowSink | None = None
        if mlflow:
            settings = {"experiment": experiment, "run_name": run_name, "params": params or {}, "tags": tags or {}, "system": system}
            self._sink = MlflowSink(self.path, self._lock, settings, self._warn)
            self._sink.start()

    def scalars(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """Append one row. step: environment steps, action repeat included.

        values: numbers, strings, or lists of them; numpy and torch scalars and arrays are converted (a GPU tensor waits for
        the GPU). NaN and infinities are written as the strings "NaN", "Infinity", "-Infinity", which keeps the file legal
        JSON; `read_metrics` turns them back. Raises ValueError for an unknown kind or a reserved key, TypeError for a value
        that is neither number nor text.
        """
        if kind not in KINDS:
            near = get_close_matches(kind, KINDS, n=1)
            raise ValueError(f"no kind of row named {kind!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KINDS)}"))
        if taken := [key for key in RESERVED if key in values]:
            raise ValueError(f"a row sets {', '.join(taken)} itself; rename that value")
        row = {"step": int(step), "time": round(time.time(), 3), "kind": kind} | {k: _plain(k, v) for k, v in values.items()}
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            self.step = int(step)
            self._append(json.dumps(row, allow_nan=False).encode() + b"\n")

    def episode(self, step: int, score: float, length: int, env: int | str = 0, **extras: Any) -> None:
        """One finished training episode. score: undiscounted return, stored as `return`; length: decisions; env: which one."""
        self.scalars(step, {"return": score, "length": length, "env": env, **extras}, "episode")

    def health(self, step: int, warning: str, **extras: Any) -> None:
        """Record a warning that the report must show. It is not printed here."""
        self.scalars(step, {"warning": warning, **extras}, "health")

    def artifact(self, path: Path, step: int | None = None) -> None:
        """Hand a file or folder to MLflow, at its place relative to the run directory. Raises FileNotFoundError at once.

        What is uploaded is the content at the time of upload, some seconds later; write files completely before.
        """
        path = Path(path).absolute()
        if not path.exists():
            raise FileNotFoundError(f"no such artifact: {path}")
        home = self.directory.absolute()
        name = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
        self.scalars(self.step if step is None else step, {"path": name}, "artifact")

    def position(self) -> int:
        """Bytes of the rows written so far, all of them on the disk: where a run goes on that is resumed from now."""
        with self._lock:
            if self._closed:
                return self.path.stat().st_size
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def cut(self, position: int) -> None:
        """Drop every row beyond a `position`. What MLflow already received stays there, as with `rewind`."""
        with self._lock:
            if position >= os.fstat(self._file.fileno()).st_size and not self._unwritten:
                return
            self._unwritten = b""
            with self.path.open("rb") as file:
                kept = file.read(position)
            self._replace(kept[: kept.rfind(b"\n") + 1])
            self.step = mend(self.path)
            if self._sink:
                self._sink.moved(min(self._sink.sent, position))

    def rewind(self, step: int) -> int:
        """Drop every row beyond `step`, so that a run resumed there writes them again. Returns how many were dropped.

        Rows at exactly `step` stay. What MLflow already received stays there: it cannot forget, and points written again
        at the same step take their place in its charts.
        """
        with self._lock:
            kept, dropped, sent = [], 0, 0
            position = 0
            for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
                position += len(line)
                if _decode(line, self.path, number)["step"] > step:
                    dropped += 1
                    continue
                kept.append(line)
                if self._sink and position <= self._sink.sent:
                    sent += len(line)
            if dropped:
                self._replace(b"".join(kept))
                if self._sink:
                    self._sink.moved(sent)
            self.step = min(self.step, step)
            return dropped

    def sync(self, timeout: float = 60.0) -> bool:
        """Send what MLflow has not yet received. True when all of it arrived within `timeout` seconds, or none is wanted."""
        return self._sink.sync(timeout) if self._sink else True

    def ending(self, status: str) -> None:
        """Tell MLflow now what the run will end as, in case there is no time for `close`. Returns at once."""
        if self._sink:
            self._sink.ending(status)

    def close(self, status: str = "FINISHED", grace: float = 30.0) -> bool:
        """End the run as FINISHED, FAILED or KILLED, waiting at most `grace` seconds for MLflow. Returns what `sync` does.

        Harmless when called again. Rows that could not be sent stay in metrics.jsonl: `resend(directory)` sends them.
        """
        if status not in STATUSES:
            near = get_close_matches(status.upper(), STATUSES, n=1) or STATUSES
            raise ValueError(f"no run status {status!r}; did you mean {near[0]!r}?")
        if self._closed:
            return True
        arrived = self._sink.close(status, grace) if self._sink else True
        if not arrived:
            self.say(f"MLflow did not take everything; it is all in {self.path}, and resend({str(self.directory)!r}) sends it")
        with self._lock:
            self._closed = True
            if self._unwritten:
                self._flush()
            self._file.close()
        return arrived

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close("FINISHED" if kind is None else "KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED")

    def _warn(self, text: str) -> None:
        """A warning of the sink's thread: shown once, and recorded while the file is open."""
        with self._lock:
            if not self._closed:
                self.health(self.step, text)
        self.say(text)

    def _append(self, line: bytes) -> None:
        """Write a line at once; while the disk refuses, keep it in memory and try again with the next one."""
        self._unwritten += line
        try:
            self._flush()
        except OSError as error:
            if len(self._unwritten) > MEMORY:
                raise
            if not self._stuck:
                self.say(f"cannot write {self.path} ({error.strerror}); its rows wait in memory")
            self._stuck = True
        else:
            self._stuck = False

    def _flush(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(self._unwritten)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)  # half a line would make the next one unreadable too
            raise
        self._unwritten = b""

    def _replace(self, content: bytes) -> None:
        fresh = self.path.with_suffix(".jsonl.new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(fresh, self.path)
        self._file = self.path.open("ab", buffering=0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl, or of the run directory it lies in, in the order written.

    A last line cut short by a kill is left out. Raises FileNotFoundError, and ValueError naming the line of any other damage.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and _parse(lines[-1]) is None:
        lines.pop()
    return [{k: _number(k, v) for k, v in _decode(line, path, i).items()} for i, line in enumerate(lines, 1)]


def seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds between the first and the last row of a run, without the pauses between processes (a "run" row begins each)."""
    pairs = zip(rows, rows[1:], strict=False)
    return sum(max(later["time"] - earlier["time"], 0.0) for earlier, later in pairs if later["kind"] != "run")


def mend(path: Path) -> int:
    """Cut an unfinished last line off an existing file, or end a finished one. Returns the last row's step, 0 without rows."""
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("r+b") as file:
        if lines and _parse(lines[-1]) is None:
            file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        elif lines and not lines[-1].endswith(b"\n"):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    return int(_decode(lines[-1], path, len(lines))["step"]) if lines else 0


def resend(directory: Path, timeout: float = 60.0) -> bool:
    """Send a finished run's unsent rows and artifacts to MLflow, as the run that it belongs to. True when all arrived.

    Raises FileNotFoundError where the run was never meant for MLflow.
    """
    state_file = Path(directory) / STATE
    if not state_file.is_file():
        raise FileNotFoundError(f"{state_file} is missing: this run was trained with mlflow off, or is no run directory")
    state = json.loads(state_file.read_text())
    log = Log(Path(directory), mlflow=True, **state["settings"] | {"system": False})
    log.sync(timeout)
    return log.close(state["status"] or "FINISHED")


def _stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _plain(key: str, value: Any) -> Any:
    """A value as JSON can hold it; floats that JSON lacks become strings."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(key, value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(key, v) for v in value]
    raise TypeError(f"the value of {key!r} must be a number, a text or a list of them, not {type(value).__name__}")


def _number(key: str, value: Any) -> Any:
    """Undo what `_plain` did to floats that JSON lacks."""
    if key in TEXTS:
        return value
    if isinstance(value, list):
        return [_number(key, v) for v in value]
    return NONFINITE.get(value, value) if isinstance(value, str) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds, or None where it is no whole row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    row = _parse(line)
    if row is None:
        raise ValueError(f"{path}, line {number}: not a row of metrics: {line[:60]!r}")
    return row
