"""Run by test_gpu.py in a process of its own: what is written in Triton, by its interpreter, against what the processor computes.

Triton must be told before its first import that it is to interpret, and then does so for the whole process.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys

import torch
import triton.language as tl

from polydream.core import gpukernels, gpuscan, scan
from polydream.core.cells import CellWeights
from polydream.core.gpumover import GPUMover
from polydream.core.mover import Mover
from polydream.core.nets import DenseWeights
from polydream.core.optim import OptimConfig
from polydream.core.rng import Draws
from tests.fixtures import agent, batch

gpukernels.KIND = tl.constexpr(tl.float32)
NAMES = ("deter", "stoch", "logits", "d deter", "d stoch", "d action", "d seen", *(f"d weight {i}" for i in range(16)))


def scanned(D: int, H: int, G: int, S: int, C: int, B: int, T: int) -> None:
    """States, and gradients of everything, of a scan in which episodes begin at its first step and in the middle."""
    g = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=g)

    Z = S * C
    first, second, third = ((DenseWeights(some(n, H), some(H), 1 + some(H))) for n in (D, Z, 3))
    cell = CellWeights(
        first, second, third, some(G, D // G, D // G), some(3 * H, D), some(D), 1 + some(D), some(G, D // G, 3 * D // G), some(3 * D)
    )
    post = scan.PostWeights(some(D, H), 1 + some(H), some(H, Z), some(Z))
    keep = torch.ones(T, B, 1)
    keep[0, 0] = keep[2, 1] = 0
    drawn = torch.nn.functional.one_hot(torch.randint(C, (B, S), generator=g), C).float().flatten(1)
    inputs, noise = [some(B, D), drawn, some(T, B, H), some(T, B, H)], torch.rand(T, B, S, generator=g)
    weights = list(scan.flattened(cell, post))
    settings = scan.Settings((S, C), 0.01, torch.float32, False, True)
    found = []
    for run in (scan._Scan, gpuscan.FusedScan):
        x, w = ([t.clone().requires_grad_() for t in ts] for ts in (inputs, weights))
        out = run.apply(settings, x[0], x[1], keep, x[2], x[3], noise, *w)[:3]
        loss = sum((o * torch.randn(o.shape, generator=torch.Generator().manual_seed(i))).sum() for i, o in enumerate(out))
        found.append([*out, *torch.autograd.grad(loss, x + w)])  # type: ignore[arg-type]
    for name, plain, mine in zip(NAMES, *found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def moved(kind: str, groups: str) -> None:
    """Weights, slow critics, moments and buffers after three updates, of which the second is not good."""
    optim = OptimConfig(kind=kind, groups=groups, warmup=2, decay=0.1, clip=1.0, clip_actor=0.1, nesterov=True)  # type: ignore[arg-type]
    plain, mine = agent(optim=optim), agent(optim=optim)
    optimizers = plain.optimizer(), mine.optimizer()
    data = batch(plain.spec)
    bad = data.clone()
    bad["reward"][0, 3] = float("nan")
    for i, given in enumerate((data, bad, data)):
        first, _ = plain._update(given, optimizers[0], Draws(0, i), 1, Mover(plain, optimizers[0]))
        if not i:  # a mover is made after an update
            mine._update(given, optimizers[1], Draws(0, i), 1, Mover(mine, optimizers[1]))
            mover = GPUMover(mine, optimizers[1])
            mover.load()
            continue
        mover.turn()
        second, _ = mine._update(given, optimizers[1], Draws(0, i), 1, mover)
        mover.moved(second["opt/skipped"])
        assert bool(first["opt/skipped"]) == bool(second["opt/skipped"]) == (i == 1)
        for key in first:
            torch.testing.assert_close(second[key], first[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}")
    optimizers[1].settle()
    mine_tensors, plain_tensors = ([*a.state_dict().values()] for a in (mine, plain))
    torch.testing.assert_close(mine_tensors, plain_tensors, rtol=1e-5, atol=1e-7)
    for a, b in zip(*(o.state.values() for o in optimizers), strict=True):
        assert a["step"] == b["step"] == 2
        torch.testing.assert_close([a["first"], a["second"]], [b["first"], b["second"]], rtol=1e-4, atol=1e-8)
    assert [g["updates"] for g in optimizers[1].param_groups] == [g["updates"] for g in optimizers[0].param_groups]


if __name__ == "__main__":
    {"scan": scanned, "move": moved}[sys.argv[1]](*(int(a) if sys.argv[1] == "scan" else a for a in sys.argv[2:]))  # type: ignore[operator]
