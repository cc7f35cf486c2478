"""Sizes, profiles and presets: functions on frozen configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from .agent import Config
from .behavior import ActorConfig, CriticConfig

C = TypeVar("C", bound=Config)


def sized(cfg: C, hidden: int) -> C:
    """All widths from one number, as the released sizes do: deter 8 x hidden, units hidden, classes and depth hidden / 16."""
    units, depth = hidden, hidden // 16
    critic: CriticConfig = cfg.critic
    actor: ActorConfig = cfg.actor
    return replace(
        cfg,
        rssm=replace(cfg.rssm, deter=8 * hidden, hidden=hidden, classes=depth),
        encoder=replace(cfg.encoder, units=units, depth=depth),
        decoder=replace(cfg.decoder, units=units, depth=depth),
        reward=replace(cfg.reward, units=units),
        cont=replace(cfg.cont, units=units),
        actor=replace(actor, policy=replace(actor.policy, units=units)),
        critic=replace(critic, head=replace(critic.head, units=units)),
    )


WIDTHS = {"size1m": 64, "size12m": 256, "size25m": 384, "size50m": 512, "size100m": 768, "size200m": 1024, "size400m": 1536}
"""Released sizes by hidden width. The names are nominal: size1m has 0.64 to 0.77 million parameters."""

SIZES: dict[str, Callable[[Config], Config]] = {name: (lambda cfg, hidden=hidden: sized(cfg, hidden)) for name, hidden in WIDTHS.items()}
