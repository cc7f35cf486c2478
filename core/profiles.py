"""Profiles: which published formulation of the algorithm an agent follows. Each is a function on the agent's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from .agent import Config
from .normalizer import NormConfig
from .optim import OptimConfig

C = TypeVar("C", bound=Config)

OFF = NormConfig(impl="none")


def v3(cfg: C) -> C:
    """The released algorithm (2024 revision, Nature 2025): the defaults."""
    return cfg


def _three_adams(cfg: Config) -> OptimConfig:
    return replace(
        cfg.optim, kind="adam", groups="split", agc=0.0, clip_model=1000.0, clip_actor=100.0, clip_critic=100.0, eps=1e-8, warmup=0
    )


def v1(cfg: C) -> C:
    """The 2023 paper: dense GRU and LayerNorm, symlog-spaced two-hot, three Adams, back through the dynamics for continuous actions."""
    rssm = replace(cfg.rssm, norm="layer")
    critic = replace(cfg.critic, head=replace(cfg.critic.head, dist="symlog_twohot", norm="layer"))
    policy = replace(cfg.actor.policy, norm="layer")
    return replace(
        cfg,
        dynamics="gru",
        rssm=rssm,
        encoder=replace(cfg.encoder, norm="layer", down="stride"),
        decoder=replace(cfg.decoder, norm="layer", down="stride"),
        reward=replace(cfg.reward, dist="symlog_twohot", norm="layer"),
        cont=replace(cfg.cont, norm="layer"),
        actor=replace(cfg.actor, policy=policy, grad="auto"),
        critic=replace(critic, contdisc=False),
        scales=replace(cfg.scales, dyn=0.5, rep=0.1, repval=0.0),
        optim=_three_adams(cfg),
    )


def seed(cfg: C) -> C:
    """The project's design card: squared errors in symlog space, KL balance 0.8, dense GRU of 512, gradients through the dynamics.

    The actor climbs symlog of the return without baseline, normaliser or entropy; a slow critic bootstraps. KL balance 0.8 is
    dyn 0.8 and rep 0.2 on the same divergence (DreamerV2, eq. 6).
    """
    rssm = replace(cfg.rssm, deter=512, hidden=512, stoch=32, classes=32, unimix=0.0, norm="none")
    head = replace(cfg.critic.head, dist="symlog_mse", outscale=1.0)
    critic = replace(cfg.critic, head=head, target="slow", slow_weight=0.0, contdisc=False, retnorm=OFF)
    policy = replace(cfg.actor.policy, continuous="normal", unimix=0.0, outscale=1.0)
    return replace(
        cfg,
        dynamics="gru",
        rssm=rssm,
        reward=replace(cfg.reward, dist="symlog_mse", outscale=1.0),
        actor=replace(cfg.actor, policy=policy, grad="dynamics", objective="symlog_return", entropy=0.0),
        critic=critic,
        scales=replace(cfg.scales, dyn=0.8, rep=0.2, repval=0.0),
        optim=_three_adams(cfg),
    )


PROFILES: dict[str, Callable[[Config], Config]] = {"v3": v3, "v1": v1, "seed": seed}
