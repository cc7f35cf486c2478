"""Subgoals: a discrete code for deterministic states of the model, and how near a state is to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..core import maths
from ..core.nets import MLP, Linear
from ..core.outputs import Categorical
from .steering import Steer

RATE = 0.01
"""Share of the newest update in the running mean and variance of states."""


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
    Both networks see states as `unit` has them: these are small numbers that move while the world model learns, and a decoder that
    starts with numbers of size 1 would first have to unlearn them.
    """

    center: Tensor
    spread: Tensor
    seen: Tensor

    def __init__(self, deter: int, *, groups: int, codes: int, units: int, layers: int, share: float, speed: float) -> None:
        super().__init__()
        self.groups, self.codes = groups, codes
        encoder, decoder = MLP(deter, units, layers), MLP(groups * codes, units, layers)
        self.encoder = nn.Sequential(encoder, Linear(encoder.width, groups * codes, 0.1))
        self.decoder = nn.Sequential(decoder, Linear(decoder.width, deter))
        self.beta = Steer(share * self.capacity, 0.01, speed, raises=False)
        self.register_buffer("center", torch.zeros(deter))  # running mean of states
        self.register_buffer("spread", torch.ones(()))  # running variance, sum over D
        self.register_buffer("seen", torch.zeros(()))  # updates

    @property
    def capacity(self) -> float:
        """S log C, in nats."""
        return self.groups * math.log(self.codes)

    def unit(self, deter: Tensor) -> Tensor:
        """States (*, D) around their running mean, in units of the running deviation of one number."""
        shift, scale = self.center.to(deter.dtype), (len(self.center) / self.spread).sqrt().to(deter.dtype)
        return (deter - shift) * scale

    def encode(self, deter: Tensor) -> Categorical:
        """States (*, D) -> distribution over codes, samples (*, S * C)."""
        logits: Tensor = self.encoder(self.unit(deter))
        return Categorical(logits.float().unflatten(-1, (self.groups, self.codes)), 1)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (*, S * C), one-hot by group -> states (*, D)."""
        goal: Tensor = self.center + self.decoder(code).float() * (self.spread / len(self.center)).sqrt()
        return goal

    def likeliest(self, unit: Tensor) -> Tensor:
        """States (*, D) as `unit` has them -> their likeliest codes (*, S * C)."""
        logits: Tensor = self.encoder(unit).unflatten(-1, (self.groups, self.codes))
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0).flatten(-2)

    def again(self, deter: Tensor) -> Tensor:
        """States (*, D) as their likeliest codes tell of them."""
        return self.decode(self.likeliest(self.unit(deter)))

    def novelty(self, deter: Tensor) -> Tensor:
        """Mean squared error (*) of `again`: large where no code was learned for a state (*, D)."""
        unit = self.unit(deter)
        error: Tensor = (self.decoder(self.likeliest(unit)) - unit).float()
        return torch.linalg.vector_norm(error, dim=-1).square() * (self.spread / len(self.center) ** 2)

    def loss(self, deter: Tensor, noise: Tensor | None, update: bool = True) -> Tensor:
        """|dec(z) - h|^2 / V + beta KL(q || uniform), (*), z drawn with noise (*, S), V the variance of states: the first term is
        the share of it that the code does not tell. Nothing of it reaches the states (*, D).
        """
        deter = deter.detach().float()
        if update:
            self._follow(deter.flatten(0, -2))
        q = self.encode(deter)
        probs = q.log_probs.exp()
        code = maths.straight_through(maths.sample_onehot(probs, noise), probs).flatten(-2)
        kl = self.capacity - q.entropy()
        return (self.decode(code) - deter).square().sum(-1) / self.spread + self.beta(kl, update) * kl

    @torch.no_grad()
    def _follow(self, deter: Tensor) -> None:
        """Move mean and variance towards those of states (N, D): to the mean of the first updates, then by a share of each."""
        self.seen += 1
        rate = (1 / self.seen).clamp(min=RATE)
        self.center.lerp_(deter.mean(0), rate)
        self.spread.lerp_((deter - self.center).square().sum(-1).mean().clamp(min=1e-8), rate)
