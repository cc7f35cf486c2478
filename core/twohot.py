"""A scalar as a distribution over fixed bins: its mean and its cross-entropy, computed from logits in one go.

The formulas are those of `maths`. Here they pass over the (rows, bins) arrays as few times as they can: these arrays are the
largest of an update, and the loss of a dream is taken against two targets at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import maths
from .fused import PIECE


def _mean(logits: Tensor, bins: Tensor) -> Tensor:
    return maths.twohot_mean(torch.softmax(logits.float(), -1), bins)


def _entropy_part(logits: Tensor) -> Tensor:
    return torch.logsumexp(logits.float(), -1)


def _spread(logits: Tensor, total: Tensor, weight: Tensor) -> Tensor:
    """softmax(logits) * weight, from the logarithm of the sum that softmax divides by."""
    return torch.exp(logits.float() - total.unsqueeze(-1)) * weight.unsqueeze(-1)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False, fullgraph=True)


def _run(function: Callable[..., Tensor], compiled: bool, logits: Tensor, *rows: Tensor, bins: tuple[Tensor, ...] = ()) -> Tensor:
    """A function of rows (*, K), compiled or, on a processor, in pieces whose temporaries stay in its cache."""
    if compiled:
        return _compiled(function)(logits, *rows, *bins)
    size = PIECE // logits.shape[-1]
    if logits.device.type != "cpu" or logits.numel() < 2 * PIECE:
        return function(logits, *rows, *bins)
    pieces = zip(logits.flatten(0, -2).split(size), *(r.flatten().split(size) for r in rows), strict=True)
    out = torch.cat([function(*piece, *bins) for piece in pieces])
    return out.view(*logits.shape[:-1], *out.shape[1:])


def mean(logits: Tensor, bins: Tensor, compiled: bool = False) -> Tensor:
    """Expected value (*) of logits (*, K) over bins (K,) mirrored around zero."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return _mean(logits, bins)
    return _run(_mean, compiled, logits, bins=(bins,))


class _CrossEntropy(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, places: Tensor, shares: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
        total = _run(_entropy_part, compiled, logits)
        picked = (logits.gather(-1, places.flatten(-2)).float().view(shares.shape) * shares).sum(-1)
        return total.unsqueeze(-1) - picked, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, places, shares, ctx.compiled = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(logits, places, shares, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None, None]:
        logits, places, shares, total = ctx.saved_tensors
        dense = _run(_spread, ctx.compiled, logits, total, grad.sum(-1))
        dense = dense.scatter_add(-1, places.flatten(-2), (-grad.unsqueeze(-1) * shares).flatten(-2))
        return dense.to(logits.dtype), None, None, None


def loss(logits: Tensor, target: Tensor, bins: Tensor, compiled: bool = False) -> Tensor:
    """Cross-entropy against the two bins around each target, weighted by closeness (`maths.twohot_place`).

    logits (*, K); target (*), or (J, *) for J targets each. Returns the shape of the target.
    """
    several = target if target.ndim == logits.ndim else target.unsqueeze(0)
    below, above, share = maths.twohot_place(several.movedim(0, -1), bins)
    places, shares = torch.stack([below, above], -1), torch.stack([share, 1 - share], -1)
    out = _CrossEntropy.apply(logits, places, shares, compiled)[0].movedim(-1, 0)
    return out if target.ndim == logits.ndim else out[0]
