"""What follows the gradients in an update that is recorded on a GPU: one kernel over all tensors, and nothing that the host must decide.

A tensor at a time, a step is some thousand small kernels. Here a table of addresses stands for the tensors, each program of the kernel
takes a piece of one of them, and whether anything moves at all is read on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .mover import Mover
from .optim import Optimizer, with_gradient

if TYPE_CHECKING:
    from .agent import Dreamer

BLOCK = 2048
"""Elements of a program."""


class Step:
    """The step of one group's parameters that have a gradient. `turn` has to be called before each of them."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], params: list[Tensor]) -> None:
        self.optimizer, self.group, self.params = optimizer, group, params
        device, count = params[0].device, len(params)
        moments = optimizer.moments(params)
        if not all(t.is_contiguous() and t.dtype == torch.float32 for t in (*params, *moments[0], *moments[1])):
            raise ValueError("parameters must be contiguous and float32 for a recorded step")
        pieces = [(i, at) for i, p in enumerate(params) for at in range(0, p.numel(), BLOCK)]
        self.pieces = torch.tensor(pieces, device=device, dtype=torch.int32).contiguous()
        self.table = torch.zeros(5, count, dtype=torch.int64, pin_memory=device.type == "cuda")
        for row, tensors in zip((0, 2, 3), (params, *moments), strict=True):
            self.table[row] = torch.tensor([t.data_ptr() for t in tensors])
        self.table[4] = torch.tensor([p.numel() for p in params])
        self.dials = torch.zeros(4, count, pin_memory=device.type == "cuda")
        self.here = torch.zeros(4, count, device=device)  # the dials on the device
        self.sums = torch.zeros(len(pieces), 2, device=device)
        self.turn()

    def turn(self) -> None:
        """Set rate and bias corrections to those of the coming update."""
        self.dials.copy_(torch.tensor(self.optimizer.dials(self.group, self.params)))
        self.here.copy_(self.dials, non_blocking=True)

    def __call__(self, norms: Tensor, good: Tensor) -> dict[str, Tensor]:
        """Move everything if good (), given the norm of each gradient (n,); scalars for the log."""
        from . import gpukernels as kernels  # Triton comes with torch for GPUs only

        cfg, count = self.optimizer.cfg, len(self.params)
        gradients = [p.grad for p in self.params]
        self.table[1] = torch.tensor([g.data_ptr() if g is not None else 0 for g in gradients])
        assert all(g is not None and g.is_contiguous() for g in gradients)
        # While an update is recorded this becomes a part of it, which reads the pinned table each time.
        table = self.table.to(self.here.device, non_blocking=True)
        norm = norms.norm()
        shrink = self.optimizer.shrinks(self.group, self.params, norms, norm)
        kernels.move[(len(self.pieces),)](
            table, self.pieces, self.here, shrink, good.int(), self.sums, count, cfg.beta1, cfg.beta2, cfg.eps,
            adam=cfg.kind == "adam", nesterov=cfg.nesterov and cfg.kind == "laprop", block=BLOCK,
        )  # fmt: skip
        root = math.sqrt(sum(p.numel() for p in self.params))
        squares = self.sums.sum(0).sqrt() / root
        rate = self.here[0, 0].clone()
        return {"grad_norm": norm, "update_rms": squares[0] * rate, "param_rms": squares[1], "lr": rate}


class GPUMover(Mover):
    """A mover that may be recorded: whether the update was good is read on the device.

    Made after an update, whose gradients say which parameters have one. Around each call, or replay of one, belong `turn` and `moved`.
    """

    def __init__(self, agent: Dreamer, optimizer: Optimizer) -> None:
        super().__init__(agent, optimizer)
        self.steps = [Step(optimizer, g, params) for g in optimizer.param_groups if (params := with_gradient(g))]
        self._moments = [optimizer.state[p]["first"] for step in self.steps for p in step.params]

    @torch.no_grad()
    def __call__(self, norms: Mapping[Tensor, Tensor], good: Tensor, kept: list[Tensor]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for step in self.steps:
            metrics |= self.optimizer.named(step.group, step(torch.stack([norms[p] for p in step.params]), good))
        for buffer, before in zip(self.agent.buffers(), kept, strict=True):
            buffer.copy_(torch.where(good, buffer, before))
        self.agent.updates += good
        for objective in self.agent.objectives():
            objective.follow_where(self.agent.updates, good)
        return metrics

    @torch.no_grad()
    def load(self) -> None:
        """Have the kernel compiled and loaded, by a step that moves nothing."""
        for step in self.steps:
            still = torch.zeros((), dtype=torch.bool, device=step.here.device)
            step(torch.ones(len(step.params), device=step.here.device), still)

    def valid(self) -> bool:
        """Whether the moments are still those that were there at first: loading a checkpoint brings others."""
        now = (self.optimizer.state[p].get("first") for step in self.steps for p in step.params)
        return all(a is b for a, b in zip(now, self._moments, strict=True))

    def turn(self) -> None:
        """Get ready for the coming update. Waits for the last one, because what it was tells how many there were."""
        self.optimizer.settle()
        for step in self.steps:
            step.turn()

    def moved(self, skipped: Tensor) -> None:
        """Count the update that was just begun. Whether it was good, `skipped` () tells who has to know; nobody waits for it now."""
        self._count(1)
        self.optimizer.unsettled = partial(self._settle, skipped)

    def _settle(self, skipped: Tensor) -> None:
        if bool(skipped):
            self._count(-1)

    def _count(self, updates: int) -> None:
        for step in self.steps:
            self.optimizer.count(step.params, updates)
        for group in self.optimizer.param_groups:
            group["updates"] += updates
