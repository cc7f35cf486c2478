"""What heads return: objects that know their prediction, loss, samples and log-probabilities. Everything in float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import maths, twohot
from .rng import Draws


class Output:
    """A prediction. `dims` trailing axes of the event are summed by `loss`, `logp` and `entropy`."""

    def pred(self) -> Tensor:
        """The single best value, in the units of the target."""
        raise NotImplementedError

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-likelihood or error against a target, one number per (b, t). No gradient reaches the target.

        Outputs of one number per state also take several targets at once, stacked in front.
        """
        raise NotImplementedError


class Squared(Output):
    """Squared error summed over the event, without the factor 1/2. `squash` maps targets into the space of the mean."""

    def __init__(self, mean: Tensor, dims: int, squash: Callable[[Tensor], Tensor] | None = None) -> None:
        self.mean, self.dims, self.squash = mean.float(), dims, squash

    def pred(self) -> Tensor:
        return maths.symexp(self.mean) if self.squash is maths.symlog else self.mean

    def loss(self, target: Tensor) -> Tensor:
        target = target.float() if self.squash is None else self.squash(target.float())
        return _sum((self.mean - target.detach()).square(), self.dims)


class TwoHot(Output):
    """A scalar as a distribution over fixed bins, trained by cross-entropy (DreamerV3, section "Critic learning").

    logits (*, K). space "symexp": bins are symexp-spaced in the units of the target. space "symlog": bins are equally
    spaced in symlog space, where targets are moved (the 2023 paper).
    """

    def __init__(self, logits: Tensor, bins: Tensor, space: str = "symexp", compiled: bool = False) -> None:
        self.logits, self.bins, self.space, self.compiled = logits, bins, space, compiled

    def pred(self) -> Tensor:
        mean = twohot.mean(self.logits, self.bins, self.compiled)
        return mean if self.space == "symexp" else maths.symexp(mean)

    def loss(self, target: Tensor) -> Tensor:
        target = target.detach().float()
        return twohot.loss(self.logits, target if self.space == "symexp" else maths.symlog(target), self.bins, self.compiled)


class Binary(Output):
    """A yes/no variable. logit (*). The target may be a probability."""

    def __init__(self, logit: Tensor) -> None:
        self.logit = logit.float()

    def pred(self) -> Tensor:
        """Probability of yes."""
        return torch.sigmoid(self.logit)

    def loss(self, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logit, target.detach().float(), reduction="none")


class Distribution(Output):
    """An output that actions are drawn from. Samples are in model form: (*, width), one-hot where discrete."""

    def sample(self, draws: Draws, stream: str) -> Tensor:
        """A draw (*, width), differentiable where that is possible: reparameterised normals, straight-through classes."""
        raise NotImplementedError

    def logp(self, value: Tensor) -> Tensor:
        """Log-probability (*) of a value in model form."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Entropy (*) in nats."""
        raise NotImplementedError

    def loss(self, target: Tensor) -> Tensor:
        return -self.logp(target.detach())


class Categorical(Distribution):
    """Independent classes. logits (*, *shape, C) with `dims` event axes before the class axis; mixed with `unimix` uniform."""

    def __init__(self, logits: Tensor, dims: int = 0, unimix: float = 0.0) -> None:
        self.dims = dims
        self.log_probs = maths.mixed_log_probs(logits.float(), unimix)

    def pred(self) -> Tensor:
        """Most likely class index (*, *shape)."""
        return self.log_probs.argmax(-1)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy against class indices (*, *shape)."""
        return -_sum(self.log_probs.gather(-1, target.long().unsqueeze(-1)).squeeze(-1), self.dims)

    def sample(self, draws: Draws, stream: str) -> Tensor:
        probs = self.log_probs.exp()
        onehot = maths.sample_onehot(probs, draws.uniform(stream, *probs.shape[:-1]))
        return self._flat(maths.straight_through(onehot, probs))

    def logp(self, value: Tensor) -> Tensor:
        return _sum((value.reshape(self.log_probs.shape) * self.log_probs).sum(-1), self.dims)

    def entropy(self) -> Tensor:
        return _sum(maths.categorical_entropy(self.log_probs), self.dims)

    def max_entropy(self) -> float:
        """Entropy of the uniform choice, in nats."""
        shape = self.log_probs.shape
        return math.prod(shape[-1 - self.dims : -1]) * math.log(shape[-1])

    def _flat(self, value: Tensor) -> Tensor:
        return value.flatten(value.ndim - self.dims - 1)


class Normal(Distribution):
    """Independent normals. mean, std (*, A). With `squash` samples and values pass through tanh (a tanh-normal)."""

    def __init__(self, mean: Tensor, std: Tensor, squash: bool = False) -> None:
        self.mean, self.std, self.squash = mean.float(), std.float(), squash

    def pred(self) -> Tensor:
        return torch.tanh(self.mean) if self.squash else self.mean

    def sample(self, draws: Draws, stream: str) -> Tensor:
        raw = self.mean + self.std * draws.normal(stream, *self.mean.shape)
        return torch.tanh(raw) if self.squash else raw

    def logp(self, value: Tensor) -> Tensor:
        raw = torch.atanh(value.clamp(-1 + 1e-6, 1 - 1e-6)) if self.squash else value
        logp = -0.5 * ((raw - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        if self.squash:
            logp = logp - torch.log1p(-torch.tanh(raw).square() + 1e-6)
        return logp.sum(-1)

    def entropy(self) -> Tensor:
        """Of the normal before squashing: a tanh-normal has no closed form."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1)


def _sum(x: Tensor, dims: int) -> Tensor:
    return x.flatten(x.ndim - dims).sum(-1) if dims else x
