"""Operations with a backward pass of their own, because differentiating them piece by piece keeps too much and moves too much.

RMSNorm followed by SiLU, the pair between any two matrix products, keeps one array instead of five. Max-pooling keeps two bytes
per output instead of its input and eight bytes. What is computed is the same; norms are float32 whatever their inputs are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-4
"""Added to the mean square before the root (RMSNorm, Zhang and Sennrich 2019)."""


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, float32 (*, 1)."""
    power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
    return torch.rsqrt(power / x.shape[-1] + EPS)


def norm_silu(x: Tensor, scale: Tensor) -> Tensor:
    """silu(x / rms(x) * scale): x (*, U), scale (U,) -> (*, U) in the type of x, without a graph."""
    # Mixed-type products are slow on processors: widen first.
    return F.silu((x.float() * inverse_rms(x)).mul_(scale), inplace=True).to(x.dtype)


def norm_silu_backward(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `norm_silu` for x (rows, U), in its type, and, row by row, for scale (rows, U), float32."""
    inverse = inverse_rms(x)
    normed = x.float() * inverse
    outer = torch.ops.aten.silu_backward(grad.float(), normed * scale)
    rows = outer * normed
    inner = outer.mul_(scale)
    along = (inner * normed).mean(-1, keepdim=True)
    return inner.sub_(normed.mul_(along)).mul_(inverse).to(x.dtype), rows


PIECE = 2**19
"""Elements worked on together on a processor: temporaries then stay in its cache."""


def _forward(x: Tensor, scale: Tensor) -> Tensor:
    rows = PIECE // x.shape[-1]
    flat = x.flatten(0, -2)
    # Traced, the number of rows may stay open, and whoever traces fuses in his own way.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or len(flat) < 2 * rows:
        return norm_silu(x, scale)
    return torch.cat([norm_silu(piece, scale) for piece in flat.split(rows)]).view(x.shape)


def _backward(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    rows = PIECE // x.shape[-1] if x.device.type == "cpu" else x.numel()
    pieces = zip(x.flatten(0, -2).split(rows), grad.flatten(0, -2).split(rows), strict=True)
    done = [(dx, per_row.sum(0)) for dx, per_row in (norm_silu_backward(a, scale, b) for a, b in pieces)]
    dx, totals = zip(*done, strict=True)
    return (torch.cat(dx) if len(dx) > 1 else dx[0]).view(x.shape), torch.stack(totals).sum(0)


def _backward_whole(x: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    dx, rows = norm_silu_backward(x.flatten(0, -2), scale, grad.flatten(0, -2))
    return dx.view(x.shape), rows.sum(0)


class _NormSiLU(torch.autograd.Function):
    """`norm_silu` with a graph. compiled: whether both passes go through torch.compile."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, compiled: bool) -> Tensor:
        return _compiled_forward()(x, scale) if compiled else _forward(x, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, ctx.compiled = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        dx, dscale = (_compiled_backward() if ctx.compiled else _backward)(x, scale, grad.contiguous())
        return dx, dscale.to(scale.dtype), None


@cache
def _compiled_forward() -> Callable[..., Any]:
    return torch.compile(norm_silu, dynamic=False, fullgraph=True)


@cache
def _compiled_backward() -> Callable[..., Any]:
    return torch.compile(_backward_whole, dynamic=False, fullgraph=True)


def normed_silu(x: Tensor, scale: Tensor, compiled: bool = False) -> Tensor:
    """silu(x / rms(x) * scale) over the last axis, differentiable: x (*, U), scale (U,) -> (*, U) in the type of x."""
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        if torch.compiler.is_compiling():  # the compiler differentiates what it fuses, and chooses what to keep
            wide = x.float()
            return F.silu(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * scale).to(x.dtype)
        return _NormSiLU.apply(x, scale, compiled)
    # Inside a larger compiled function this is part of it.
    return _compiled_forward()(x, scale) if compiled else _forward(x, scale)


POOLED = 2**23
"""Elements pooled at a time: places are eight bytes each until they are shortened, so never are all of them there at once."""


class _MaxPool(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.int16 if x.shape[-1] * x.shape[-2] < 2**15 else torch.int32
        pieces = []
        for piece in x.split(_images(x)):
            pooled, places = F.max_pool2d(piece, 2, return_indices=True)
            pieces.append((pooled, places.to(kind)))
        return pieces[0] if len(pieces) == 1 else tuple(torch.cat(column) for column in zip(*pieces, strict=True))  # type: ignore[return-value]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Tensor:
        (places,) = ctx.saved_tensors
        layout = torch.channels_last if grad.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        whole = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        size = _images(whole)
        for piece, out, where in zip(grad.split(size), whole.split(size), places.split(size), strict=True):
            # Of the input only shape and layout are read.
            out.copy_(torch.ops.aten.max_pool2d_with_indices_backward(piece, out, [2, 2], [2, 2], [0, 0], [1, 1], False, where.long()))
        return whole


def _images(x: Tensor) -> int:
    """How many of the images (n, c, h, w) are pooled at a time: on a GPU all of them."""
    return max(1, POOLED // x.shape[1:].numel()) if x.device.type == "cpu" else len(x)


def max_pool(x: Tensor) -> Tensor:
    """The largest of every 2 x 2 pixels: (n, c, h, w) -> (n, c, h / 2, w / 2)."""
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _MaxPool.apply(x)[0]
    return F.max_pool2d(x, 2)
