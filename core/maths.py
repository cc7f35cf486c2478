"""The formulas, each stated once, as pure functions of tensors. Shapes follow the legend in specs.py."""

from __future__ import annotations

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) * ln(1 + |x|), elementwise: compresses large numbers, is the identity near zero (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """sign(x) * (exp(|x|) - 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def symexp_bins(count: int) -> Tensor:
    """Support of the two-hot distribution: `symexp` of -20 ... 20, exactly mirrored. Returns (count,) float32.

    An odd count has one bin at exactly 0, an even count two.
    """
    half = symexp(torch.linspace(-20, 0, (count + 1) // 2))
    mirrored = -(half[:-1] if count % 2 else half).flip(0)
    return torch.cat([half, mirrored])


def twohot_mean(probs: Tensor, bins: Tensor) -> Tensor:
    """Expected value under bin probabilities. probs (*, K), bins (K,) mirrored around zero. Returns (*).

    Mirrored bins are paired before they are summed: the terms reach 1e8, and only so do uniform probabilities give
    exactly 0 in float32.
    """
    half = len(bins) // 2
    # An autocast takes this for a product of layers, and in bfloat16 a value of 90 would be one of 89.5, 90 and 90.5.
    with torch.autocast(probs.device.type, enabled=False):
        return (probs[..., -half:] - probs[..., :half].flip(-1)) @ bins[-half:]


def twohot_place(target: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bins around each target and the weight of the lower one, by closeness: indices (*), indices (*), weights (*).

    Targets beyond the last bin saturate there.
    """
    target = target.detach().contiguous()
    above = torch.searchsorted(bins, target, right=True)
    below = (above - 1).clamp(0, len(bins) - 1)
    above = above.clamp(0, len(bins) - 1)
    to_below = (bins[below] - target).abs()
    to_above = (bins[above] - target).abs()
    single = below == above
    return below, above, torch.where(single, 1.0, to_above / torch.where(single, 1.0, to_below + to_above))


def lambda_return(reward: Tensor, boot: Tensor, live: Tensor, lam: Tensor | float) -> Tensor:
    """TD(lambda) targets, computed backwards from the last bootstrap value.

    reward, boot, live (*, T): entry t belongs to state t (reward for arriving there, value of it, discount times the
    probability of not having ended there); entry 0 of each is never read. lam is a number or (*, T), 0 where the chain
    must stop. Returns (*, T - 1): R_t = r_{t+1} + live_{t+1} * ((1 - lam_{t+1}) * boot_{t+1} + lam_{t+1} * R_{t+1}).
    """
    carry = lam.to(reward.dtype).expand_as(reward) if isinstance(lam, Tensor) else torch.full_like(reward, lam)
    step = reward + live * (1 - carry) * boot
    decay = live * carry
    ret = boot[..., -1]
    out = []
    for t in range(reward.shape[-1] - 1, 0, -1):
        ret = step[..., t] + decay[..., t] * ret
        out.append(ret)
    return torch.stack(out[::-1], -1)


def mixed_probs(logits: Tensor, unimix: float) -> Tensor:
    """(1 - unimix) * softmax + unimix / C over the last axis. logits (*, C). Returns (*, C)."""
    # Softmax over a last axis of few classes is slow on processors; over a leading axis it is not (13x at four classes).
    probs = torch.softmax(logits.movedim(-1, 0).contiguous(), 0).movedim(0, -1)
    return probs * (1 - unimix) + unimix / logits.shape[-1] if unimix else probs


def mixed_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Logarithm of `mixed_probs`. logits (*, C). Returns (*, C)."""
    return torch.log(mixed_probs(logits, unimix)) if unimix else torch.log_softmax(logits, -1)


def categorical_entropy(logp: Tensor) -> Tensor:
    """Entropy in nats of log-probabilities (*, C). Returns (*)."""
    return -(logp.exp() * logp).sum(-1)


def categorical_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities (*, C). Returns (*)."""
    return (logp.exp() * (logp - logq)).sum(-1)


def sample_onehot(probs: Tensor, uniform: Tensor | None) -> Tensor:
    """One-hot draw from class probabilities (*, C) by inverting the distribution function at uniform (*). Returns (*, C).

    Without noise (None) the most likely class is taken. The value carries no gradient.
    """
    probs = probs.detach()
    if uniform is None:
        return torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs.dtype)
    if torch.compiler.is_compiling() and probs.shape[-1] <= 64:
        return _sample_unrolled(probs, uniform)
    below = probs.cumsum(-1)
    # The last class closes the interval: rounding may leave the total a little below a uniform number close to 1.
    below[..., -1] = 2.0
    passed = (uniform.unsqueeze(-1) < below).to(probs.dtype)
    onehot = passed.clone()
    onehot[..., 1:] -= passed[..., :-1]
    return onehot


def _sample_unrolled(probs: Tensor, uniform: Tensor) -> Tensor:
    """The same class by class, which a compiler vectorises over everything else."""
    total, passed, parts = torch.zeros_like(uniform), torch.zeros_like(uniform), []
    for k in range(probs.shape[-1] - 1):
        total = total + probs[..., k]
        now = torch.where(uniform < total, 1.0, 0.0)
        parts.append(now - passed)
        passed = now
    return torch.stack([*parts, 1.0 - passed], -1)


def straight_through(onehot: Tensor, probs: Tensor) -> Tensor:
    """The one-hot value in the forward pass, the gradient of the probabilities in the backward pass (Bengio et al. 2013)."""
    return onehot + (probs - probs.detach()) if probs.requires_grad else onehot
