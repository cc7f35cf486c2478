"""What is made for a GPU: kernels by Triton's interpreter on any processor, and the rest on a GPU, where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from polydream.core.config import ConfigError
from polydream.core.launch import choose_device
from polydream.core.rng import Draws
from tests.fixtures import IMAGE, VECTOR, agent, batch

ROOT = Path(__file__).parent.parent
GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TRITON = os.environ.get("POLYDREAM_TRITON")
"""Where Triton lies, if not among what is installed: .ci/run puts it there."""
interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and not TRITON,
    reason="needs triton, which comes with torch for GPUs, or POLYDREAM_TRITON=folder",
)


@interpreted
@pytest.mark.parametrize(
    "what",
    [
        "scan 64 16 2 4 4 3 4",  # several groups of classes in a tile, fewer sequences than rows
        "scan 128 16 4 2 16 16 3",  # a group a tile
        "move laprop single",
        "move adam split",
    ],
)
def test_kernels_compute_what_the_processor_does(what: str) -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [TRITON, os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(ROOT / "tests" / "interpreted.py"), *what.split()]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_processor_records_nothing_and_says_so() -> None:
    with pytest.raises(ConfigError, match="compile=graph.*use compile=steps"):
        choose_device("cpu", "graph")


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("good", [True, False])
def test_slow_critics_follow_alike_where_the_host_cannot_look(every: int, good: bool) -> None:
    one, other = agent(), agent()
    for objective in (one.objectives()[0], other.objectives()[0]):
        objective.cfg = type(objective.cfg)(**{**vars(objective.cfg), "slow_every": every})
        for parameter in objective.critic.parameters():
            parameter.data += 1
    for update in range(1, 5):
        if good:
            one.objectives()[0].follow(update)
        other.objectives()[0].follow_where(torch.tensor(update), torch.tensor(good))
    torch.testing.assert_close(one.state_dict(), other.state_dict())


@on_gpu
@pytest.mark.parametrize("spec", [VECTOR, IMAGE], ids=["vector", "image"])
def test_a_recorded_update_computes_what_the_plain_one_does(spec: object) -> None:
    """Five updates of which the fourth, a replay, is not good: then nothing moves. The fifth counts from there."""
    plain, mine = (agent(spec).to(GPU) for _ in range(2))  # type: ignore[arg-type]
    plain.accelerate(compile="steps")
    mine.accelerate(compile="graph")
    optimizers, data = (plain.optimizer(), mine.optimizer()), batch(plain.spec).to(GPU)
    bad = data.clone()
    bad["reward"][0, 3] = float("nan")
    for i, given in enumerate((data, data, data, bad, data)):
        before = [v.clone() for v in mine.state_dict().values()]
        (first, latents), (second, others) = (a.update(given, o, Draws(0, i, GPU)) for a, o in zip((plain, mine), optimizers, strict=True))
        assert first.keys() == second.keys() and bool(second["opt/skipped"]) == (i == 3)
        torch.testing.assert_close([*mine.parameters()], [*plain.parameters()], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(others["deter"], latents["deter"], rtol=1e-3, atol=1e-4)
        if i == 3:
            assert all(torch.equal(a, b) for a, b in zip(before, mine.state_dict().values(), strict=True))
    optimizers[1].settle()
    assert [s["step"] for s in optimizers[1].state.values()] == [s["step"] for s in optimizers[0].state.values()]


@on_gpu
def test_a_recording_takes_what_is_loaded() -> None:
    """A checkpoint brings other moments: they are not written past."""
    mine, data = agent().to(GPU), batch(VECTOR).to(GPU)
    mine.accelerate(compile="graph")
    optimizer = mine.optimizer()
    for i in range(4):
        mine.update(data, optimizer, Draws(0, i, GPU))
    for slot in optimizer.state.values():
        slot |= {k: torch.zeros_like(slot[k]) for k in ("first", "second")}
    mine.update(data, optimizer, Draws(0, 4, GPU))
    assert all(slot["second"].any() for slot in optimizer.state.values())
