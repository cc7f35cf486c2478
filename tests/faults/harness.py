"""What the campaigns share: tiny runs, children that are killed, fingerprints of runs, and the table of results."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polydream.core import checkpoint
from polydream.core.log import read_metrics
from polydream.core.presets import resolve
from polydream.core.run import RunConfig
from polydream.core.train import Trainer

FULL = os.environ.get("POLYDREAM_FAULTS") == "full"
RESULTS: list[tuple[str, int, int, str]] = []
"""Rows of the table: campaign, cases that held, cases, remark."""


def lane(full: int, short: int) -> int:
    """How many cases this lane runs."""
    return full if FULL else short


def record(campaign: str, held: int, cases: int, remark: str = "") -> None:
    """Note a campaign's result for the table; the test itself still asserts."""
    RESULTS.append((campaign, held, cases, remark))


def tiny(directory: Path, **overrides: Any) -> RunConfig:
    """A run of seconds in a world that can be restored."""
    values: dict[str, Any] = {"dir": str(directory), "log.mlflow": False, "eval.video": False, "threads": 1, "eval.baseline": 1}
    values |= {"steps": 160, "batch": 2, "length": 8, "warmup": 32, "replay.memmap": False, "replay.capacity": 400, "save_every": 0}
    selection = {"preset": "smoke", "task": overrides.pop("task", "world/fourrooms"), "variant": overrides.pop("variant", "base")}
    return resolve(selection, values | {k.replace("__", "."): v for k, v in overrides.items()})


def child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process, which starts at once because everything is imported. Returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        work()
        code = 0
    except KeyboardInterrupt as stop:
        code = getattr(stop, "code", 130)
    except BaseException:  # noqa: BLE001  the parent must not be continued here, whatever happens
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, patience: float = 600.0) -> int:
    """Exit code of a child, negative for a signal; fails where it does not end."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the process did not end within {patience} s")


def digest(tree: Any) -> str:
    """Hash of nested mappings, lists, arrays, tensors and plain values."""
    found = hashlib.sha256()
    _feed(found, tree)
    return found.hexdigest()


def _feed(found: Any, tree: Any) -> None:
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            found.update(str(key).encode())
            _feed(found, tree[key])
    elif isinstance(tree, torch.Tensor | np.ndarray):
        array = tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else tree
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    elif isinstance(tree, list | tuple):
        for item in tree:
            _feed(found, item)
    else:
        found.update(repr(tree).encode())


def contents(trainer: Trainer) -> str:
    """Hash of everything that decides how a run goes on: what `capture` takes, and the replay's rows."""
    from polydream.core import saving

    tensors, state = saving.capture(trainer)
    # Not the process-wide generators: importing a library may draw from them, once in each process, and nothing of ours does.
    del state["config"], state["rows"], state["generators"]
    segments = trainer.replay.segments
    held = {
        f"{key}/{stream}": array[segments.rows(np.array(stream), np.arange(segments.first[stream], segments.end[stream]))]
        for key, array in segments.arrays.items()
        for stream in range(len(segments.end))
    }
    return digest([tensors, state, held, trainer.replay.state_dict()])


def rows(directory: Path) -> list[dict[str, Any]]:
    """Metric rows of a run without wall-clock: no times, no speeds, no rows about the process."""
    kept = [r for r in read_metrics(directory) if r["kind"] not in ("speed", "run", "artifact")]
    return [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in kept]


def same_rows(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Equal rows, NaN equal to NaN."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def stray(directory: Path) -> list[str]:
    """Files and folders that no finished save accounts for."""
    found = [p for p in directory.rglob("*") if p.name.startswith((".new-", ".old-")) or p.name.endswith((".new", ".partial"))]
    named = {"index"}
    folder = directory / "replay"
    for index in folder.glob("index-*.json"):
        named |= {file for file, _ in json.loads(index.read_text())["files"].values()}
    found += [p for p in folder.glob("*.safetensors") if p.name not in named]
    return [str(p) for p in found]


def loadable(directory: Path) -> bool:
    """Whether a run directory holds a good checkpoint from which an agent can be made."""
    try:
        checkpoint.load_agent(directory)
    except checkpoint.CheckpointError:
        return False
    return True
