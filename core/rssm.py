"""The world model's recurrent core: deterministic state, categorical latent, posterior and prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import maths
from .nets import MLP, Activation, BlockLinear, Dense, Linear, Norm, norm
from .rng import Draws


@dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Recurrent state-space model (PlaNet, Hafner et al. 2019; block form of DreamerV3, 2024). Sizes set the first five."""

    deter: int = 512  # D, width of the deterministic state
    hidden: int = 64  # width of the layers around it
    stoch: int = 32  # S, groups of the categorical latent
    classes: int = 4  # C, classes per group
    blocks: int = 8  # of the block_gru cell
    cell_layers: int = 1  # block-linear layers before the gates of block_gru
    prior_layers: int = 2  # dense units of the prior
    post_layers: int = 1  # dense units of the posterior
    unimix: float = 0.01  # share of uniform mixed into prior and posterior
    free_nats: float = 1.0  # KL below this, summed over groups, costs nothing
    absolute: bool = False  # the posterior sees only the tokens, not the deterministic state
    norm: Norm = "rms"  # of the layers
    act: Activation = "silu"  # of the layers
    checkpoint: int = 0  # recompute the scan in pieces of this many steps when differentiating; 0 keeps everything


class BlockGRU(nn.Module):
    """Gated recurrent cell of block-diagonal matrices, fed by three dense input layers.

    Every block sees its own slice of the state and all of the embedded state, latent and action (dreamerv3, 2024).
    """

    def __init__(self, cfg: RSSMConfig, action: int) -> None:
        super().__init__()
        self.blocks = cfg.blocks
        self.from_deter = Dense(cfg.deter, cfg.hidden, cfg.norm, cfg.act)
        self.from_stoch = Dense(cfg.stoch * cfg.classes, cfg.hidden, cfg.norm, cfg.act)
        self.from_action = Dense(action, cfg.hidden, cfg.norm, cfg.act)
        if not cfg.cell_layers:
            raise ValueError("rssm.cell_layers must be at least 1")
        self.hidden, self.norms = nn.ModuleList(), nn.ModuleList()
        width = cfg.deter + cfg.blocks * 3 * cfg.hidden
        for _ in range(cfg.cell_layers):
            self.hidden.append(BlockLinear(width, cfg.deter, cfg.blocks))
            self.norms.append(norm(cfg.norm, cfg.deter))
            width = cfg.deter
        self.gates = BlockLinear(width, 3 * cfg.deter, cfg.blocks)
        self.act = self.from_deter.act

    def embed(self, action: Tensor) -> Tensor:
        """What the cell reads of an action (*, A): (*, hidden). Independent of the state, so done once for a sequence."""
        return self.from_action(action)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (n, D), stoch (n, S * C), embedded action (n, hidden) -> next deter (n, D)."""
        rows = deter.shape[0]
        shared = torch.cat([self.from_deter(deter), self.from_stoch(stoch), action], -1)
        slices = deter.reshape(rows, self.blocks, -1)
        x = deter
        for i, (layer, scale) in enumerate(zip(self.hidden, self.norms, strict=True)):
            x = self.act(scale(layer(x) if i else layer.joint(x, shared)))  # type: ignore[operator]
        reset, candidate, update = self.gates(x).reshape(rows, self.blocks, 3, -1).unbind(2)
        update = torch.sigmoid(update - 1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(slices, candidate, update).flatten(1)


class GRU(nn.Module):
    """Dense gated recurrent cell on an embedding of latent and action (DreamerV1 to the 2023 paper, with its update bias of -1)."""

    def __init__(self, cfg: RSSMConfig, action: int) -> None:
        super().__init__()
        self.inputs = Linear(cfg.stoch * cfg.classes + action, cfg.hidden)
        self.norm = norm(cfg.norm, cfg.hidden)
        self.gates = Linear(cfg.hidden + cfg.deter, 3 * cfg.deter)
        self.gate_norm = norm(cfg.norm, 3 * cfg.deter)
        self.act = Dense(1, 1, cfg.norm, cfg.act).act

    def embed(self, action: Tensor) -> Tensor:
        """The cell reads the action as it is."""
        return action

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (n, D), stoch (n, S * C), action (n, A) -> next deter (n, D)."""
        x = self.act(self.norm(self.inputs(torch.cat([stoch, action], -1))))
        reset, candidate, update = self.gate_norm(self.gates(torch.cat([x, deter], -1))).chunk(3, -1)
        return torch.lerp(deter, torch.tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1))


CELLS: dict[str, Callable[[RSSMConfig, int], nn.Module]] = {"block_gru": BlockGRU, "gru": GRU}
Cell = Literal["block_gru", "gru"]


class RSSM(nn.Module):
    """Contract of every world model: `initial`, `step`, `observe`, `kl`. Latents are deter (*, D) and stoch (*, S, C).

    Actions are in model form, concatenated by sorted key (*, A); the action at t is the one that led to t.
    """

    def __init__(self, cell: str, action: int, tokens: int, cfg: RSSMConfig) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"no dynamics {cell!r}: choose one of {', '.join(CELLS)}")
        self.cfg = cfg
        self.latent_width = cfg.deter + cfg.stoch * cfg.classes
        groups = cfg.stoch * cfg.classes
        self.cell: Any = CELLS[cell](cfg, action)
        inputs = tokens if cfg.absolute else cfg.deter + tokens
        self.post = MLP(inputs, cfg.hidden, cfg.post_layers, cfg.norm, cfg.act)
        self.post_out = Linear(self.post.width, groups)
        self.prior = MLP(cfg.deter, cfg.hidden, cfg.prior_layers, cfg.norm, cfg.act)
        self.prior_out = Linear(self.prior.width, groups)
        if not cfg.post_layers:
            raise ValueError("rssm.post_layers must be at least 1")

    def initial(self, n: int, device: torch.device | str | None = None) -> TensorDict:
        """The state before anything was seen: zeros, (n,)."""
        deter = torch.zeros(n, self.cfg.deter, device=device)
        return TensorDict({"deter": deter, "stoch": deter.new_zeros(n, self.cfg.stoch, self.cfg.classes)}, [n], device=device)

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        """One dreamed step: state (n,) and action (n, A) -> latents drawn from the prior (n,)."""
        deter = self.cell(state["deter"], state["stoch"].flatten(1), self.cell.embed(_bounded(action)))
        noise = draws.uniform("prior", len(deter), self.cfg.stoch)
        return TensorDict({"deter": deter, "stoch": self._sample(self.prior_logits(deter), noise)}, state.batch_size, device=deter.device)

    def observe(self, tokens: Tensor, action: Tensor, is_first: Tensor, state: TensorDict, draws: Draws) -> TensorDict:
        """Posterior latents along replayed sequences.

        tokens (B, T, tokens), action (B, T, A), is_first (B, T), state (B,) before the first step. Where an episode begins,
        latents and previous action count as zero. Returns (B, T): deter, stoch, logits (S, C) of the posterior.
        """
        keep = (~is_first).float().unsqueeze(-1)
        # Everything that does not depend on the recurrent state is done for all steps at once.
        embedded = self.cell.embed(_bounded(action * keep))
        first: Dense = self.post[0]  # type: ignore[assignment]
        seen = first.part(tokens, 0 if self.cfg.absolute else self.cfg.deter) + first.linear.bias
        noise = draws.uniform("posterior", *tokens.shape[:2], self.cfg.stoch)
        inputs = [embedded, seen, keep, noise]
        carry = (state["deter"], state["stoch"].flatten(1))
        pieces: list[tuple[Tensor, ...]] = []
        span = self.cfg.checkpoint if self.cfg.checkpoint and torch.is_grad_enabled() else tokens.shape[1]
        for t in range(0, tokens.shape[1], span):
            cut = [None if x is None else x[:, t : t + span] for x in inputs]
            if span < tokens.shape[1]:
                piece = checkpoint(self._scan, *carry, *cut, use_reentrant=False)
            else:
                piece = self._scan(*carry, *cut)  # type: ignore[arg-type]
            carry = (piece[0][:, -1], piece[1][:, -1])
            pieces.append(piece)
        deter, stoch, logits = (torch.cat(p, 1) if len(p) > 1 else p[0] for p in zip(*pieces, strict=True))
        groups = (self.cfg.stoch, self.cfg.classes)
        return TensorDict(
            {"deter": deter, "stoch": stoch.unflatten(-1, groups), "logits": logits.unflatten(-1, groups)},
            tokens.shape[:2],
            device=deter.device,
        )

    def _scan(
        self, deter: Tensor, stoch: Tensor, action: Tensor, seen: Tensor, keep: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part of `observe` that must be done step by step."""
        deters, stochs, logits = [], [], []
        for t in range(action.shape[1]):
            deter = self.cell(deter * keep[:, t], stoch * keep[:, t], action[:, t])
            logit = self._post_logits(deter, seen[:, t])
            stoch = self._sample(logit, None if noise is None else noise[:, t]).flatten(1)
            deters.append(deter)
            stochs.append(stoch)
            logits.append(logit.flatten(1))
        return torch.stack(deters, 1), torch.stack(stochs, 1), torch.stack(logits, 1)

    def _post_logits(self, deter: Tensor, seen: Tensor) -> Tensor:
        first: Dense = self.post[0]  # type: ignore[assignment]
        x = first.finish(seen if self.cfg.absolute else seen + first.part(deter, 0))
        for layer in list(self.post)[1:]:
            x = layer(x)
        return self.post_out(x).float().unflatten(-1, (self.cfg.stoch, self.cfg.classes))

    def prior_logits(self, deter: Tensor) -> Tensor:
        """What the latent is expected to be before seeing: deter (*, D) -> logits (*, S, C), not yet mixed with uniform."""
        return self.prior_out(self.prior(deter)).float().unflatten(-1, (self.cfg.stoch, self.cfg.classes))

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities (*, S, C) of logits after mixing in the uniform share."""
        return maths.mixed_log_probs(logits, self.cfg.unimix)

    def _sample(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        probs = maths.mixed_probs(logits, self.cfg.unimix)
        return maths.straight_through(maths.sample_onehot(probs, noise), probs)

    def kl(self, post: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses dyn (trains the prior) and rep (trains the posterior), each (B, T), and entropies in nats, each (B, T).

        KL(posterior || prior) summed over groups and clipped from below at the free nats (DreamerV3, eq. 5); they differ
        only in which side is held fixed.
        """
        post_logp, prior_logp = self.log_probs(post["logits"]), self.log_probs(self.prior_logits(post["deter"]))
        free = self.cfg.free_nats
        losses = {
            "dyn": maths.categorical_kl(post_logp.detach(), prior_logp).sum(-1).clamp(min=free),
            "rep": maths.categorical_kl(post_logp, prior_logp.detach()).sum(-1).clamp(min=free),
        }
        entropies = {
            "dyn_ent": maths.categorical_entropy(prior_logp.detach()).sum(-1),
            "rep_ent": maths.categorical_entropy(post_logp.detach()).sum(-1),
        }
        return losses, entropies


def _bounded(action: Tensor) -> Tensor:
    """Scale elements beyond 1 in magnitude back to 1; the factor carries no gradient."""
    return action / action.detach().abs().clamp(min=1)
