"""The grid of a benchmark: variant x task x seed, one run directory each, whose files alone say how far it is.

    <benchmark>/benchmark.json             what is compared
    <benchmark>/<variant>/<task>/<all three>/ a run directory, and beside its files:
        cell.json                          command, process, crashes, how it ended
        cell.log                           what the process printed

Nothing is kept in memory between runs of the runner, so killing it and starting it again goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.config import ConfigError, convert
from ..core.log import FILE, read_metrics
from .suites import Entry, Suite, build

CONTENTS, STATE, OUTPUT = "benchmark.json", "cell.json", "cell.log"
ATTEMPTS = 2  # a crashed cell is tried once more, then reported
BASELINE = "sb3-"
SHARED = ("device", "env", "eval", "log")  # groups of options that a baseline has in common with training
TAIL = 2**16  # bytes at the end of metrics.jsonl that the live table reads
DONE, FAILED, RUNNING, WAITING = "done", "failed", "running", "waiting"


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark. options: of the command line, beside variant, task, seed and directory."""

    variant: str
    entry: Entry
    seed: int
    directory: Path
    steps: int
    options: Mapping[str, str] = field(hash=False)

    @property
    def label(self) -> str:
        """variant, task and seed in words."""
        return f"{self.variant} {self.entry.name} seed {self.seed}"

    @property
    def baseline(self) -> bool:
        """True for a model-free agent of stable-baselines3."""
        return self.variant.startswith(BASELINE)

    @property
    def words(self) -> list[str]:
        """The command line after `python -m polydream` that begins this run; it says everything about it but where it is."""
        kind = ["baseline", "--method", self.variant] if self.baseline else ["train", "--variant", self.variant]
        options = {key: text for key, text in self.options.items() if not self.baseline or key.partition(".")[0] in SHARED}
        chosen = {"task": self.entry.task, "seed": str(self.seed), "steps": str(self.steps)} | options
        return [*kind, *(word for key, value in chosen.items() for word in (f"--{key}", value))]

    def command(self) -> list[str]:
        """The process to start now: from the beginning, or from the newest checkpoint."""
        python = [sys.executable, "-m", "polydream"]
        if self.begun and not self.baseline:
            return [*python, "resume", str(self.directory)]
        return [*python, *self.words, "--dir", str(self.directory)]

    @property
    def shown(self) -> str:
        """The command for a person to repeat."""
        return shlex.join(["python", "-m", "polydream", *self.words])

    @property
    def begun(self) -> bool:
        """True where there is a checkpoint to go on from."""
        return self.saved > 0 and (self.directory / "config.yaml").is_file()

    @property
    def saved(self) -> int:
        """Environment step of the newest checkpoint, 0 for none."""
        found = (self.directory / "checkpoints").glob("[0-9]*/manifest.json")
        return max((int(path.parent.name.partition(".")[0]) for path in found), default=0)

    def read(self) -> dict[str, Any]:
        """cell.json, {} where this cell was never started."""
        path = self.directory / STATE
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def write(self, **values: Any) -> None:
        """Change values of cell.json, in one piece."""
        self.directory.mkdir(parents=True, exist_ok=True)
        fresh = self.directory / f"{STATE}.new"
        fresh.write_text(json.dumps(self.read() | values, indent=1))
        os.replace(fresh, self.directory / STATE)

    @property
    def state(self) -> str:
        """DONE, FAILED (as often as it was allowed to), RUNNING (its process lives) or WAITING."""
        told = self.read()
        if told.get("done"):
            return DONE
        if alive(told.get("process")):
            return RUNNING
        return FAILED if told.get("crashes", 0) >= ATTEMPTS else WAITING

    @property
    def reason(self) -> str:
        """Why it failed: the last line that its process printed."""
        path = self.directory / OUTPUT
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        return lines[-1].strip()[:300] if lines else "its process printed nothing"

    def complete(self) -> bool:
        """True where the files show an end that nobody watched: training saves after its last evaluation, a baseline evaluates last."""
        if not self.baseline:
            return self.saved >= self.steps
        return any(row["kind"] == "eval" and row.get("mode") == "mode" and row["step"] >= self.steps for row in self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, [] where there is none."""
        return read_metrics(self.directory / FILE) if (self.directory / FILE).is_file() else []

    def config(self) -> dict[str, Any]:
        """config.yaml, {} where there is none."""
        import yaml

        path = self.directory / "config.yaml"
        return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}

    def glance(self) -> Glance:
        """How far it is, from the end of metrics.jsonl."""
        path = self.directory / FILE
        if not path.is_file():
            return Glance()
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = [line for line in file.read().splitlines() if line.endswith(b"}")]
        return Glance.of([json.loads(line) for line in lines if line.startswith(b"{")])

    def clear(self, checkpoints: bool = False) -> None:
        """Forget what an attempt without a checkpoint left, or one with useless ones, so that the next may begin. Its log stays."""
        for name in (FILE, "config.yaml", "mlflow.json", "report.html"):
            (self.directory / name).unlink(missing_ok=True)
        for name in ("checkpoints", "replay") if checkpoints else ():
            shutil.rmtree(self.directory / name, ignore_errors=True)


@dataclass(frozen=True)
class Glance:
    """A running cell in numbers: last step, mean of the last ten training returns (None before the first), steps per second."""

    step: int = 0
    score: float | None = None
    speed: float = 0.0

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Glance:
        """From the last rows of a log."""
        if not rows:
            return cls()
        returns = [float(row["return"]) for row in rows if row["kind"] == "episode"][-10:]
        speeds = [float(row["fps"]) for row in rows if row["kind"] == "speed" and "fps" in row]
        return cls(rows[-1]["step"], sum(returns) / len(returns) if returns else None, speeds[-1] if speeds else 0.0)


@dataclass(frozen=True)
class Grid:
    """All cells of a benchmark, in the order in which they are run: seed by seed, so that every variant soon has one run."""

    suite: Suite
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    directory: Path
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @cached_property
    def cells(self) -> list[Cell]:
        """One cell for each seed, task and variant."""
        return [self._cell(variant, entry, seed) for seed in self.seeds for entry in self.suite.tasks for variant in self.variants]

    def _cell(self, variant: str, entry: Entry, seed: int) -> Cell:
        # The last folder names the run in MLflow, so it says everything.
        place = self.directory / safe(variant) / safe(entry.name) / f"{safe(variant)}-{safe(entry.name)}-{seed}"
        options = settings(self.suite, entry, self.options)
        steps = convert(int, options.pop("steps", self.suite.budget(entry)), "steps")
        return Cell(variant, entry, seed, place, steps, options)

    def save(self) -> None:
        """Write benchmark.json, from which `read` makes this grid again."""
        told = {"suite": asdict(self.suite), "variants": self.variants, "seeds": self.seeds, "options": dict(self.options)}
        fresh = self.directory / f"{CONTENTS}.new"
        fresh.write_text(json.dumps(told, indent=1))
        os.replace(fresh, self.directory / CONTENTS)

    @classmethod
    def read(cls, directory: Path) -> Grid:
        """The grid of a benchmark's directory. Raises ConfigError where its benchmark.json is none of ours."""
        path = Path(directory) / CONTENTS
        try:
            told = json.loads(path.read_text())
            seeds, options = tuple(map(int, told["seeds"])), {str(k): str(v) for k, v in told["options"].items()}
            return cls(build(told["suite"], path), tuple(map(str, told["variants"])), seeds, Path(directory).resolve(), options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} describes no benchmark: {' '.join(str(error).split())}") from None

    def of(self, variant: str, entry: Entry) -> list[Cell]:
        """The cells of one variant and task, in the order of the seeds."""
        return [cell for cell in self.cells if cell.variant == variant and cell.entry == entry]


def settings(suite: Suite, entry: Entry, given: Mapping[str, str]) -> dict[str, str]:
    """Options of one task: the suite's learning settings unless a size or preset is given, what the task is, what was given."""
    learning = {} if given.keys() & {"preset", "size"} else suite.learning
    return {**learning, **suite.settings, **entry.settings, **given}


def alive(process: Any) -> bool:
    """True where the process [id, time of creation] still runs here; an id that was given to another process is not it."""
    import psutil

    if not process:
        return False
    try:
        found = psutil.Process(int(process[0]))
        return abs(found.create_time() - process[1]) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def identity(pid: int) -> list[float]:
    """A process as [id, time of creation]."""
    import psutil

    return [pid, psutil.Process(pid).create_time()]


def safe(name: str) -> str:
    """A name as a folder: `my_file:Agent` gives `my_file-Agent`."""
    return re.sub(r"[^\w.+\-=\[\],]", "-", name)
