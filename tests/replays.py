"""Small replays whose every row says where it belongs, for the tests of replay, samplers and archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polydream.core.replay import Replay, ReplayConfig
from polydream.core.specs import Space, Spec

SPEC = Spec(
    obs={"id": Space(shape=(2,)), "image": Space(shape=(2, 2, 3), dtype="uint8"), "arm/touch": Space(dtype="int32", classes=9)},
    action={"move": Space(shape=(2,)), "jump": Space(dtype="int64", classes=2)},
    extras={"task": Space(dtype="int32", classes=3)},
)
LATENT = {"deter": Space(shape=(4,)), "stoch": Space(shape=(3,), dtype="uint8", classes=5)}


def make(streams: int = 2, *, batch: int = 4, length: int = 5, seed: int = 0, directory: Path | None = None, **options: Any) -> Replay:
    cfg = ReplayConfig(**{"capacity": 1000, "memmap": False} | options)
    return Replay(SPEC, LATENT, cfg, batch=batch, length=length, streams=streams, directory=directory, seed=seed)


def steps(streams: Sequence[int], numbers: Sequence[int], first: bool = False, last: bool = False) -> dict[str, Any]:
    """Steps whose every array is a function of (stream, number), so that any row of a batch can be checked."""
    s, t = np.array(streams, np.int64), np.array(numbers, np.int64)
    n = len(s)
    return {
        "obs": {
            "id": np.stack([s, t], -1).astype(np.float32),
            "image": np.broadcast_to((7 * s + t).astype(np.uint8)[:, None, None, None], (n, 2, 2, 3)),
            "arm/touch": ((s + t) % 9).astype(np.int32),
        },
        "action": {"move": np.stack([t, -t], -1).astype(np.float32), "jump": t % 2},
        "reward": (t + s / 10).astype(np.float32),
        "is_first": np.full(n, first),
        "is_last": np.full(n, last),
        "is_terminal": np.full(n, last),
        "task": (s % 3).astype(np.int32),
        "latent": {
            "deter": np.repeat((t % 100 / 128).astype(np.float32)[:, None], 4, 1),
            "stoch": (s[:, None] + t[:, None] + [[0, 1, 2]]) % 5,
        },
    }


def check_rows(batch: Any) -> None:
    """Every row of a batch is what was added under its stepid."""
    stream, step = batch["stepid"].unbind(-1)
    assert (step[:, 1:] == step[:, :-1] + 1).all() and (stream == stream[:, :1]).all()
    assert torch.equal(batch["obs", "id"], batch["stepid"].float())
    assert torch.equal(batch["obs", "image"], (7 * stream + step).to(torch.uint8)[..., None, None, None].expand(*step.shape, 2, 2, 3))
    assert torch.equal(batch["obs", "arm/touch"], ((stream + step) % 9).int())
    assert torch.equal(batch["action", "move"], torch.stack([step, -step], -1).float())
    assert torch.equal(batch["action", "jump"], step % 2)
    assert torch.equal(batch["reward"], (step + stream / 10).float())
    assert torch.equal(batch["task"], (stream % 3).int())
    assert torch.equal(batch["latent", "deter"], (step % 100 / 128).half()[..., None].expand(*step.shape, 4))
    assert torch.equal(batch["latent", "stoch"].long(), (stream[..., None] + step[..., None] + torch.arange(3)) % 5)


def fill(replay: Replay, count: int, begin: int = 0) -> Replay:
    """`count` further steps of every stream, in turn."""
    streams = range(len(replay.segments.end))
    for t in range(begin, begin + count):
        replay.add(steps(streams, [t] * len(streams), first=t == 0))
    return replay


def starts(replay: Replay, draws: int) -> Iterator[tuple[int, int]]:
    for _ in range(draws):
        yield from map(tuple, replay.sample()["stepid"][:, 0].tolist())
