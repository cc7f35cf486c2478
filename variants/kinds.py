"""The knobs of an ensemble."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..core.config import ConfigError
from ..core.knobs import Config


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """What is replicated, and what its uncertainty is used for."""

    kind: Literal["heads", "priors", "worlds"] = "heads"  # one-step predictors beside the model, prior heads inside it, or whole agents
    members: int = 5  # E
    use: Literal["explore", "pessimism", "measure"] = "explore"  # pay a second policy for it, charge the task policy, or only report it
    intrinsic: float = 1.0  # explorer: weight of the disagreement advantage
    extrinsic: float = 0.0  # explorer: weight of what the task policy climbs
    dreams: float = 0.5  # share of dreams that are the explorer's; 0 leaves no explorer
    episodes: float = 0.5  # share of training episodes that it acts in; evaluation is always the task policy's
    until: int = 0  # updates after which the explorer acts and dreams no more; 0 means never
    pessimism: float = 1.0  # lambda: reward minus lambda times uncertainty
    stop: float = 0.0  # end dreams where uncertainty exceeds this quantile of the first step out of replay; 0 never does
    target: Literal["stoch", "deter", "tokens"] = "stoch"  # heads: what they predict of the next step
    layers: int = 2  # heads: dense units of each
    units: int = 256  # heads: width of each; narrow ones learn too slowly to tell what is known from what is not
    prior: float = 0.0  # heads: weight of fixed random networks added to them, for smooth inputs of few dimensions; 0 leaves them out
    bootstrap: float = 1.0  # heads, worlds: share of the replayed steps that each member is trained on
    redraw: Literal["dream", "step"] = "dream"  # priors: when another member is drawn
    pilot: int = -1  # worlds: the member who plays in evaluation, from 0 on; -1 draws each action from the mixture of all

    def __post_init__(self) -> None:
        if self.stop and self.use == "explore":
            raise ConfigError("ensemble.stop cuts off what ensemble.use=explore pays for: choose pessimism or measure beside it")
        if self.members < 1:
            raise ConfigError(f"ensemble.members must be at least 1, got {self.members}")
        if not -1 <= self.pilot < self.members:
            raise ConfigError(
                f"ensemble.pilot must be one of the {self.members} members, 0 ... {self.members - 1}, or -1, got {self.pilot}"
            )
        if self.kind == "worlds" and self.use != "explore":
            raise ConfigError(
                f"ensemble.use={self.use} needs what members say of one latent, and ensemble.kind=worlds shares none: leave it at explore, "
                "a member for each episode"
            )

    def refuse_explorer(self, replaced: bool) -> None:
        """Raise ConfigError for a knob of the explorer that was turned, where another policy has `replaced` it."""
        usual = type(self)()
        for knob in ("intrinsic", "extrinsic", "episodes", "until") if replaced else ():
            if getattr(self, knob) != getattr(usual, knob):
                raise ConfigError(
                    f"ensemble.{knob} is the explorer's, and here the manager explores: hierarchy.novelty says what it is paid"
                )
        if replaced and self.dreams not in (0, usual.dreams):
            raise ConfigError(
                f"ensemble.dreams={self.dreams:g} is the explorer's share, and here the manager explores: only 0 says something"
            )


@dataclass(frozen=True, kw_only=True)
class EnsembleAgentConfig(Config):
    """Knobs of the base agent, and `ensemble`."""

    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
