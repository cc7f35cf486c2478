"""What a person sees while training: one live line in a terminal, one plain line per minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

RECENT = 10  # episodes that the shown return is the mean of
WINDOW = 60.0  # seconds that speeds are measured over
REFRESH = 0.25  # seconds between redrawings of the live line
FIRST = 10.0  # seconds until the first plain line, so that a misconfigured run shows early


class Progress:
    """Shows how far a run is. Costs nothing worth measuring per call.

    total: environment steps of the whole run. start: where this process begins, beyond 0 when resumed.
    every: seconds between plain lines where standard output is no terminal.
    console, clock: for tests and embedding.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        every: float = 60.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.step = int(total), int(start)
        self._every, self._clock = every, clock
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._returns: deque[float] = deque(maxlen=RECENT)
        self._warnings = 0
        self._updates: int | None = None
        self._closed = False
        self._begun = clock()
        self._samples: deque[tuple[float, int, int]] = deque([(self._begun, self.step, 0)])
        self._shown = self._begun - REFRESH
        self._next = self._begun + min(FIRST, every)
        # rich takes FORCE_COLOR for a terminal; a log file of a cluster job must not get a redrawn line all the same
        live = self._console.is_terminal and not self._console.is_dumb_terminal and (console is not None or sys.stdout.isatty())
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop") if live else None
        if self._live:
            self._live.start()

    def update(self, step: int, *, updates: int | None = None, score: float | None = None) -> None:
        """Tell where the run is. step: environment steps; updates: of the learner so far; score: return of an episode just ended."""
        self.step = int(step)
        if updates is not None:
            if self._updates is None:  # a resumed run does not begin at 0
                self._samples = deque((when, at, int(updates)) for when, at, _ in self._samples)
            self._updates = int(updates)
        if score is not None:
            self._returns.append(float(score))
        now = self._clock()
        if now - self._shown < REFRESH:
            return
        self._shown = now
        self._samples.append((now, self.step, self._updates or 0))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()
        if self._live:
            self._live.update(Text(self.line(), no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now >= self._next:
            self._next = now + self._every
            self._console.print(self.line(), markup=False, highlight=False)

    def speeds(self) -> dict[str, float]:
        """Environment steps (`fps`) and updates (`ups`) per second over the last minute; 0 before anything is known."""
        (then, steps, updates), (now, more_steps, more_updates) = self._samples[0], self._samples[-1]
        past = max(now - then, 1e-9)
        return {"fps": (more_steps - steps) / past, "ups": max(more_updates - updates, 0) / past}

    def line(self) -> str:
        """The line itself: how far, return, speeds, time left, warnings."""
        speeds = self.speeds()
        done = 100 * self.step / self.total if self.total else 100.0
        parts = [f"step {self.step:,}/{self.total:,} ({done:.0f}%)"]
        if self._returns:
            count = len(self._returns)
            parts.append(f"return {sum(self._returns) / count:.1f} (last {'episode' if count == 1 else f'{count} episodes'})")
        parts += [f"{rate(speeds['fps'])} env steps/s", f"{rate(speeds['ups'])} updates/s"]
        if speeds["fps"] > 0 and self.step < self.total and not self._closed:
            parts.append(f"{span((self.total - self.step) / speeds['fps'])} left")
        else:
            parts.append(f"{span(self._clock() - self._begun)} elapsed")
        if self._warnings:
            parts.append(f"{self._warnings} warning{'s' if self._warnings > 1 else ''}")
        return " | ".join(parts)

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one. Any thread may call this."""
        self._console.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """Print a warning and count it on the line. Any thread may call this."""
        self._warnings += 1
        self._console.print(f"[yellow]warning:[/yellow] {escape(text)}", highlight=False)

    def close(self) -> None:
        """Leave the last state standing as a plain line. Harmless when called again."""
        if self._closed:
            return
        self._closed = True
        if self._live:
            self._live.update(Text(""), refresh=True)
            self._live.stop()
            self._live = None
        self._console.print(self.line(), markup=False, highlight=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_screen(rows: Mapping[str, object], *, terminal: bool | None = None, width: int | None = None) -> str:
    """The table printed before training: one row per entry, a nested mapping as rows of its own, numbers with thousands.

    rows: {"task": "dmc/cartpole_balance", "parameters": {"encoder": 14304, ...}, "device": "cpu", ...}
    terminal: with colour and rules; None looks at standard output. Returns text that ends in a newline.
    """
    terminal = sys.stdout.isatty() if terminal is None else terminal
    buffer = StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=width or (None if terminal else 10_000), highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan" if terminal else None, no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(escape(key), _cell(value))
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _cell(value: object) -> Table | str:
    if not isinstance(value, Mapping):
        return escape(_text(value))
    inner = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    inner.add_column(no_wrap=True)
    inner.add_column(justify="right" if all(isinstance(v, int | float) for v in value.values()) else "left")
    for key, entry in value.items():
        inner.add_row(escape(str(key)), escape(_text(entry)))
    return inner


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value)


def rate(value: float) -> str:
    """A speed with about three digits: 0.52, 8.1, 210."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def span(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 05 s, 2 h 07 min, 3 d 04 h."""
    total = round(max(seconds, 0))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600:02d} h"
