"""What several members say at once: trained as each by itself, read as one, drawn from as a mixture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.outputs import Categorical, Distribution, Output, Squared
from ..core.rng import Draws
from .crowd import parts


class Together(Output):
    """What E members say of the same things: an output with a leading axis (E, *), trained as each by itself.

    kept: bool (*, E), which members learn from which step; None for all. The loss is the mean over members, one that does not learn
    from a step counting 0.
    """

    def __init__(self, each: Output, kept: Tensor | None) -> None:
        self.each, self.kept = each, kept

    def pred(self) -> Tensor:
        """Mean of the members' numbers, or the class that they find most likely together."""
        if isinstance(self.each, Categorical):
            return self.each.log_probs.exp().mean(0).argmax(-1)
        return self.each.pred().mean(0)

    def loss(self, target: Tensor) -> Tensor:
        count = len(parts(self.each)[1][0])
        return averaged(self.each.loss(target.expand(count, *target.shape)), self.kept)


class TogetherSquared(Together, Squared):
    """The same for numbers and pictures, whose mean can be shown."""

    def __init__(self, each: Squared, kept: Tensor | None) -> None:
        Together.__init__(self, each, kept)
        Squared.__init__(self, each.mean.mean(0), each.dims, each.squash)


def together(each: Output, kept: Tensor | None) -> Together:
    """`Together`, as a squared error where the members' outputs are."""
    return TogetherSquared(each, kept) if isinstance(each, Squared) else Together(each, kept)


def averaged(loss: Tensor, kept: Tensor | None) -> Tensor:
    """Losses of members (E, *) -> (*): their mean, with 0 for those that do not learn from a step; kept bool (*, E) or None."""
    return (loss if kept is None else loss * kept.movedim(-1, 0)).mean(0)


class Mixture(Distribution):
    """One of E distributions, each as likely: `each` has a leading axis (E, *). `pick` tells which, the same for all keys of an action."""

    def __init__(self, each: Distribution, pick: Callable[[Draws], Tensor]) -> None:
        self.each, self.pick = each, pick

    def sample(self, draws: Draws, stream: str) -> Tensor:
        """A draw (*, width). Where the stream is replaced by its mode: the class most likely under the mixture, or its mean."""
        drawn = self.each.sample(draws, stream)
        if stream not in draws.modes:
            return drawn[self.pick(draws), torch.arange(drawn.shape[1], device=drawn.device)]
        if isinstance(self.each, Categorical):
            shared = self.each.log_probs.exp().mean(0).log()
            return Categorical(shared, self.each.dims).sample(draws, stream)
        return drawn.mean(0)

    def pred(self) -> Tensor:
        """Mean of the members' means, or the class most likely under the mixture."""
        return Together(self.each, None).pred()

    def logp(self, value: Tensor) -> Tensor:
        """Log of the members' mean probability."""
        each = self.each.logp(value.expand(len(parts(self.each)[1][0]), *value.shape))
        return torch.logsumexp(each, 0) - torch.log(torch.tensor(float(len(each)), device=each.device))
