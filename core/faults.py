"""Faults of environments: written down, counted, and forgiven up to a budget per time."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .specs import Step, Task
from .worker import EnvError

FILE = "env-faults.txt"
T = TypeVar("T")


class Faults:
    """How many faults of environments a run lives through.

    allowed: faults of all environments together within `window` seconds; one more ends the run. directory: where the
    tracebacks go, to `env-faults.txt`, nowhere when None. say: told of each fault in one line.
    """

    def __init__(
        self,
        allowed: int = 0,
        window: float = 600.0,
        directory: Path | None = None,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowed, self.window, self.say = allowed, window, say
        self.total = 0
        self._file = directory / FILE if directory else None
        self._clock = clock
        self._times: deque[float] = deque()

    def note(self, who: str, error: Exception) -> None:
        """Count a fault of the environment `who`. Raises EnvError, in one line, where it was one too many."""
        now = self._clock()
        self._times.append(now)
        self.total += 1
        while self._times[0] < now - self.window:
            self._times.popleft()
        written = self._write(who, error)
        budget = f"{len(self._times)} faults within {self.window:g} s, env.restarts={self.allowed}"
        if len(self._times) > self.allowed:
            raise EnvError(f"{who} failed ({cause(error)}) and the budget is spent: {budget}{written}") from error
        self.say(f"{who} failed ({cause(error)}); its episode is closed and it is started anew ({budget}{written})")

    def lived_through(self, who: str, attempt: Callable[[], T], undo: Callable[[], None]) -> T:
        """What `attempt` returns; where an environment fails in it, it is undone and made again, within the budget."""
        while True:
            try:
                return attempt()
            except EnvError as error:
                undo()
                self.note(who, error)

    def _write(self, who: str, error: Exception) -> str:
        if self._file is None:
            return ""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._file.open("a") as file:
            file.write(f"---- {stamp} {who}\n{''.join(traceback.format_exception(error))}\n")
        return f", traceback in {self._file}"


class Telling:
    """A task whose errors are EnvErrors, so that whoever plays can tell them from errors of ours. All else is the task's own."""

    def __init__(self, make: Callable[[], Task]) -> None:
        self._task = self._told(make)

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode."""
        return self._told(self._task.reset, seed)

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Advance."""
        return self._told(self._task.step, action)

    def _told(self, call: Callable[..., T], *arguments: Any) -> T:
        try:
            return call(*arguments)
        except Exception as error:
            raise EnvError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_task"], name)


def cause(error: Exception) -> str:
    """An error in one line: of a worker's traceback the last line, which says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    named = text if isinstance(error, EnvError | ValueError) or len(lines) > 1 else f"{type(error).__name__}: {text}".rstrip(": ")
    return named[:200]
