"""The live table of a benchmark: every cell with state, score so far and time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..core.progress import span
from .grid import DONE, FAILED, RUNNING, WAITING, Cell, Glance, Grid

PLAIN = 60.0  # seconds between plain lines
ROWS = 40  # cells up to which all are shown; of more only those that run or failed
MARKS = {DONE: "green", FAILED: "red", RUNNING: "cyan", WAITING: "dim"}


class Board:
    """Shows a grid while it runs. Use it as a context; `show` fits `runner.run`."""

    def __init__(self, grid: Grid, console: Console | None = None, every: float = PLAIN) -> None:
        self.grid, self._every = grid, every
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._ended: dict[Cell, Glance] = {}
        live = self._console.is_terminal and not self._console.is_dumb_terminal and (console is not None or sys.stdout.isatty())
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop") if live else None
        self._next = 0.0
        self._counts: Counter[str] = Counter()

    def show(self, running: Mapping[Cell, Glance]) -> None:
        """Draw the table anew, or print a line when something changed or a minute has passed."""
        states = self.states(running)
        if self._live:
            self._live.update(Group(self.table(states, running), Text(self.line(states, running))), refresh=True)
            return
        now, counts = time.monotonic(), Counter(states.values())
        if counts != self._counts or now >= self._next:
            self._counts, self._next = counts, now + self._every
            self.say(self.line(states, running))

    def states(self, running: Mapping[Cell, Glance]) -> dict[Cell, str]:
        """State of every cell; what the runner runs counts as running whatever its files say."""
        return {cell: RUNNING if cell in running else cell.state for cell in self.grid.cells}

    def table(self, states: Mapping[Cell, str], running: Mapping[Cell, Glance]) -> Table:
        """One row for each cell; of a large grid only the cells that run or failed."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("variant", "task", "seed", "state", "steps", "score so far", "left"):
            table.add_column(name, justify="right" if name in ("seed", "steps", "score so far", "left") else "left", no_wrap=True)
        shown = states if len(states) <= ROWS else {c: s for c, s in states.items() if s in (RUNNING, FAILED)}
        for cell, state in shown.items():
            glance = running.get(cell) or self._past(cell, state)
            score = "" if glance.score is None else f"{glance.score:.4g}"
            steps = f"{glance.step:,}/{cell.steps:,}" if glance.step else f"{cell.steps:,}"
            left = span((cell.steps - glance.step) / glance.speed) if state == RUNNING and glance.speed and glance.step < cell.steps else ""
            name = f"[{MARKS[state]}]{state}[/]"
            table.add_row(escape(cell.variant), escape(cell.entry.name), str(cell.seed), name, steps, score, left)
        return table

    def _past(self, cell: Cell, state: str) -> Glance:
        """What a cell that does not run has reached; read once, because a done cell does not change."""
        if state != DONE:
            return cell.glance()
        return self._ended.setdefault(cell, cell.glance())

    def line(self, states: Mapping[Cell, str], running: Mapping[Cell, Glance]) -> str:
        """How many cells are where, what runs, and about how long the rest will take."""
        counts = Counter(states.values())
        parts = [f"{counts[DONE]} of {len(states)} cells done"]
        parts += [f"{counts[state]} {state}" for state in (RUNNING, WAITING, FAILED) if counts[state]]
        if left := self.left(states, len(running)):
            parts.append(f"about {span(left)} left")
        now = [
            f"{cell.label} at {glance.step:,}" + (f", {glance.score:.4g}" if glance.score is not None else "")
            for cell, glance in running.items()
        ]
        return " | ".join([*parts, *now])

    def left(self, states: Mapping[Cell, str], places: int) -> float:
        """Seconds that are left, from the time that done cells took for each step; 0 where nothing is known."""
        done = [(cell.read().get("seconds", 0.0), cell.steps) for cell, state in states.items() if state == DONE]
        spent, steps = sum(s for s, _ in done), sum(n for _, n in done)
        rest = sum(cell.steps for cell, state in states.items() if state in (RUNNING, WAITING))
        return rest * spent / steps / max(places, 1) if steps else 0.0

    def say(self, text: str) -> None:
        """Print a line of its own, above the table."""
        self._console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
