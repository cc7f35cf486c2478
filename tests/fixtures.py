"""Small specs, agents and batches that several tests use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict

from polydream.core.agent import Config, Dreamer
from polydream.core.presets import sized
from polydream.core.specs import Space, Spec

VECTOR = Spec(obs={"pos": Space(shape=(3,)), "height": Space()}, action={"action": Space(shape=(2,))})
DISCRETE = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(dtype="int32", classes=3)})
IMAGE = Spec(obs={"image": Space(shape=(64, 64, 3), dtype="uint8")}, action={"action": Space(dtype="int32", classes=3)})


def tiny(**changes: Any) -> Config:
    """A configuration small enough for tests of a second."""
    cfg = sized(Config(), 16)
    cfg = replace(cfg, encoder=replace(cfg.encoder, depth=2), decoder=replace(cfg.decoder, depth=2))
    return replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4, **changes)


def batch(spec: Spec, rows: int = 3, steps: int = 7, cfg: Config | None = None, seed: int = 0) -> TensorDict:
    """Random replayed steps (rows, steps), with an episode that begins in the middle of row 0."""
    generator = torch.Generator().manual_seed(seed)
    cfg = cfg or tiny()
    lead = (rows, steps)

    def values(space: Space) -> torch.Tensor:
        if space.image:
            return torch.randint(0, 256, (*lead, *space.shape), generator=generator).to(torch.uint8)
        if space.classes:
            return torch.randint(0, space.classes, (*lead, *space.shape), generator=generator).int()
        return torch.rand(*lead, *space.shape, generator=generator) * 2 - 1

    first, last = torch.zeros(lead, dtype=torch.bool), torch.zeros(lead, dtype=torch.bool)
    first[:, 0] = True
    if steps > 4:
        first[0, 4], last[0, 3] = True, True
    latent = {
        "deter": torch.rand(*lead, cfg.rssm.deter, generator=generator) - 0.5,
        "stoch": torch.randint(0, cfg.rssm.classes, (*lead, cfg.rssm.stoch), generator=generator).to(torch.uint8),
    }
    reward = torch.randn(lead, generator=generator)
    data = {"reward": reward, "is_first": first, "is_last": last, "is_terminal": last.clone(), "latent": latent}
    return TensorDict(
        {"obs": {k: values(s) for k, s in spec.obs.items()}, "action": {k: values(s) for k, s in spec.action.items()}, **data}, lead
    )


def agent(spec: Spec = VECTOR, seed: int = 0, **changes: Any) -> Dreamer:
    """A tiny base agent."""
    return Dreamer(spec, tiny(**changes), seed)
