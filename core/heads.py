"""Heads: perceptrons that end in an output. One class for scalars, one for policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from . import maths
from .nets import MLP, Activation, Linear, Norm, member
from .outputs import Binary, Categorical, Distribution, Normal, Output, Squared, TwoHot
from .specs import Space


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A head that predicts one number per state."""

    dist: Literal["symexp_twohot", "symlog_twohot", "symlog_mse", "mse", "binary"] = "symexp_twohot"  # kind of output
    layers: int = 1  # dense units before the output
    units: int = 64  # width of each
    bins: int = 255  # of the two-hot kinds
    outscale: float = 1.0  # factor on the output layer's start weights; 0 predicts 0 at first
    norm: Norm = "rms"  # of the layers
    act: Activation = "silu"  # of the layers


class Head(nn.Module):
    """Features (*, F) -> an `Output` of one number per state (*)."""

    bins: Tensor

    def __init__(self, inputs: int, cfg: HeadConfig) -> None:
        super().__init__()
        self.cfg, self.compiled = cfg, False
        self.mlp = MLP(inputs, cfg.units, cfg.layers, cfg.norm, cfg.act)
        twohot = cfg.dist.endswith("twohot")
        self.out = Linear(self.mlp.width, cfg.bins if twohot else 1, cfg.outscale)
        if twohot:
            bins = maths.symexp_bins(cfg.bins) if cfg.dist == "symexp_twohot" else torch.linspace(-20, 20, cfg.bins)
            self.register_buffer("bins", bins, persistent=False)

    def forward(self, features: Tensor) -> Output:
        return self.output(self.raw(features))

    def raw(self, features: Tensor) -> Tensor:
        """The last layer's numbers (*, K)."""
        return self.out(self.mlp(features))

    def output(self, x: Tensor) -> Output:
        """What the last layer's numbers (*, K) mean."""
        if self.cfg.dist.endswith("twohot"):
            return TwoHot(x, self.bins, self.cfg.dist.removesuffix("_twohot"), self.compiled and self.training)
        if self.cfg.dist == "binary":
            return Binary(x.squeeze(-1))
        return Squared(x.squeeze(-1), 0, maths.symlog if self.cfg.dist == "symlog_mse" else None)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The actor's network and its distribution over actions."""

    layers: int = 3  # dense units before the outputs
    units: int = 64  # width of each
    continuous: Literal["bounded_normal", "normal", "tanh_normal"] = "bounded_normal"  # kind for continuous actions
    min_std: float = 0.1  # of bounded_normal and tanh_normal
    max_std: float = 1.0  # of bounded_normal
    unimix: float = 0.01  # share of uniform mixed into discrete actions; 0 is what the released code does in effect
    outscale: float = 0.01  # factor on the output layers' start weights
    norm: Norm = "rms"  # of the layers
    act: Activation = "silu"  # of the layers


def _bounds(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Mean within -1 and 1, deviation within low and high."""
    return torch.tanh(mean), (high - low) * torch.sigmoid(std + 2.0) + low


@cache
def _compiled_bounds() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_bounds, dynamic=False, fullgraph=True)


class Policy(nn.Module):
    """Features (*, F) -> one `Distribution` per action key, in alphabetical order of the keys."""

    def __init__(self, inputs: int, action: Mapping[str, Space], cfg: PolicyConfig) -> None:
        super().__init__()
        self.cfg, self.compiled = cfg, False
        self.action = {k: action[k] for k in sorted(action)}
        self.mlp = MLP(inputs, cfg.units, cfg.layers, cfg.norm, cfg.act)
        self.outs = nn.ModuleDict()  # by `member`
        for key, space in self.action.items():
            names = ["logits"] if space.discrete else ["mean", "std"]
            self.outs[member(key)] = nn.ModuleDict({n: Linear(self.mlp.width, space.width, cfg.outscale) for n in names})

    def forward(self, features: Tensor) -> dict[str, Distribution]:
        x = self.mlp(features)
        return {key: self._output(key, space, x) for key, space in self.action.items()}

    def _output(self, key: str, space: Space, x: Tensor) -> Distribution:
        raw = {name: layer(x).float() for name, layer in self.outs[member(key)].items()}  # type: ignore[operator]
        if space.discrete:
            logits = raw["logits"].unflatten(-1, (*space.shape, space.classes or 1))
            return Categorical(logits, len(space.shape), self.cfg.unimix)
        low, high = self.cfg.min_std, self.cfg.max_std
        if self.cfg.continuous == "bounded_normal":
            fast = self.compiled and self.training and x.is_cuda
            return Normal(*(_compiled_bounds() if fast else _bounds)(raw["mean"], raw["std"], low, high))
        if self.cfg.continuous == "tanh_normal":
            return Normal(raw["mean"], nn.functional.softplus(raw["std"]) + low, squash=True)
        return Normal(raw["mean"], torch.exp(raw["std"]))
