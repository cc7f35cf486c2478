"""One-step disagreement: members predict the next latent from latent and action; where they differ, little was seen.

Self-supervised exploration by disagreement (Pathak et al. 2019), in latent space (Plan2Explore, Sekar et al. 2020), with
randomised prior functions (Osband et al. 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.nets import MLP, Linear
from .members import Members, spread


def _network(inputs: int, outputs: int, units: int, layers: int) -> nn.Module:
    mlp = MLP(inputs, units, layers)
    return nn.Sequential(mlp, Linear(mlp.width, outputs))


class Disagreement(nn.Module):
    """E predictors f_k(s_t, a_t) of what s_{t+1} shows. A member's prediction is its network plus `prior` times a fixed random one.

    inputs: width of latent and action together. outputs: width K of the target. prior: 0 leaves the fixed networks out. Smooth
    inputs of few dimensions need them: trained networks extrapolate alike there.
    """

    def __init__(self, inputs: int, outputs: int, *, members: int, units: int, layers: int, prior: float) -> None:
        super().__init__()
        self.prior = prior
        self.learned = Members(_network(inputs, outputs, units, layers) for _ in range(members))
        self.fixed = Members(_network(inputs, outputs, units, layers) for _ in range(members)) if prior else None
        if self.fixed is not None:
            self.fixed.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Latents and actions (*, I) -> predictions (E, *, K)."""
        guess = self.learned(inputs)
        return guess if self.fixed is None else guess + self.prior * self.fixed(inputs)

    def uncertainty(self, latent: Tensor, action: Tensor) -> Tensor:
        """Disagreement (*) about what follows latent (*, F) and action (*, A) in model form. Gradients pass to both."""
        return spread(self(_joined(latent, action)))

    def loss(self, latent: Tensor, action: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """Squared error (*), summed over the target and averaged over the members that are trained on the step.

        latent (*, F), action (*, A) taken in it, target (*, K) of the step after; no gradient reaches any of them. keep: bool
        (*, E), which members see the step; None for all. A member is weighted by 1 / E, so a step that nobody keeps costs 0.
        """
        guess = self(_joined(latent.detach(), action.detach()))
        error = (guess - target.detach()).square().sum(-1)
        return (error if keep is None else error * keep.movedim(-1, 0)).mean(0)


def _joined(latent: Tensor, action: Tensor) -> Tensor:
    # Bounded as the recurrent model bounds it: a sampled action may lie outside of what can be executed.
    return torch.cat([latent, action / action.detach().abs().clamp(min=1)], -1)
