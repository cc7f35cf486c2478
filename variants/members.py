"""Several modules of one shape, evaluated in one batched pass: what every kind of ensemble is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core.compiler import paused


class Members(nn.ModuleList):
    """E modules of one shape. Each keeps parameters of its own, so start values, clipping and moments are a member's, not the crowd's.

    A stacked parameter would be clipped by one norm for all members and would get no start values of its own by name.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__(modules)
        if not len(self):
            raise ValueError("an ensemble needs at least one member")

    def forward(self, *inputs: Tensor, shared: bool = True) -> Any:
        """Outputs of all members, each with a leading axis (E, ...).

        inputs: the same for all members, or with shared=False (E, ...), one slice for each. Parameters are stacked for the call;
        gradients reach those of each member.
        """
        first: nn.Module = self[0]
        stacked = {name: torch.stack([m.get_parameter(name) for m in self]) for name, _ in first.named_parameters()}
        axes = (0, *[None if shared else 0] * len(inputs))
        with paused(first):  # a compiled norm cannot be called within vmap
            return vmap(lambda own, *x: functional_call(first, own, x), axes)(stacked, *inputs)


def spread(values: Tensor) -> Tensor:
    """How much members differ: standard deviation over the E predictions (E, *, K), mean over the K elements. Returns (*).

    Without Bessel's correction, so that one member gives 0 (Sekar et al. 2020 use the variance; its root keeps the units).
    """
    return values.std(0, correction=0).mean(-1)


def kept(stepid: Tensor, members: int, share: float) -> Tensor:
    """Which members train on which replayed steps: bool (*, E) for steps (*, 2) named by (stream, step).

    A step is in a member's sample with probability `share` and stays in it or out of it for good: the answer is a hash of the
    step's name, so the replay has nothing to store (Osband et al. 2016, masks drawn once for each transition).
    """
    member = torch.arange(members, device=stepid.device)
    key = stepid[..., :1] * 0x9E3779B1 + stepid[..., 1:] * 0x85EBCA77 + member * 0xC2B2AE3D
    for _ in range(2):  # a round leaves steps that differ in few bits alike
        key = ((key ^ (key >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
        key = ((key ^ (key >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    key = key ^ (key >> 15)
    return key < share * 0x80000000
