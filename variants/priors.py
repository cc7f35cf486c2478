"""Prior heads: several opinions of what the latent will be, on one recurrent core and one posterior."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core import maths
from ..core.nets import MLP, Linear
from ..core.rng import Draws
from ..core.rssm import RSSM, RSSMConfig
from .members import Members


class MultiPrior(RSSM):
    """The recurrent core with E prior heads (`EnsembleRSSM` of DreamerV2, Hafner et al. 2021). Latents stay comparable: all heads
    are trained towards the same posterior.

    A dream follows one head, the state's `member` (TS-inf of PETS, Chua et al. 2018), or another one at each step
    (redraw="step", TS1). States without a member get the average of all heads. One head is the plain core, to the bit.
    """

    def __init__(self, cell: str, action: int, tokens: int, cfg: RSSMConfig, *, members: int, redraw: Literal["dream", "step"]) -> None:
        super().__init__(cell, action, tokens, cfg)
        self.redraw = redraw
        # The core's own head is the first member, under its own name.
        own = nn.Sequential(self.prior, self.prior_out)
        self.others = nn.ModuleList(_head(cfg) for _ in range(members - 1))
        self._heads = (own,)

    def log_prior(self, deter: Tensor) -> Tensor:
        """Log-probabilities (E, *, S, C) of all heads for deter (*, D), uniform share mixed in."""
        logits = Members([*self._heads, *self.others])(deter).float()
        return self.log_probs(logits.unflatten(-1, (self.cfg.stoch, self.cfg.classes)))

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        """As the core's, from the prior head that the state's `member` (n,) names."""
        if not len(self.others):
            return super().step(state, action, draws)
        deter = self.cell(state["deter"], state["stoch"].flatten(1), self.cell.embed(action / action.detach().abs().clamp(min=1)))
        probs = self.log_prior(deter).exp()
        if self.redraw == "step":
            member = draw_member(draws, "member/step", len(probs), len(deter))
        else:
            member = state.get("member", None)
        mine = probs.mean(0) if member is None else probs.movedim(0, 1)[torch.arange(len(deter), device=deter.device), member]
        onehot = maths.sample_onehot(mine, draws.uniform("prior", len(deter), self.cfg.stoch))
        return TensorDict({"deter": deter, "stoch": maths.straight_through(onehot, mine)}, state.batch_size, device=deter.device)

    def kl(self, post: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As the core's, averaged over the heads: each is pulled to the posterior, the posterior to all of them."""
        if not len(self.others):
            return super().kl(post)
        posterior, priors = self.log_probs(post["logits"]), self.log_prior(post["deter"])
        free = self.cfg.free_nats
        losses = {
            "dyn": maths.categorical_kl(posterior.detach(), priors).sum(-1).clamp(min=free).mean(0),
            "rep": maths.categorical_kl(posterior, priors.detach()).sum(-1).clamp(min=free).mean(0),
        }
        entropies = {
            "dyn_ent": maths.categorical_entropy(priors.detach()).sum(-1).mean(0),
            "rep_ent": maths.categorical_entropy(posterior.detach()).sum(-1),
        }
        return losses, entropies

    def uncertainty(self, deter: Tensor) -> Tensor:
        """Nats (*) that knowing which head is right would tell about the latent that follows: deter (*, D) of the state asked about."""
        return mutual_information(self.log_prior(deter))


def _head(cfg: RSSMConfig) -> nn.Module:
    mlp = MLP(cfg.deter, cfg.hidden, cfg.prior_layers, cfg.norm, cfg.act)
    return nn.Sequential(mlp, Linear(mlp.width, cfg.stoch * cfg.classes))


def mutual_information(log_probs: Tensor) -> Tensor:
    """Entropy of the members' average minus their average entropy, summed over groups: log-probabilities (E, *, S, C) -> nats (*).

    The generalised Jensen-Shannon divergence; between 0, where all agree, and S log min(E, C) (Depeweg et al. 2018).
    """
    average = torch.logsumexp(log_probs, 0) - torch.log(torch.tensor(float(len(log_probs)), device=log_probs.device))
    return (maths.categorical_entropy(average) - maths.categorical_entropy(log_probs).mean(0)).sum(-1)


def draw_member(draws: Draws, stream: str, members: int, *shape: int) -> Tensor:
    """Numbers of members, uniform, int64 (*shape); all 0 where the stream is replaced by its mode."""
    noise = draws.uniform(stream, *shape)
    if noise is None:
        return torch.zeros(shape, dtype=torch.int64, device=draws.device)
    return (noise * members).long().clamp(max=members - 1)
