"""Collecting beside learning: steps taken in a thread, with a snapshot of the weights, while the learner updates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

import torch
from torch import nn

from .collector import Collector, Row


class Flight:
    """Takes `steps` steps of all environments at a time, from `start` to `land`, with weights as they were at the start.

    What holds: the rows depend on the snapshot, the environments and the collector's state alone, and all that a flight changes
    is the collector's. So timing decides nothing: a flight that has landed before the learner goes on gives the same rows.

    collector: whose agent is a copy of its own, of the same class and on the same device as `learner`. say: told in `land`, in
    order, what was passed to `tell` from within a flight, and at once what was not.
    """

    def __init__(self, collector: Collector, learner: nn.Module, steps: int, say: Callable[[list[str]], None]) -> None:
        self.collector, self.learner, self.steps, self.say = collector, learner, steps, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="flight", initializer=_keep_casts)
        self._pending: Future[list[Row]] | None = None
        self._inside: int | None = None  # the thread that is stepping
        self._told: list[str] = []
        self._ending = False

    def start(self, rows: int, decisions: int, beside: bool = True) -> None:
        """Copy the learner's weights and begin. rows, decisions: how many there were before. beside: whether to return at once;
        without, the flight is over when this returns, and `land` hands over what came of it."""
        # Of one memory with the modules, and with their version counters, by which laid-out weights are known to be old.
        own, learned = self.collector.agent.state_dict(), self.learner.state_dict()
        with torch.no_grad():
            torch._foreach_copy_(list(own.values()), list(learned.values()))
        self._pending = self._thread.submit(self._fly, rows, decisions)
        if not beside:
            wait([self._pending])

    def land(self) -> list[Row]:
        """The rows of the flight that was started, waited for. Raises what went wrong in it."""
        assert self._pending is not None, "no flight was started"
        pending, self._pending = self._pending, None
        try:
            return pending.result()
        finally:
            self._pass_on()

    def tell(self, text: str) -> None:
        """Say it, or keep it for the landing where a flight says it: what the learner says meanwhile comes first, always."""
        if threading.get_ident() == self._inside:
            self._told.append(text)
        else:
            self.say([text])

    def _fly(self, rows: int, decisions: int) -> list[Row]:
        self._inside = threading.get_ident()
        found: list[Row] = []
        try:
            while len(found) < self.steps and not self._ending:
                found.append(self.collector.step(rows, decisions))
                rows, decisions = rows + self.collector.envs.n, decisions + found[-1].decisions
        finally:
            self._inside = None
        return found

    def _pass_on(self) -> None:
        told, self._told = self._told, []
        if told:
            self.say(told)

    def close(self) -> None:
        """End the thread after the step it is at. What was not landed is lost."""
        self._ending = True
        self._thread.shutdown(wait=True)
        self._pass_on()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _keep_casts() -> None:
    """Keep what this thread does from the casts of weights that the learner's autocast remembers.

    Torch remembers them for all threads, and whichever leaves its outermost autocast drops them all: a weight that an update uses
    twice would be cast twice, and its gradients be added up in another precision. So this thread never leaves its outermost one.
    """
    torch.autocast("cpu", enabled=False, cache_enabled=False).__enter__()
