"""Runs the cells of a grid: a few at a time, on this machine or elsewhere, until every one is done or has failed.

What a cell's state is, its files say (`grid.py`); here is only who runs now. One failing cell never stops the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import psutil

from ..core.config import ConfigError
from ..core.log import seconds
from .grid import ATTEMPTS, DONE, FAILED, OUTPUT, RUNNING, WAITING, Cell, Glance, Grid, alive, identity

PERIOD = 0.5  # seconds between looks
GRACE = 120.0  # seconds that stopped cells have to write a checkpoint
LOSSES = 5  # times that a cell may vanish with its machine before that counts as a crash
BAD_INPUT = 2  # exit code of a command line that cannot be carried out
LOST = None
"""Exit code of a cell that nobody saw ending."""


class Backend(Protocol):
    """Where cells run."""

    def free(self) -> int:
        """How many more cells may be started now."""
        ...

    def start(self, cell: Cell) -> None:
        """Begin a cell, or go on with it from its checkpoint."""
        ...

    def adopt(self, cell: Cell) -> None:
        """Watch a cell whose process was left behind by an earlier runner on this machine."""
        ...

    def ended(self) -> list[tuple[Cell, int | None]]:
        """Cells that ended since the last call, with their exit code, or LOST. Their files are in their directories."""
        ...

    def glances(self) -> dict[Cell, Glance]:
        """How far the running cells are."""
        ...

    def stop(self) -> None:
        """End all running cells with a checkpoint, and wait for them."""
        ...


class Local:
    """Cells as processes of this machine, `jobs` at a time, each with `threads` threads and, in turn, one of `devices` (GPUs).

    environment: variables that cells get beside those of this process; those set to "" are taken away.
    """

    def __init__(self, jobs: int, threads: int = 1, devices: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        if jobs < 1 or threads < 1:
            raise ValueError(f"jobs and threads must be at least 1, not {jobs} and {threads}")
        self.jobs, self.threads, self.devices = jobs, threads, tuple(devices)
        self.environment = dict(environment or {})
        self._running: dict[int, tuple[Cell, subprocess.Popen[bytes] | None]] = {}

    def free(self) -> int:
        """Places without a cell."""
        return self.jobs - len(self._running)

    def start(self, cell: Cell) -> None:
        """A process of its own session: Ctrl-C reaches only the runner, which then stops it in order."""
        place = self._place()
        command = prepare(cell)
        with (cell.directory / OUTPUT).open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.variables(place), start_new_session=True
            )
        cell.write(process=identity(process.pid), place=place)
        self._running[place] = (cell, process)

    def adopt(self, cell: Cell) -> None:
        """The cell takes a place, an additional one if none is free."""
        self._running[self._place()] = (cell, None)

    def _place(self) -> int:
        return next(i for i in range(len(self._running) + 1) if i not in self._running)

    def variables(self, place: int) -> dict[str, str]:
        """The environment of a cell at a place: its share of cores and devices."""
        shares = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self.threads))
        if self.devices:
            shares["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        merged = {**os.environ, **shares, **self.environment}
        return {key: value for key, value in merged.items() if self.environment.get(key) != ""}

    def ended(self) -> list[tuple[Cell, int | None]]:
        """Processes that have ended. Of an adopted one the exit code is unknown."""
        found: list[tuple[Cell, int | None]] = []
        for place, (cell, process) in list(self._running.items()):
            # Of a process of ours only the exit code counts: one that ends right now is dead before it has a code.
            code = process.poll() if process else None
            if code is None if process else alive(cell.read().get("process")):
                continue
            del self._running[place]
            found.append((cell, code))
        return found

    def glances(self) -> dict[Cell, Glance]:
        """From the files."""
        return {cell: cell.glance() for cell, _ in self._running.values()}

    def stop(self) -> None:
        """SIGTERM, which training answers with a checkpoint; SIGKILL to what is still there after `GRACE` seconds."""
        processes = [p for cell, _ in self._running.values() if (p := _process(cell)) is not None]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, stubborn = psutil.wait_procs(processes, GRACE)
        for process in stubborn:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._running.clear()


def _process(cell: Cell) -> psutil.Process | None:
    told = cell.read().get("process")
    return psutil.Process(int(told[0])) if told and alive(told) else None


def prepare(cell: Cell) -> list[str]:
    """Make the directory ready for the next attempt and return the command that begins it or goes on."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    told = cell.read()
    if told.get("stuck"):
        cell.clear(checkpoints=True)
    command, start = cell.command(), cell.saved
    if not cell.begun:
        cell.clear()
    cell.write(command=cell.words, attempts=told.get("attempts", 0) + 1, start=start, stuck=False)
    with (cell.directory / OUTPUT).open("a") as output:
        output.write(f"$ {' '.join(command)}\n")
    return command


def judge(cell: Cell, code: int | None) -> str:
    """Write down how a cell ended, and return its state. A cell that vanished with its machine is only counted as lost."""
    told = cell.read()
    # By its own log, on whatever machine that was written and whenever its end was noticed.
    values = {"process": None, "exit": code, "seconds": round(seconds(cell.rows()), 1)}
    if code == 0 or (code is LOST and cell.complete()):
        cell.write(**values, done=True)
    elif code is LOST and told.get("losses", 0) + 1 < LOSSES:
        cell.write(**values, losses=told.get("losses", 0) + 1)
    else:
        # One that cannot even go on from its checkpoint gets its next attempt from the beginning; bad input stays bad.
        crashes = ATTEMPTS if code == BAD_INPUT else told.get("crashes", 0) + 1
        cell.write(**values, crashes=crashes, stuck=0 < cell.saved == told.get("start"))
    return cell.state


def check(grid: Grid) -> None:
    """Refuse to mix runs of different settings in one directory: ConfigError names the first cell that differs."""
    for cell in grid.cells:
        before = cell.read().get("command")
        if before is not None and before != cell.words:
            changed = [f"{a} -> {b}" for a, b in zip(_pairs(before), _pairs(cell.words), strict=False) if a != b]
            raise ConfigError(
                f"{cell.directory} was begun with other settings ({'; '.join(changed) or 'other options'}): choose another --dir"
            )


def _pairs(words: Sequence[str]) -> list[str]:
    return [f"{words[i]} {words[i + 1]}" for i in range(0, len(words) - 1) if words[i].startswith("--")]


def forgive(grid: Grid) -> None:
    """Give cells that have failed in an earlier run of the runner their attempts again."""
    for cell in grid.cells:
        if cell.state == FAILED:
            cell.write(crashes=0, losses=0)


def run(grid: Grid, backend: Backend, show: Callable[[Mapping[Cell, Glance]], None], said: Callable[[str], None] = print) -> bool:
    """Run every cell that is not done. True where all are done in the end; what failed is said and written in cell.json.

    show: called every half second with the cells that run now. KeyboardInterrupt stops the cells with checkpoints and is raised again.
    """
    check(grid)
    for cell in grid.cells:  # ended after the runner had died
        if cell.state == WAITING and cell.read().get("process") and cell.complete():
            judge(cell, LOST)
    waiting = [cell for cell in grid.cells if cell.state not in (DONE, FAILED, RUNNING)]
    for cell in grid.cells:
        if cell.state == RUNNING:
            backend.adopt(cell)
    try:
        while True:
            for cell, code in backend.ended():
                state = judge(cell, code)
                if state not in (DONE, FAILED):
                    waiting.insert(0, cell)
                if state != DONE:
                    said(f"{cell.label}: {_story(cell, code, state)}")
            while waiting and backend.free() > 0:
                backend.start(waiting.pop(0))
            running = backend.glances()
            show(running)
            if not running and not waiting:
                return all(cell.state == DONE for cell in grid.cells)
            time.sleep(PERIOD)
    except BaseException:  # whatever it was, no process is left behind
        backend.stop()
        raise


def _story(cell: Cell, code: int | None, state: str) -> str:
    if code is LOST and state != FAILED:
        return "its process vanished; it starts again"
    how = f"ended with code {code} ({cell.reason})"
    return f"{how}; it is tried once more" if state != FAILED else f"{how}; given up: {cell.directory / OUTPUT}"
