"""Cells on a Ray cluster of two nodes on this machine: files come back, failures are told, and a node may die midway."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from polydream.core.config import ConfigError
from polydream.eval import runner
from polydream.eval.grid import DONE, FAILED, Cell, Glance, Grid, identity

from .benches import small_grid

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, time
from pathlib import Path
home, variant, seed, gate = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
(home / "metrics.jsonl").write_text('{"step": 700, "kind": "episode", "return": 4.0}\\n')
(home / "videos").mkdir(exist_ok=True)
(home / "videos" / "eval-1.mp4").write_bytes(b"film")
print("threads", os.environ["OMP_NUM_THREADS"])
if variant == "bad":
    raise SystemExit("no such luck")
(gate / f"{variant}-{home.name}-begun").touch()
while not (gate / "open").exists():
    time.sleep(0.05)
"""


class Scripted(Cell):
    """A cell that runs a script of the test on its node, held until the file `open` appears."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(self.directory), self.variant, str(self.seed), self.options["gate"]]


class Small(Grid):
    """The small grid of such cells."""

    def _cell(self, variant: str, entry: Any, seed: int) -> Cell:
        cell = super()._cell(variant, entry, seed)
        return Scripted(cell.variant, cell.entry, cell.seed, cell.directory, cell.steps, cell.options)


def grid_of(directory: Path, gate: Path, variants: tuple[str, ...]) -> Small:
    gate.mkdir(exist_ok=True)
    plain = small_grid(directory, variants, seeds=1)
    return Small(plain.suite, variants, (0,), directory, {"gate": str(gate)})


@pytest.fixture
def nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster as Local

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    system = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Local(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": system})
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, workers
    ray.shutdown()
    cluster.shutdown()


def test_two_nodes_run_a_grid_and_one_may_die(tmp_path: Path, nodes: Any) -> None:
    from polydream.eval.cluster import Cluster

    cluster, workers = nodes
    grid, gate, said = grid_of(tmp_path / "bench", tmp_path / "gate", ("base", "bad")), tmp_path / "gate", list[str]()
    backend = Cluster("auto", threads=1, environment={"MLFLOW_RUN_ID": ""})
    assert backend.free() == 2
    seen: list[Glance] = []
    killed = False

    def show(running: Mapping[Cell, Glance]) -> None:
        nonlocal killed
        seen.extend(running.values())
        assert len(running) <= 2
        if not killed and len(list(gate.glob("base-*"))) == 2:  # both nodes hold a cell
            cluster.remove_node(workers[0], allow_graceful=False)
            killed = True
        elif killed and any("vanished" in text for text in said):
            (gate / "open").touch()
        time.sleep(0.05)

    assert not runner.run(grid, backend, show, said.append)
    states = {cell.label: cell.state for cell in grid.cells}
    assert states == {
        "base chain seed 0": DONE, "bad chain seed 0": FAILED, "base reach seed 0": DONE, "bad reach seed 0": FAILED,
    }  # fmt: skip
    assert killed and sum("vanished" in text for text in said) == 1
    assert sum(cell.read().get("losses", 0) for cell in grid.cells) == 1
    done, bad = grid.cells[0], grid.cells[1]
    assert done.glance().step == 700 and (done.directory / "videos" / "eval-1.mp4").read_bytes() == b"film"
    assert "threads 1" in (done.directory / "cell.log").read_text()
    assert bad.reason == "no such luck" and bad.read()["crashes"] == 2
    assert Glance(700, 4.0, 0.0) in seen
    with pytest.raises(ConfigError, match="still runs on this machine"):
        done.write(process=identity(1))
        backend.adopt(done)


def test_no_cluster_is_said_with_a_cure() -> None:
    from polydream.eval.cluster import Cluster

    with pytest.raises(ConfigError, match="begin one with `ray start --head`"):
        Cluster("127.0.0.1:1")
