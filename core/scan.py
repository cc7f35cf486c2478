"""The recurrent part of `RSSM.observe`, step by step, with a backward pass of its own.

Differentiating a loop step by step adds up every weight's gradient once per step, in products of B rows. Here the steps only
pass the gradients of the states back, and each weight gets one product over all B * T rows afterwards. The formulas of the
forward pass are those of `BlockGRU` and of one dense unit after it; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import gpuscan, maths
from .cells import CellWeights, blocks, cell_step, joined, tanh
from .fused import norm_silu, norm_silu_backward
from .nets import DenseWeights, affine


class PostWeights(NamedTuple):
    """The posterior's dense unit, the part that reads the state, and its output."""

    matrix: Tensor  # (D, h)
    scale: Tensor
    out: Tensor  # (h, Z)
    out_bias: Tensor


def observe_step(
    cell: CellWeights,
    post: PostWeights,
    deter: Tensor,
    stoch: Tensor,
    keep: Tensor,
    action: Tensor,
    seen: Tensor,
    noise: Tensor | None,
    groups: tuple[int, int],
    unimix: float,
) -> tuple[Tensor, ...]:
    """One step of the posterior in the type of the matrices: deter, stoch (one-hot), logits, and what the backward pass needs."""
    kind = cell.own.dtype
    deter, stoch = deter * keep, stoch * keep
    after, inner = cell_step(cell, deter.to(kind), stoch.to(kind), action.to(kind))
    unit = (after @ post.matrix).float() + seen
    logits = affine(post.out_bias, norm_silu(unit, post.scale).to(kind), post.out).float()
    probs = maths.mixed_probs(logits.unflatten(-1, groups), unimix)
    drawn = maths.sample_onehot(probs, noise).flatten(1)
    return after.float(), drawn, logits, deter, stoch, *inner, unit


def observe_step_backward(
    cell: CellWeights,
    post: PostWeights,
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, Tensor, Tensor],
    keep: Tensor,
    groups: tuple[int, int],
    unimix: float,
) -> tuple[Tensor, ...]:
    """Gradients of one step, given those of its (deter, stoch, logits): of the state before, and of every inner value.

    The one-hot draw passes its gradient on to the mixed probabilities (straight-through).
    """
    logits, deter, stoch, from_deter, from_stoch, _, hidden, _, gates, unit = saved
    d_after, d_stoch, d_logits = grads
    kind, count = cell.own.dtype, cell.own.shape[0]
    probs = maths.mixed_probs(logits.unflatten(-1, groups), 0.0)
    d_probs = d_stoch.unflatten(-1, groups) * (1 - unimix)
    d_logits = d_logits + (probs * (d_probs - (d_probs * probs).sum(-1, keepdim=True))).flatten(1)
    d_unit, d_post_scale = norm_silu_backward(unit, post.scale, d_logits.to(kind) @ post.out.t())
    d_after = d_after + (d_unit.to(kind) @ post.matrix.t()).float()
    # The gates: after = (1 - u) * deter + u * tanh(sigmoid(reset) * candidate), u = sigmoid(update - 1).
    before, d_blocks = blocks(deter, count), blocks(d_after, count)
    reset, candidate, update = gates.float().chunk(3, -1)
    reset, share = torch.sigmoid(reset), torch.sigmoid(update - 1)
    bounded = tanh(reset * candidate)
    d_gated = d_blocks * share * (1 - bounded * bounded)
    d_gates = torch.cat(
        [d_gated * candidate * reset * (1 - reset), d_gated * reset, d_blocks * (bounded - before) * share * (1 - share)], -1
    )
    d_active = joined(torch.bmm(d_gates.to(kind), cell.gates.transpose(1, 2)))
    d_hidden, d_hidden_scale = norm_silu_backward(hidden, cell.hidden_scale, d_active)
    d_shared = d_hidden @ cell.shared.t()
    width = d_shared.shape[1] // 3
    d_from_deter, d_deter_scale = norm_silu_backward(from_deter, cell.from_deter.scale, d_shared[:, :width])
    d_from_stoch, d_stoch_scale = norm_silu_backward(from_stoch, cell.from_stoch.scale, d_shared[:, width : 2 * width])
    own = joined(torch.bmm(blocks(d_hidden, count), cell.own.transpose(1, 2)))
    d_deter = (joined(d_blocks * (1 - share)) + (own + d_from_deter @ cell.from_deter.matrix.t()).float()) * keep
    d_before = (d_from_stoch @ cell.from_stoch.matrix.t()).float() * keep
    inner = (d_from_deter, d_deter_scale, d_from_stoch, d_stoch_scale, d_hidden, d_hidden_scale, joined(d_gates), d_shared[:, 2 * width :])
    return d_deter, d_before, *inner, d_unit, d_post_scale, d_logits


@cache
def _kernels(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if not compiled:
        return observe_step, observe_step_backward
    return torch.compile(observe_step, dynamic=False, fullgraph=True), torch.compile(observe_step_backward, dynamic=False, fullgraph=True)


class Settings(NamedTuple):
    """What the scan needs to know besides tensors."""

    groups: tuple[int, int]  # (S, C)
    unimix: float
    dtype: torch.dtype  # of the products
    compiled: bool
    fused: bool = False  # with kernels of our own, on a GPU that records updates

    def packed(self, weights: tuple[Tensor, ...]) -> tuple[CellWeights, PostWeights]:
        """`flattened` weights in the type of the products."""
        return _packed(weights, self.dtype)

    def gathered(
        self, cell: CellWeights, post: PostWeights, rows: tuple[Tensor, ...], grads: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What `gradients` wants, worked out again from what kernels keep."""
        return (_compiled_gathered() if self.compiled else _gathered)(self.dtype, cell, post, rows, grads)

    def gradients(self, cell: CellWeights, post: PostWeights, saved: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        """Of the `flattened` weights."""
        return _weight_gradients(self.dtype, cell.own.shape[0], post.scale, saved, columns)


class _Scan(torch.autograd.Function):
    """Inputs and outputs are time-major: (T, B, ...)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        settings: Settings, deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor, seen: Tensor, noise: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        step, _ = _kernels(settings.compiled)
        cell, post = _packed(weights, settings.dtype)
        rows = []
        for t in range(keep.shape[0]):
            chance = None if noise is None else noise[t]
            out = step(cell, post, deter, stoch, keep[t], action[t], seen[t], chance, settings.groups, settings.unimix)
            deter, stoch = out[0], out[1]
            rows.append(out)
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.settings, keep, weights = inputs[0], inputs[3], inputs[7:]
        ctx.save_for_backward(keep, *weights, *output)
        ctx.mark_non_differentiable(*output[3:])

    @staticmethod
    def backward(ctx: Any, d_deters: Tensor, d_stochs: Tensor, d_logits: Tensor, *rest: Any) -> tuple[Any, ...]:
        settings: Settings = ctx.settings
        keep, *kept = ctx.saved_tensors
        weights, saved = tuple(kept[:16]), kept[16:]
        cell, post = _packed(weights, settings.dtype)
        _, step = _kernels(settings.compiled)
        d_deter, d_stoch = torch.zeros_like(d_deters[0]), torch.zeros_like(d_stochs[0])
        rows = []
        for t in range(keep.shape[0] - 1, -1, -1):
            grads = (d_deter + d_deters[t], d_stoch + d_stochs[t], d_logits[t])
            d_deter, d_stoch, *inner = step(cell, post, tuple(s[t] for s in saved[2:]), grads, keep[t], settings.groups, settings.unimix)
            rows.append(inner)
        columns = [torch.stack(column[::-1]) for column in zip(*rows, strict=True)]
        gradients = _weight_gradients(settings.dtype, cell.own.shape[0], post.scale, saved, columns)
        return None, d_deter, d_stoch, None, columns[7].float(), columns[8], None, *gradients


def _packed(weights: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[CellWeights, PostWeights]:
    """The weights as they came, flattened, in the type of the products. Scales stay: norms are computed in float32."""
    w = [x.detach() for x in weights]
    m = [x.to(dtype) for x in w]
    none = w[0].new_empty(0)
    first, second = DenseWeights(m[0], m[1], w[2]), DenseWeights(m[3], m[4], w[5])
    cell = CellWeights(first, second, DenseWeights(none, none, none), m[6], m[7], m[8], w[9], m[10], m[11])
    return cell, PostWeights(m[12], w[13], m[14], m[15])


def _weight_gradients(dtype: torch.dtype, count: int, post_scale: Tensor, saved: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
    """One product over all steps for every matrix, in the order of `flattened`. saved and columns (T, B, ...)."""
    after, _, _, before, stoch, _, _, shared, _, active, _, unit = (s.flatten(0, 1) for s in saved)
    d_deter, deter_scale, d_stoch, stoch_scale, d_hidden, hidden_scale, d_gates, _, d_unit, d_scale, d_logits = (
        c.flatten(0, 1) for c in columns
    )

    def product(x: Tensor, grad: Tensor) -> Tensor:
        return (x.to(dtype).t() @ grad.to(dtype)).float()

    def block_product(x: Tensor, grad: Tensor) -> Tensor:
        # Copied block by block first: bmm's own way of making them contiguous takes several times as long.
        rows, columns = (blocks(part.to(dtype), count).contiguous() for part in (x, grad))
        return torch.bmm(rows.transpose(1, 2), columns).float()

    def total(grad: Tensor) -> Tensor:
        return grad.sum(0, dtype=torch.float32)

    return [
        *(product(before, d_deter), total(d_deter), total(deter_scale)),
        *(product(stoch, d_stoch), total(d_stoch), total(stoch_scale)),
        *(block_product(before, d_hidden), product(shared, d_hidden), total(d_hidden), total(hidden_scale)),
        *(block_product(active, d_gates), total(d_gates)),
        *(product(after, d_unit), total(d_scale), product(norm_silu(unit, post_scale), d_logits), total(d_logits)),
    ]


def _gathered(
    dtype: torch.dtype, cell: CellWeights, post: PostWeights, rows: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    """Rows and columns of `_weight_gradients` (T, B, ...) out of the few that a scan by kernels keeps: all steps at once are cheap."""
    after, deter, stoch, action, from_deter, from_stoch, hidden, unit = rows
    d_deter, d_stoch, d_active, d_gates, d_unit, d_logits = grads
    none = after.new_empty(0, 0)
    shared = torch.cat([norm_silu(from_deter, cell.from_deter.scale), norm_silu(from_stoch, cell.from_stoch.scale), action], -1)
    saved = [after, none, none, deter, stoch, none, none, shared, none, norm_silu(hidden, cell.hidden_scale), none, unit]
    pairs = [
        norm_silu_backward(x, scale, grad)
        for x, scale, grad in (
            (from_deter, cell.from_deter.scale, d_deter),
            (from_stoch, cell.from_stoch.scale, d_stoch),
            (hidden, cell.hidden_scale, d_active),
            (unit, post.scale, d_unit),
        )
    ]
    d_action = pairs[2][0].to(dtype) @ cell.shared[2 * from_deter.shape[-1] :].t()
    return saved, [*pairs[0], *pairs[1], *pairs[2], d_gates, d_action, *pairs[3], d_logits]


@cache
def _compiled_gathered() -> Callable[..., Any]:
    return torch.compile(_gathered, dynamic=False, fullgraph=True)


def flattened(cell: CellWeights, post: PostWeights) -> tuple[Tensor, ...]:
    """The weights that the scan itself uses, in one row."""
    return (*cell.from_deter, *cell.from_stoch, *cell[3:], *post)


def observe(
    settings: Settings, cell: CellWeights, post: PostWeights, deter: Tensor, stoch: Tensor, steps: tuple[Tensor, ...], noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior along sequences: deter (B, T, D), stoch (B, T, Z), logits (B, T, Z).

    deter (B, D), stoch (B, Z) before the first step; steps: keep (B, T, 1), embedded action (B, T, h) and the posterior's view
    of the tokens (B, T, h); noise (B, T, S) uniform, or None for the most likely classes. Weights in float32, or without a graph
    in the type of the products.
    """
    if not torch.is_grad_enabled():
        return _observe_only(settings, cell, post, deter, stoch, steps, noise)
    keep, action, seen = (x.transpose(0, 1).contiguous() for x in steps)
    chance = None if noise is None else noise.transpose(0, 1).contiguous()
    # The products' type is chosen here, not by an autocast around.
    with torch.autocast(keep.device.type, enabled=False):
        run = gpuscan.FusedScan if settings.fused and gpuscan.fits(settings, cell, keep[0], noise) else _Scan
        out = run.apply(settings, deter, stoch, keep, action.float(), seen.float(), chance, *flattened(cell, post))
    return tuple(x.transpose(0, 1) for x in out[:3])


def _observe_only(
    settings: Settings, cell: CellWeights, post: PostWeights, deter: Tensor, stoch: Tensor, steps: tuple[Tensor, ...], noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`observe` without a graph, in the type of the weights: nothing is kept on the way."""
    keep, action, seen = (x.float() for x in steps)
    step, _ = _kernels(settings.compiled)
    rows = []
    with torch.autocast(keep.device.type, enabled=False):
        for t in range(keep.shape[1]):
            chance = None if noise is None else noise[:, t]
            out = step(cell, post, deter, stoch, keep[:, t], action[:, t], seen[:, t], chance, settings.groups, settings.unimix)
            deter, stoch = out[0], out[1]
            rows.append(out[:3])
    return tuple(torch.stack(column, 1) for column in zip(*rows, strict=True))  # type: ignore[return-value]
