"""The optimizer: adaptive clipping, LaProp or Adam, warm-up and decay of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .config import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters move. Groups are one for everything, or split into world model, actor and critic."""

    kind: Literal["laprop", "adam"] = "laprop"  # normalise then average (Ziyin et al. 2020), or average then normalise
    groups: Literal["single", "split"] = "single"  # one optimizer over one sum, or three learning rates and clips
    lr: float = 4e-5  # of the single group
    lr_model: float = 1e-4  # of the split groups
    lr_actor: float = 3e-5
    lr_critic: float = 3e-5
    agc: float = 0.3  # clip each tensor's gradient at this share of its norm (Brock et al. 2021); 0 is off
    clip: float = 0.0  # clip the single group's global norm; 0 is off
    clip_model: float = 0.0  # of the split groups
    clip_actor: float = 0.0
    clip_critic: float = 0.0
    eps: float = 1e-20  # added to the root of the second moment
    beta1: float = 0.9  # momentum
    beta2: float = 0.999  # second moment
    nesterov: bool = False  # look ahead in the momentum (laprop)
    decay: float = 0.0  # weight decay of matrices and kernels
    warmup: int = 1000  # updates over which the rate grows linearly from 0; the first update of a warm-up moves nothing
    schedule: Literal["const", "linear", "cosine"] = "const"  # what follows
    anneal: int = 0  # updates after which linear and cosine have reached a tenth of the rate, warm-up included


def learning_rate(cfg: OptimConfig, lr: float, step: int) -> float:
    """Rate of update number `step`, counted from 0."""
    if step < cfg.warmup:
        return lr * step / cfg.warmup
    if cfg.schedule == "const":
        return lr
    if cfg.anneal <= cfg.warmup:
        raise ConfigError(f"optim.schedule={cfg.schedule} needs optim.anneal above the warm-up of {cfg.warmup} updates, got {cfg.anneal}")
    progress = min((step - cfg.warmup) / (cfg.anneal - cfg.warmup), 1.0)
    share = 1 - progress if cfg.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return lr * (0.1 + 0.9 * share)


AGC_FLOOR = 1e-3
"""Norm that adaptive clipping assumes at least, so that tensors starting at zero can move."""


class Optimizer(torch.optim.Optimizer):
    """Steps all groups at once; parameters without a gradient stay exactly where they are, momentum included.

    groups: {"params", "lr", "clip", "name"} each. `step()` returns scalars for the log.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], cfg: OptimConfig) -> None:
        self.cfg = cfg
        self.unsettled: Callable[[], None] | None = None
        learning_rate(cfg, cfg.lr, cfg.warmup)  # refuses a schedule that cannot be before the first update
        super().__init__(groups, {"lr": cfg.lr, "clip": 0.0, "updates": 0})

    @torch.no_grad()
    def step(self, closure: None = None, norms: Mapping[Tensor, Tensor] | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Move all parameters that have a gradient. norms: those of their gradients by parameter, where they are known already."""
        metrics: dict[str, Tensor] = {}
        self.settle()
        for group in self.param_groups:
            if params := with_gradient(group):
                known = gradient_norms(params) if norms is None else norms
                metrics |= self.named(group, self._step(group, params, torch.stack([known[p] for p in params])))
                self.count(params)
            group["updates"] += 1
        return metrics

    def named(self, group: dict[str, Any], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of a group, named for the log."""
        prefix = "opt" if len(self.param_groups) == 1 else f"opt/{group['name']}"
        return {f"{prefix}/{k}": v for k, v in metrics.items()}

    def _step(self, group: dict[str, Any], params: list[Tensor], norms: Tensor) -> dict[str, Tensor]:
        cfg = self.cfg
        norm = norms.norm()
        grads = [p.grad for p in params if p.grad is not None]
        if cfg.agc or group["clip"]:
            grads = list(torch._foreach_mul(grads, list(self.shrinks(group, params, norms, norm).unbind())))
        first, second = self.moments(params)
        rates, corrections1, corrections2, decays = self.dials(group, params)
        update = (self._laprop if cfg.kind == "laprop" else self._adam)(grads, corrections1, corrections2, first, second)
        lr = rates[0]
        if cfg.decay:
            kernels = [(u, p) for u, p, decay in zip(update, params, decays, strict=True) if decay]
            torch._foreach_add_([u for u, _ in kernels], [p for _, p in kernels], alpha=cfg.decay)
        torch._foreach_add_(params, update, alpha=-lr)
        count = sum(p.numel() for p in params)
        return {
            "grad_norm": norm,
            "update_rms": total_norm(torch._foreach_norm(update)) * lr / math.sqrt(count),
            "param_rms": total_norm(torch._foreach_norm(params)) / math.sqrt(count),
            "lr": torch.tensor(lr),
        }

    def moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Running moments of each parameter, from zero on."""
        for p in params:
            if not self.state[p]:
                self.state[p] |= {"step": 0, "first": torch.zeros_like(p), "second": torch.zeros_like(p)}
        states = [self.state[p] for p in params]
        return [s["first"] for s in states], [s["second"] for s in states]

    def count(self, params: list[Tensor], updates: int = 1) -> None:
        """So many updates more for each of these."""
        for p in params:
            self.state[p]["step"] += updates

    def settle(self) -> None:
        """Make all counts true. Between a recorded update and this they suppose that it was good."""
        settle, self.unsettled = self.unsettled, None
        if settle is not None:
            settle()

    def dials(self, group: dict[str, Any], params: list[Tensor]) -> tuple[list[float], ...]:
        """What the coming update of each parameter goes by: rate, corrections of both moments for their start at zero, weight decay."""
        steps = [self.state[p]["step"] + 1 for p in params]
        rate = learning_rate(self.cfg, group["lr"], group["updates"])
        corrections = ([1 - beta**t for t in steps] for beta in (self.cfg.beta1, self.cfg.beta2))
        return ([rate] * len(params), *corrections, [self.cfg.decay if p.ndim > 1 else 0.0 for p in params])

    def shrinks(self, group: dict[str, Any], params: list[Tensor], norms: Tensor, norm: Tensor) -> Tensor:
        """Factor (n,) that clipping puts on each gradient, given the norm of each (n,) and of all together ()."""
        factor = torch.ones_like(norms)
        if self.cfg.agc:
            factor = factor / _excess(norms, params, self.cfg.agc)
        return factor * (group["clip"] / norm.clamp(min=1e-6)).clamp(max=1.0) if group["clip"] else factor

    def _laprop(
        self, grads: list[Tensor], corrections1: list[float], corrections2: list[float], first: list[Tensor], second: list[Tensor]
    ) -> list[Tensor]:
        beta1, beta2 = self.cfg.beta1, self.cfg.beta2
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        scale = torch._foreach_div(second, corrections2)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.cfg.eps)
        normed = torch._foreach_div(grads, scale)
        torch._foreach_lerp_(first, normed, 1 - beta1)
        # Looking ahead applies the average's own step once more.
        average = torch._foreach_lerp(first, normed, 1 - beta1) if self.cfg.nesterov else first
        return list(torch._foreach_div(average, corrections1))

    def _adam(
        self, grads: list[Tensor], corrections1: list[float], corrections2: list[float], first: list[Tensor], second: list[Tensor]
    ) -> list[Tensor]:
        beta1, beta2 = self.cfg.beta1, self.cfg.beta2
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        scale = torch._foreach_div(second, corrections2)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, self.cfg.eps)
        return list(torch._foreach_div(torch._foreach_div(first, corrections1), scale))


def with_gradient(group: Mapping[str, Any]) -> list[Tensor]:
    """The parameters of a group that have a gradient."""
    return [p for p in group["params"] if p.grad is not None]


def clip_adaptive(grads: list[Tensor], params: list[Tensor], share: float) -> list[Tensor]:
    """Shrink each gradient whose norm exceeds `share` of its parameter's norm; norms are of whole tensors."""
    return list(torch._foreach_div(grads, list(_excess(torch.stack(torch._foreach_norm(grads)), params, share).unbind())))


def _excess(norms: Tensor, params: list[Tensor], share: float) -> Tensor:
    """By how much the norm (n,) of each gradient exceeds `share` of its parameter's, at least 1."""
    bound = torch.stack(torch._foreach_norm(params)).clamp(min=AGC_FLOOR) * share
    return (norms / bound).clamp(min=1.0)


def gradient_norms(params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Norms of the gradients of those parameters that have one, by parameter."""
    grads = {p: p.grad for p in params if p.grad is not None}
    return dict(zip(grads, torch._foreach_norm(list(grads.values())), strict=True)) if grads else {}


def total_norm(norms: Iterable[Tensor]) -> Tensor:
    """The norm of several tensors together, given the norm of each; 0 of none."""
    norms = list(norms)
    return torch.stack(norms).norm() if norms else torch.zeros(())


def finite(values: Iterable[Tensor]) -> Tensor:
    """Whether scalars () are all finite, a bool tensor () on their device.

    Among them belong the norms of all gradients, the loss and the sum of the rewards, since a two-hot loss hides a reward that is not
    a number. A gradient whose norm overflows counts as not finite: no clipping could bring it back.
    """
    return torch.isfinite(torch.stack([v.detach().float() for v in values])).all()


def make_groups(
    cfg: OptimConfig, model: Iterable[nn.Parameter], actor: Iterable[nn.Parameter], critic: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """Parameter groups as the configuration wants them."""
    parts = {"model": list(model), "actor": list(actor), "critic": list(critic)}
    if cfg.groups == "single":
        return [{"params": [p for ps in parts.values() for p in ps], "lr": cfg.lr, "clip": cfg.clip, "name": "all"}]
    rates = {"model": cfg.lr_model, "actor": cfg.lr_actor, "critic": cfg.lr_critic}
    clips = {"model": cfg.clip_model, "actor": cfg.clip_actor, "critic": cfg.clip_critic}
    return [{"params": ps, "lr": rates[name], "clip": clips[name], "name": name} for name, ps in parts.items()]
