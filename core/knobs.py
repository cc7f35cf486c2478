"""The base agent's knobs. A variant's configuration inherits from this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .behavior import ActorConfig, CriticConfig
from .cells import Cell, RSSMConfig
from .codec import CodecConfig
from .heads import HeadConfig
from .optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Weights of the base agent's losses in the one sum that is minimised."""

    rec: float = 1.0  # reconstruction of each observation key
    reward: float = 1.0
    cont: float = 1.0
    dyn: float = 1.0  # the prior follows the posterior
    rep: float = 0.1  # the posterior stays predictable
    policy: float = 1.0
    value: float = 1.0  # critics on dreams
    repval: float = 0.3  # critics on replayed steps


@dataclass(frozen=True, kw_only=True)
class Config:
    """Knobs of the base agent. The defaults are profile v3 at size1m."""

    dynamics: Cell = "block_gru"  # kind of recurrent cell
    dream: int = 15  # H, imagined steps
    starts: int = 0  # dreams start at the last so many replayed steps of each sequence; 0 means all
    reward_grad: bool = True  # the reward loss shapes the latents
    repval_grad: bool = True  # so does the critics' loss on replayed steps
    augment: Literal["none", "shift"] = "none"  # shift moves images by a few pixels, per sequence
    encoder: CodecConfig = field(default_factory=CodecConfig)
    decoder: CodecConfig = field(default_factory=CodecConfig)
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    reward: HeadConfig = field(default_factory=lambda: HeadConfig(outscale=0.0))
    cont: HeadConfig = field(default_factory=lambda: HeadConfig(dist="binary"))
    actor: ActorConfig = field(default_factory=ActorConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    scales: Scales = field(default_factory=Scales)
    optim: OptimConfig = field(default_factory=OptimConfig)
