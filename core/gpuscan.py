"""The scan of `observe` on a GPU with kernels of our own, five a step forwards and six backwards (`gpukernels`)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .fused import EPS

if TYPE_CHECKING:
    from .cells import CellWeights
    from .scan import PostWeights

SPLIT = 4
"""Into how many parts the long sums over the state are cut."""


class Shapes(NamedTuple):
    """What the kernels are made for."""

    D: int
    H: int
    G: int
    Z: int
    C: int


def shapes(settings: Any, cell: CellWeights) -> Shapes:
    """Of a world model: `scan.Settings` and its weights."""
    groups, classes = settings.groups
    return Shapes(cell.own.shape[0] * cell.own.shape[1], cell.shared.shape[0] // 3, cell.own.shape[0], groups * classes, classes)


def fits(settings: Any, cell: CellWeights, keep: Tensor, noise: Tensor | None) -> bool:
    """Whether there are kernels for this: up to 16 sequences, bfloat16, widths that are powers of two and not too large, drawn classes."""
    D, H, G, Z, C = shapes(settings, cell)
    powers = all(n & (n - 1) == 0 for n in (D, H, D // G, Z, C))
    # Tiles have 16 columns, and some kernels take several at a time.
    wide = H >= 16 and D // G >= 16 and Z >= 16 and 64 <= D <= 4096
    return keep.is_cuda and noise is not None and settings.dtype is torch.bfloat16 and len(keep) <= 16 and powers and wide


class FusedScan(torch.autograd.Function):
    """As `scan._Scan`, of which it has inputs, outputs and gradients."""

    @staticmethod
    def forward(
        ctx: Any, settings: Any, deter: Tensor, stoch: Tensor, keep: Tensor, action: Tensor, seen: Tensor, noise: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        from . import gpukernels as kernels  # Triton comes with torch for GPUs only

        cell, post = settings.packed(weights)
        D, H, G, Z, C = shape = shapes(settings, cell)
        T, B = keep.shape[:2]
        deter, stoch = deter.contiguous(), stoch.contiguous()
        new = partial(torch.empty, device=deter.device)
        afters, stochs, logits, units = new(T, B, D), new(T, B, Z), new(T, B, Z), new(T, B, H)
        from_deters, from_stochs, hiddens, gates = new(T, B, H), new(T, B, H), new(T, B, D), new(T, B, 3 * D)
        squares, parts, embedded = new(T, D // 16, 16), new(SPLIT, 16, 2 * H), new(16, H)
        laid = _laid_out(cell, post)
        wide = max(16, C)
        embed = partial(kernels.embed[2 * H // 16, SPLIT], real=B, D=D, H=H, chunk=min(256, D // SPLIT), split=SPLIT)
        embed(deter, laid.post, laid.deter, parts)
        kernels.embed_stoch[H // 16,](stoch, laid.stoch, embedded, B, H=H, Z=Z)
        for t in range(T):
            before = afters[t - 1] if t else deter
            kernels.hidden[D // 16,](
                *(parts, embedded, cell.from_deter.bias, cell.from_deter.scale, cell.from_stoch.bias, cell.from_stoch.scale, action[t]),
                *(before, keep[t], laid.shared, laid.own_turned, cell.hidden_bias),
                *(from_deters[t], from_stochs[t], hiddens[t], squares[t], B),
                **{"D": D, "H": H, "G": G, "split": SPLIT, "eps": EPS},
            )
            kernels.gate[D // 16,](
                *(hiddens[t], squares[t], cell.hidden_scale, laid.gates_turned, cell.gates_bias, before, keep[t], gates[t], afters[t], B),
                **{"D": D, "G": G, "eps": EPS},
            )
            embed(afters[t], laid.post, laid.deter, parts)
            kernels.draw[Z // wide,](
                *(parts, seen[t], post.scale, laid.out, post.out_bias, noise[t], units[t], logits[t], stochs[t], B, settings.unimix),
                **{"H": H, "Z": Z, "S": Z // C, "C": C, "width": wide, "split": SPLIT, "eps": EPS, "num_warps": 8},
            )
            if t + 1 < T:
                kernels.embed_stoch[H // 16,](stochs[t], laid.stoch, embedded, B, H=H, Z=Z)
        ctx.settings, ctx.shape = settings, shape
        ctx.save_for_backward(
            deter, stoch, keep, action, afters, stochs, logits, units, from_deters, from_stochs, hiddens, squares, gates, *weights
        )
        return afters, stochs, logits

    @staticmethod
    def backward(ctx: Any, d_afters: Tensor, d_stochs: Tensor, d_logits: Tensor) -> tuple[Any, ...]:
        from . import gpukernels as kernels

        settings, (D, H, G, Z, C) = ctx.settings, ctx.shape
        deter, stoch, keep, action, *kept = ctx.saved_tensors
        afters, stochs, logits, units, from_deters, from_stochs, hiddens, squares, gates, *weights = kept
        cell, post = settings.packed(tuple(weights))
        laid = _laid_out(cell, post)
        T, B = keep.shape[:2]
        new = partial(torch.empty, device=deter.device)
        d_afters, d_stochs, d_logits = (d.contiguous() for d in (d_afters, d_stochs, d_logits))
        d_active, d_gates, d_inner, d_hidden = new(T, B, H), new(T, B, 3 * D), new(T, B, D), new(T, B, D)
        d_drawn, d_shared = new(T, B, Z), new(T, SPLIT, 16, 2 * H)
        around, own, sums = new(B, D), new(B, D), new(D // 16, 16)
        d_deter, d_stoch = d_afters[-1].clone(), d_stochs[-1].clone()
        none = d_deter.new_zeros(B, max(D, Z))
        for t in range(T - 1, -1, -1):
            before = afters[t - 1] if t else deter
            kernels.undraw[H // 16,](logits[t], d_logits[t], d_stoch, laid.out, d_drawn[t], d_active[t], B, settings.unimix, H=H, Z=Z, C=C)
            kernels.ungate[D // 16,](
                *(units[t], post.scale, d_active[t], d_deter, laid.post, gates[t], before, keep[t], d_gates[t], around, B),
                **{"D": D, "H": H, "G": G, "eps": EPS, "num_warps": 8},
            )
            kernels.unhidden[D // 16,](
                *(d_gates[t], laid.gates, hiddens[t], squares[t], cell.hidden_scale, d_inner[t], sums, B), **{"D": D, "G": G, "eps": EPS}
            )
            kernels.unnorm[D // 64,](hiddens[t], d_inner[t], squares[t], sums, cell.hidden_scale, d_hidden[t], B, D=D, width=64, eps=EPS)
            kernels.unembed[2 * H // 16 * SPLIT + D // 16,](
                *(d_hidden[t], cell.shared, laid.own, d_shared[t], own, B),
                **{"D": D, "H": H, "G": G, "chunk": min(256, D // SPLIT), "split": SPLIT},
            )
            more = (d_afters[t - 1], d_stochs[t - 1]) if t else (none, none)
            kernels.unstep[(D + Z) // 16,](
                *(d_shared[t], from_deters[t], cell.from_deter.scale, from_stochs[t], cell.from_stoch.scale, laid.deter, laid.stoch),
                *(around, own, keep[t], *more, d_deter, d_stoch, B),
                **{"D": D, "H": H, "Z": Z, "split": SPLIT, "eps": EPS},
            )
        earlier = torch.cat([deter[None], afters[:-1]]), torch.cat([stoch[None], stochs[:-1]])
        told = d_shared.sum(1)[:, :B].split(H, -1)
        rows = (afters, earlier[0] * keep, earlier[1] * keep, action, from_deters, from_stochs, hiddens, units)
        saved, columns = settings.gathered(cell, post, rows, (*told, d_inner, d_gates, d_active, d_drawn))
        gradients = settings.gradients(cell, post, saved, columns)
        return None, d_deter, d_stoch, None, columns[7].float(), columns[8], None, *gradients


class Laid(NamedTuple):
    """Matrices so that the numbers of a sum lie side by side; those of blocks for both directions."""

    deter: Tensor  # (H, D)
    stoch: Tensor  # (H, Z)
    post: Tensor  # (H, D)
    out: Tensor  # (Z, H)
    shared: Tensor  # (D, 3 * H)
    own: Tensor  # (G, D / G, D / G), inputs first
    own_turned: Tensor  # outputs first
    gates: Tensor  # (G, D / G, 3 * D / G)
    gates_turned: Tensor


def _laid_out(cell: CellWeights, post: PostWeights) -> Laid:
    turned = (x.t().contiguous() for x in (cell.from_deter.matrix, cell.from_stoch.matrix, post.matrix, post.out, cell.shared))
    both = (y.contiguous() for x in (cell.own, cell.gates) for y in (x, x.transpose(1, 2)))
    return Laid(*turned, *both)
