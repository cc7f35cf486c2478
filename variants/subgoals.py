"""Subgoals: a discrete code for deterministic states of the model, and how near a state is to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core import maths
from ..core.nets import MLP, Linear
from ..core.outputs import Categorical
from .steering import Steer


def closeness(goal: Tensor, state: Tensor) -> Tensor:
    """Max-cosine (*) of goals and states (*, D): g.h / max(|g|, |h|)^2 (Hafner et al. 2022, eq. 7).

    Lies in [-1, 1] and is 1 only where they are equal: of a vector and a times itself it is min(a, 1 / a). A cosine would not see
    magnitudes.
    """
    square = torch.maximum(goal.square().sum(-1), state.square().sum(-1))
    return (goal * state).sum(-1) / square.clamp(min=1e-12)


class Subgoals(nn.Module):
    """Autoencoder of deterministic states (*, D) with a code of S groups of C classes (Hafner et al. 2022, eq. 3).

    share: of the most that a code can tell, S log C nats, how much it is to tell: KL(q || uniform) is steered there.
    """

    def __init__(self, deter: int, *, groups: int, codes: int, units: int, layers: int, share: float, speed: float) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        encoder, decoder = MLP(deter, units, layers), MLP(groups * codes, units, layers)
        self.encoder = nn.Sequential(encoder, Linear(encoder.width, groups * codes, 0.1))
        self.decoder = nn.Sequential(decoder, Linear(decoder.width, deter))
        self.beta = Steer(share * self.capacity, 0.1, speed, raises=False)

    @property
    def capacity(self) -> float:
        """S log C, in nats."""
        return self.groups * math.log(self.codes)

    def encode(self, deter: Tensor) -> Categorical:
        """States (*, D) -> distribution over codes, samples (*, S * C)."""
        return Categorical(self.encoder(deter).float().unflatten(-1, (self.groups, self.codes)), 1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (*, S * C), one-hot by group -> states (*, D)."""
        goal: Tensor = self.decoder(code).float()
        return goal

    def again(self, deter: Tensor) -> Tensor:
        """States (*, D) as their likeliest codes tell of them."""
        logits: Tensor = self.encoder(deter).unflatten(-1, (self.groups, self.codes))
        code = torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return self.decode(code.flatten(-2))

    def novelty(self, deter: Tensor) -> Tensor:
        """Mean squared error (*) of `again`: large where no code was learned for a state (*, D)."""
        return (self.again(deter) - deter.float()).square().mean(-1)

    def loss(self, deter: Tensor, noise: Tensor | None, update: bool = True) -> Tensor:
        """|dec(z) - h|^2 + beta KL(q || uniform), (*), z drawn with noise (*, S). Nothing of it reaches the states (*, D)."""
        deter = deter.detach()
        q = self.encode(deter)
        probs = q.log_probs.exp()
        code = maths.straight_through(maths.sample_onehot(probs, noise), probs).flatten(-2)
        kl = self.capacity - q.entropy()
        return (self.decode(code) - deter.float()).square().sum(-1) + self.beta(kl, update) * kl
