"""Cells on a Ray cluster. Nodes need polydream installed and share nothing with this machine but the MLflow server.

A cell runs in a folder of its node; its files come back through Ray when it has ended. A node that dies takes its cells
along: they count as lost, not as crashed, and begin again elsewhere.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.config import ConfigError
from .grid import OUTPUT, STATE, Cell, Glance
from .runner import GRACE, LOST, Local, prepare

BROUGHT = ("config.yaml", "metrics.jsonl", "mlflow.json", "report.html", OUTPUT, "videos/*", "pictures/*", "checkpoints/*/*")
LARGEST = 2**29  # bytes of a file that is brought back; larger ones (checkpoints of large models) stay where they are


class Seat:
    """A place on a node: runs one cell and tells how it does. Lives in a Ray actor."""

    def __init__(self, cell: Cell, threads: int, environment: Mapping[str, str]) -> None:
        self.cell = replace(cell, directory=Path(tempfile.mkdtemp(prefix="polydream-")) / cell.directory.name)
        # Ray has already chosen the GPU of this actor (CUDA_VISIBLE_DEVICES).
        variables = Local(1, threads, (), environment).variables(0)
        command = prepare(self.cell)
        with (self.cell.directory / OUTPUT).open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables)

    def poll(self) -> tuple[int | None, Glance]:
        """Exit code, None while it runs, and how far it is."""
        return self.process.poll(), self.cell.glance()

    def files(self) -> dict[str, bytes]:
        """What the cell has left, by name relative to its directory."""
        home = self.cell.directory
        found = (path for pattern in BROUGHT for path in home.glob(pattern) if path.is_file() and path.stat().st_size <= LARGEST)
        return {path.relative_to(home).as_posix(): path.read_bytes() for path in found}

    def stop(self) -> None:
        """End it with a checkpoint."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()


def _knock(address: str) -> None:
    """Raise ConfigError within seconds where nothing listens at host:port: Ray itself tries for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster at {address!r} ({error}); begin one with `ray start --head`") from None


class Cluster:
    """A backend of the runner: as many cells at a time as the cluster has cores for, or `jobs`; each gets a GPU where there are any.

    address: "auto" for the cluster that this machine belongs to, or host:port. Raises ConfigError where there is none.
    """

    def __init__(self, address: str, *, threads: int = 1, jobs: int | None = None, environment: Mapping[str, str] | None = None) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError('--cluster needs Ray: pip install "polydream[ray]"') from None
        if not ray.is_initialized():
            _knock(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                told = " ".join(str(error).split())[:200]
                raise ConfigError(f"no Ray cluster at {address!r} ({told}); begin one with `ray start --head`") from None
        self._ray, self.threads, self.jobs, self.environment = ray, threads, jobs, dict(environment or {})
        self._running: dict[Cell, tuple[Any, Any]] = {}
        self._glances: dict[Cell, Glance] = {}

    def free(self) -> int:
        """Cells that the nodes which are alive have cores for."""
        total = self.jobs or int(self._ray.cluster_resources().get("CPU", 0) // self.threads)
        return total - len(self._running)

    def start(self, cell: Cell) -> None:
        """An actor on some node."""
        gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
        remote: Any = self._ray.remote(Seat)
        seat = remote.options(num_cpus=self.threads, num_gpus=gpus, max_restarts=0)
        actor = seat.remote(cell, self.threads, self.environment)
        told = cell.read()
        cell.write(command=cell.words, attempts=told.get("attempts", 0) + 1)
        self._running[cell] = (actor, actor.poll.remote())
        self._glances[cell] = Glance()

    def adopt(self, cell: Cell) -> None:
        """Cells of this machine cannot be taken into a cluster."""
        raise ConfigError(f"{cell.label} still runs on this machine (process {cell.read()['process'][0]}): end it, or leave out --cluster")

    def ended(self) -> list[tuple[Cell, int | None]]:
        """Cells whose process ended, their files brought here; LOST where the node, or Ray's worker on it, has died."""
        found: list[tuple[Cell, int | None]] = []
        for cell, (actor, answer) in list(self._running.items()):
            if not self._ray.wait([answer], timeout=0)[0]:
                continue
            try:
                code, self._glances[cell] = self._ray.get(answer)
                if code is None:
                    self._running[cell] = (actor, actor.poll.remote())
                    continue
                self._bring(cell, actor)
            except self._ray.exceptions.RayActorError:
                code = LOST
            del self._running[cell]
            self._ray.kill(actor)
            found.append((cell, code))
        return found

    def _bring(self, cell: Cell, actor: Any) -> None:
        for name, data in self._ray.get(actor.files.remote()).items():
            path = (cell.directory / name).resolve()
            if name == STATE or not path.is_relative_to(cell.directory.resolve()):
                raise ValueError(f"a node sent a file that it must not: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def glances(self) -> dict[Cell, Glance]:
        """What the nodes told last."""
        return {cell: self._glances[cell] for cell in self._running}

    def stop(self) -> None:
        """SIGTERM to all, then what they have left is brought here."""
        stopping = {cell: actor.stop.remote() for cell, (actor, _) in self._running.items()}
        for cell, done in stopping.items():
            actor, _ = self._running.pop(cell)
            try:
                self._ray.get(done, timeout=GRACE + 10)
                self._bring(cell, actor)
            except self._ray.exceptions.RayError:
                continue  # its node has died: nothing to bring
            finally:
                self._ray.kill(actor)
