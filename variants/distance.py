"""Temporal distance: how many steps apart two observations are, learned from replayed episodes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.nets import MLP, Linear

EPSILON = 1e-6

PARTNERS = 8
"""Pairs that each replayed step is the first of, in one update. Networks see a step once for all of them, so more pairs cost little."""


class Distance(nn.Module):
    """d(a, b) >= 0 in units of `reach` steps, from two goal embeddings (*, G). d(g, g) is 0 and the triangle inequality holds.

    A metric residual network (Liu et al. 2023, eq. 5): a Euclidean part, and a directed part max(0, max_k (f_k(a) - f_k(b)))
    for ways that are longer in one direction. A plain network of both (LEXA, Mendonca et al. 2021) does not know that d(g, g) = 0.
    """

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.even, self.directed = Linear(self.mlp.width, units), Linear(self.mlp.width, units)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the distance compares: two vectors (*, units)."""
        hidden = self.mlp(x)
        return self.even(hidden), self.directed(hidden)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.between(self.parts(a), self.parts(b))

    def between(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """The distance (*) of what `parts` made of two embeddings."""
        (even_a, directed_a), (even_b, directed_b) = a, b
        square = (even_a - even_b).square().mean(-1)
        # The root has no slope at 0; a small constant inside gives it one, and comes off again.
        return (square + EPSILON).sqrt() - EPSILON**0.5 + F.relu(directed_a - directed_b).amax(-1)


def pairs(left: Tensor, reach: int, negatives: float, look: Tensor, far: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Partner and label of every step (B, T) for pairs that the distance is fitted to (LEXA, section 3.2).

    left: steps that follow in the same episode. Partners are 0 ... min(reach, left) steps ahead, label steps / reach; a share of
    `negatives` is a step of another sequence, label 1, where there is one. look, far, other: uniform (B, T), or (P, B, T) for
    P partners of each step. Returns the flat index into the B * T steps, and the label, both of that shape.
    """
    rows, steps = left.shape
    own = torch.arange(rows * steps, device=left.device).reshape(rows, steps)
    gap = (look * (left.clamp(max=reach) + 1)).long()
    elsewhere = (own + steps + (other * (rows - 1) * steps).long() - own % steps) % (rows * steps)
    negative = (far < negatives) & (rows > 1)
    return torch.where(negative, elsewhere, own + gap), torch.where(negative, 1.0, gap / reach)


def misfit(guess: Tensor, steps: Tensor, expectile: float) -> Tensor:
    """Squared error (*) of distances, which counts 2 (1 - e) times where they are too long and 2 e times where too short.

    What is found is the expectile e of the steps from one place to the other (Newey and Powell 1987). Half is the mean; a policy that
    strays makes the mean long, and low expectiles come near the shortest way that was seen.
    """
    error = guess - steps
    return torch.where(error > 0, 2 * (1 - expectile), 2 * expectile) * error.square()


def fit(distance: Any, seen: Tensor, left: Tensor, pairing: Tensor, cfg: Any) -> Tensor:
    """Loss (B, T) of a `Distance` on embeddings (B, T, G) of replayed steps, with uniform numbers (B, T, P, 3) that pair them.

    left (B, T) as in `pairs`; cfg: reach, negatives and expectile.
    """
    other, steps = pairs(left, cfg.reach, cfg.negatives, *pairing.movedim(2, 0).unbind(-1))
    even, directed = distance.parts(seen)
    guess = distance.between((even, directed), (even.flatten(0, 1)[other], directed.flatten(0, 1)[other]))
    return misfit(guess, steps, cfg.expectile).mean(0)
