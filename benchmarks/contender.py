"""An implementation that is measured, in a process of its own: it sleeps until told over a pipe what to do, then says how long it took.

Interleaved calls to sleeping processes share the machine's good and bad moments evenly, and keep one implementation's
threads, caches and pins out of the other's way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from . import machine
from .case import Case

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers/bin/python"
Handler = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a contender computes. compile: the contender's own names; "none" is eager."""

    dtype: str = "float32"
    compile: str = "none"


class Unsupported(Exception):
    """A mode that a contender does not have. The message is one line."""


class Contender(Protocol):
    """What every implementation offers to be measured."""

    facts: dict[str, Any]
    """`version`, `parameters`, `note`: what differs from the others, empty if nothing does."""

    def update(self) -> None:
        """One full update on the case's batch: world model, actor, critic, slow critic, optimizer."""
        ...

    def acting(self, environments: int) -> Callable[[], None]:
        """A function that takes one policy step: observations as arrays in, actions and latents as arrays out."""
        ...


# ------------------------------------------------------------------------------------------------ inside the process


def contend(make: Callable[[Case, Mode], Contender]) -> None:
    """The main function of a contender's module: build it from the command line, then serve."""
    serve(lambda case, mode: _handlers(make(case, Mode(**mode)), case))


def serve(make: Callable[[Case, dict[str, Any]], dict[str, Handler]]) -> None:
    """Answer requests {"do": name, ...} from stdin, one line of JSON each, until there are no more.

    argv: the case and further settings, both as JSON. The first line written is the answer of the handler `ready`.
    """
    # Libraries print what they like: the pipe is kept for answers, their output goes where errors go.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case, settings = Case.from_json(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(case.threads)

    def answer(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        handlers = make(case, settings)
    except Unsupported as error:
        answer({"unsupported": str(error)})
        return
    answer(handlers.pop("ready")())
    for line in sys.stdin:
        request = json.loads(line)
        answer(handlers[request.pop("do")](**request))


def _handlers(contender: Contender, case: Case) -> dict[str, Handler]:
    steps: dict[int, Callable[[], None]] = {}

    def act(environments: int, count: int) -> dict[str, Any]:
        if environments not in steps:
            steps[environments] = contender.acting(environments)
        return timed(steps[environments], count, case.device)

    return {"ready": lambda: contender.facts, "update": lambda count: timed(contender.update, count, case.device), "act": act}


def timed(call: Callable[[], object], count: int, device: str) -> dict[str, Any]:
    """Seconds of each of some calls, the peak memory meanwhile in GB, and the cores that others used."""
    machine.forget_peak(device)
    others = machine.Others()
    times = []
    for _ in range(count):
        machine.synchronize(device)
        begin = time.perf_counter()
        call()
        machine.synchronize(device)
        times.append(time.perf_counter() - begin)
    return {"seconds": times, "peak GB": machine.peak(device), "others": others.cores()}


# ------------------------------------------------------------------------------------------------ outside


class Process:
    """A server in a process of its own. Raises Unsupported for a mode that it does not have.

    module: what to run with `-m`. settings: its second argument. python: of the environment it is installed in.
    """

    def __init__(self, module: str, case: Case, settings: Mapping[str, Any], python: str | Path = sys.executable) -> None:
        if not Path(python).exists():
            raise FileNotFoundError(f"{python} does not exist: make the environment of the peers first, with `make benchmark-peers`")
        threads = {"OMP_NUM_THREADS": str(case.threads), "MKL_NUM_THREADS": str(case.threads)}
        command = [str(python), "-m", module, case.to_json(), json.dumps(dict(settings))]
        self.module, begin = module, time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | threads
        )
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise
        self.start = time.perf_counter() - begin  # seconds to import and build
        if "unsupported" in self.facts:
            self.close()
            raise Unsupported(self.facts["unsupported"])

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises RuntimeError where the process ended instead."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # a process that has ended is noticed where its answer is missing
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} ended with status {self.process.wait()}; what it wrote is above")
        return json.loads(line)

    def close(self) -> None:
        """End the process, now."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
