"""A profile of a few updates: a trace to look into, and the most expensive parts in a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED = 3
"""Updates before the first profiled one: they compile, lay out and allocate."""
MOST = 5
PARTS = ("observe", "world model", "dream", "behaviors", "backward", "optimizer")
"""Labels in `Dreamer.update`, one after the other. `other` is what lies between them."""


class Trace:
    """Profiles `updates` updates of a run, then writes trace.json (for chrome://tracing or Perfetto) and trace.txt; 0 does nothing.

    Call `step` after every update.
    """

    def __init__(self, directory: Path, updates: int) -> None:
        self.directory, self.left = directory, SKIPPED + updates if updates else 0
        self.profiler: Any = None
        if updates:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            plan = schedule(wait=SKIPPED - 1, warmup=1, active=updates, repeat=1)
            self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write)

    def __enter__(self) -> Self:
        if self.profiler:
            self.profiler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stop()

    def step(self) -> str:
        """Count an update. After the last profiled one: the table, else nothing."""
        if not self.profiler:
            return ""
        self.profiler.step()
        self.left -= 1
        if self.left:
            return ""
        self._stop()
        return (self.directory / "trace.txt").read_text()

    def _stop(self) -> None:
        if self.profiler:
            self.profiler.stop()
            self.profiler = None

    def _write(self, found: Any) -> None:
        if not any(e.key == "update" for e in found.key_averages()):
            return  # the run ended before the first update that was to be profiled
        found.export_chrome_trace(str(self.directory / "trace.json"))
        (self.directory / "trace.txt").write_text(expensive(found.key_averages()))


def expensive(events: Iterable[Any]) -> str:
    """The most expensive parts of an update and operations in it, as two tables: milliseconds per update and share of the update.

    Parts count all that happens in them, operations only themselves. Times are the host's; on a GPU the device's where there are any.
    """
    found = {e.key: e for e in events}
    updates = found["update"].count
    device = "device_time_total" if any(e.device_time_total for e in found.values()) else "cpu_time_total"
    whole = max(float(found["update"].cpu_time_total), 1e-9)
    parts = {name: float(getattr(found[name], device)) for name in PARTS if name in found}
    parts["other"] = max(whole - sum(parts.values()), 0.0)
    own = f"self_{device}"
    operations = {k: float(getattr(e, own)) for k, e in found.items() if k not in (*PARTS, "update") and not k.startswith("ProfilerStep")}
    lines = []
    for title, times in (("part of an update", parts), ("operation", operations)):
        lines.append(f"{title:<48} {'ms':>9} {'share':>7}")
        for name, time in sorted(times.items(), key=lambda item: -item[1])[:MOST]:
            lines.append(f"{name[:48]:<48} {time / updates / 1e3:>9.2f} {time / whole:>7.1%}")
        lines.append("")
    return "\n".join(lines[:-1])
