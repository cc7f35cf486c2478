"""Being asked to stop: held back while the run's state is half changed, heeded at once elsewhere, and never waited for too long."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to stop. `code` is what it should exit with: 128 + the signal's number (130, 143)."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Signals:
    """SIGINT and SIGTERM raise `Stopped`, at once outside of `held`, at the next `check` or the end of it inside.

    grace: seconds from the first signal after which the process exits whatever it is doing; whatever is saved by then counts. A
    second signal exits at once. Handlers are those of the main thread; made anywhere else this does nothing.
    noticed: called with the exit code when the first signal arrives, from the handler.
    """

    def __init__(self, grace: float = 30.0) -> None:
        self.grace = grace
        self.noticed: Callable[[int], None] = lambda code: None
        self._number = 0
        self._depth = 0
        self._raised = False
        self._watch: threading.Timer | None = None
        self._before: dict[int, object] = {}

    @property
    def pending(self) -> bool:
        """Whether a signal has arrived that nobody was told of yet."""
        return bool(self._number) and not self._raised

    def check(self) -> None:
        """Raise `Stopped` where a signal has arrived that was not yet raised."""
        if self.pending:
            self._raised = True
            raise Stopped(self._number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals back; one that arrived is raised by `check` or at the end, unless an error leaves the block."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth:
            self.check()

    @contextmanager
    def open(self) -> Iterator[None]:
        """A window inside of `held` in which signals raise at once: for work that changes nothing of the run's state."""
        depth, self._depth = self._depth, 0
        try:
            self.check()
            yield
        finally:
            self._depth = depth

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        self._watch = threading.Timer(self.grace, self._give_up)
        self._watch.daemon = True
        self._watch.start()
        self.noticed(128 + number)
        if not self._depth:
            self.check()

    def _give_up(self) -> None:
        print(f"polydream: still busy {self.grace:g} s after {signal.Signals(self._number).name}: exiting", file=sys.stderr, flush=True)
        os._exit(128 + self._number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in NUMBERS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch:
            self._watch.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
