"""The world model's recurrent core: deterministic state, categorical latent, posterior and prior."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from einops import rearrange
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import maths, scan
from .cells import CELLS, Cell, CellWeights, RSSMConfig, cell_step
from .nets import MLP, Dense, DenseWeights, Linear, affine
from .rng import Draws

__all__ = ["CELLS", "RSSM", "Cell", "RSSMConfig"]


class PriorWeights(NamedTuple):
    """The prior's dense units and its output, laid out for products from the left."""

    hidden: tuple[DenseWeights, ...]
    out: Tensor  # (h, C * S), class-major
    out_bias: Tensor


def prior_step(
    cell: CellWeights,
    prior: PriorWeights,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    groups: tuple[int, int],
    unimix: float,
) -> tuple[Tensor, Tensor]:
    """deter (n, D), stoch (n, Z), action (n, A) -> next deter (n, D) and stoch (n, S, C) drawn from the prior."""
    deter = cell_step(cell, deter, stoch, cell.from_action(_bounded(action).to(deter.dtype)))[0]
    x = deter
    for layer in prior.hidden:
        x = layer(x)
    logits = affine(prior.out_bias, x, prior.out).float().unflatten(-1, groups[::-1]).transpose(1, 2)
    probs = maths.mixed_probs(logits, unimix)
    return deter, maths.straight_through(maths.sample_onehot(probs, noise), probs).to(deter.dtype)


@cache
def _step(compiled: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(prior_step, dynamic=False, fullgraph=True) if compiled else prior_step


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
        # Plain parts have a faster form of the same formulas: as functions of weights that are laid out once, not at every step.
        self.plain = self.cell.plain and cfg.post_layers == 1 and not cfg.absolute
        self.compiled = self.fused = False
        self.scan_dtype = torch.float32
        self._slots: list[tuple[nn.Module, str]] = []
        self._laid_out: dict[torch.dtype, tuple[Any, tuple[CellWeights, PriorWeights, scan.PostWeights]]] = {}

    def accelerate(self, precision: torch.dtype, compiled: bool, fused: bool = False) -> None:
        """Choose how `observe` and `step` are computed. The dream runs in the type of the state it starts from.

        fused: differentiate `observe` by kernels of our own, where there are any for these widths.
        """
        self.compiled, self.fused = compiled, fused
        # Products of few rows and narrow layers gain nothing from a shorter type and lose the casts.
        self.scan_dtype = precision if self.cfg.deter >= 1024 or fused else torch.float32

    def _weights(self, dtype: torch.dtype) -> tuple[CellWeights, PriorWeights, scan.PostWeights]:
        """The weights as the plain forms want them. Laid out anew only after they changed, unless a graph must reach them."""
        if not self._slots:
            self._slots = [(m, name) for m in self.modules() for name in m._parameters]
        now = [m._parameters[name] for m, name in self._slots]
        fixed = not (torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in now))
        # Tensors that stand in for parameters (torch.func) come and go: only parameters are remembered.
        if not fixed or not all(isinstance(p, nn.Parameter) for p in now):
            return self._lay_out(dtype)
        version = [(p.data_ptr(), p._version) for p in now if p is not None]
        kept = self._laid_out.get(dtype)
        if kept is None or kept[0] != version:
            with torch.no_grad():
                kept = version, self._lay_out(dtype)
            self._laid_out[dtype] = kept
        return kept[1]

    def _lay_out(self, dtype: torch.dtype) -> tuple[CellWeights, PriorWeights, scan.PostWeights]:
        layers: list[Dense] = list(self.prior)  # type: ignore[arg-type]
        # Class-major: operations over few classes are fast when the classes are not what lies side by side in memory.
        out = rearrange(self.prior_out.weight, "(s c) h -> h (c s)", c=self.cfg.classes).to(dtype)
        bias = rearrange(self.prior_out.bias, "(s c) -> (c s)", c=self.cfg.classes).to(dtype)
        prior = PriorWeights(tuple(layer.weights(dtype) for layer in layers), out, bias)
        first: Dense = self.post[0]  # type: ignore[assignment]
        unit, scale = first.linear.weight[:, : self.cfg.deter].t().to(dtype), first.norm.scale
        post = scan.PostWeights(unit, scale, self.post_out.weight.t().to(dtype), self.post_out.bias.to(dtype))  # type: ignore[arg-type]
        return self.cell.weights(dtype), prior, post

    def initial(self, n: int, device: torch.device | str | None = None) -> TensorDict:
        """The state before anything was seen: zeros, (n,)."""
        deter = torch.zeros(n, self.cfg.deter, device=device)
        return TensorDict({"deter": deter, "stoch": deter.new_zeros(n, self.cfg.stoch, self.cfg.classes)}, [n], device=device)

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        """One dreamed step: state (n,) and action (n, A) -> latents drawn from the prior (n,)."""
        deter, stoch = state["deter"], state["stoch"].flatten(1)
        noise = draws.uniform("prior", len(deter), self.cfg.stoch)
        if self.plain:
            groups = (self.cfg.stoch, self.cfg.classes)
            cell, prior, _ = self._weights(deter.dtype)
            after, drawn = _step(self.compiled and self.training)(cell, prior, deter, stoch, action, noise, groups, self.cfg.unimix)
        else:
            after = self.cell(deter, stoch, self.cell.embed(_bounded(action)))
            drawn = self._sample(self.prior_logits(after), noise)
        return TensorDict({"deter": after, "stoch": drawn}, state.batch_size, device=after.device)

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
        groups = (self.cfg.stoch, self.cfg.classes)
        if self.plain and not self.cfg.checkpoint:
            # Products are shortened where the autocast around says so; without a graph the weights come in that type.
            kind = self.scan_dtype if torch.is_autocast_enabled(tokens.device.type) else torch.float32
            settings = scan.Settings(groups, self.cfg.unimix, kind, self.compiled and self.training, self.fused and self.training)
            start = state["deter"], state["stoch"].flatten(1)
            cell, _, post = self._weights(torch.float32 if torch.is_grad_enabled() else kind)
            deter, stoch, logits = scan.observe(settings, cell, post, *start, (keep, embedded, seen), noise)
        else:
            deter, stoch, logits = self._observe_plainly(state, embedded, seen, keep, noise)
        return TensorDict(
            {"deter": deter, "stoch": stoch.unflatten(-1, groups), "logits": logits.unflatten(-1, groups)},
            tokens.shape[:2],
            device=deter.device,
        )

    def _observe_plainly(self, state: TensorDict, embedded: Tensor, seen: Tensor, keep: Tensor, noise: Tensor | None) -> tuple[Tensor, ...]:
        """`observe` for cells of any kind, optionally recomputed in pieces: deter, stoch, logits, (B, T, ...) each."""
        length = seen.shape[1]
        inputs = [embedded, seen, keep, noise]
        carry = (state["deter"], state["stoch"].flatten(1))
        pieces: list[tuple[Tensor, ...]] = []
        span = self.cfg.checkpoint if self.cfg.checkpoint and torch.is_grad_enabled() else length
        for t in range(0, length, span):
            cut = [None if x is None else x[:, t : t + span] for x in inputs]
            if span < length:
                piece = checkpoint(self._scan, *carry, *cut, use_reentrant=False)
            else:
                piece = self._scan(*carry, *cut)  # type: ignore[arg-type]
            carry = (piece[0][:, -1], piece[1][:, -1])
            pieces.append(piece)
        return tuple(torch.cat(p, 1) if len(p) > 1 else p[0] for p in zip(*pieces, strict=True))

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


class Latents:
    """deter (N, D) and stoch (N, S) of a rollout's `steps` states side by side. In memory step follows step, so that each is whole."""

    def __init__(self, steps: int) -> None:
        self.steps, self._memory, self._parts = steps, torch.empty(0), list[Tensor]()

    def add(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """The next state's, (N, D + S). Without a graph they are written where they stay."""
        if torch.is_grad_enabled():
            self._parts.append(torch.cat([deter, stoch], -1))
        else:
            if not self._parts:
                self._memory = deter.new_empty(self.steps, len(deter), deter.shape[-1] + stoch.shape[-1])
            own = self._memory[len(self._parts)]
            own[:, : deter.shape[-1]] = deter
            own[:, deter.shape[-1] :] = stoch
            self._parts.append(own)
        return self._parts[-1]

    def all(self) -> Tensor:
        """Of all states, (N, steps, D + S)."""
        return (torch.stack(self._parts) if torch.is_grad_enabled() else self._memory).transpose(0, 1)
