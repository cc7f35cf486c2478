"""What a run will take of memory and disk, told before it starts, and refused where there is not so much."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .columns import columns
from .config import ConfigError
from .sampler import extra_columns
from .specs import Space, Spec

if TYPE_CHECKING:
    from .replay import ReplayConfig
    from .run import RunConfig

SHARE = 0.9
"""Of what is free, the part that a replay may plan to take."""


def predicted_bytes(spec: Spec, latent: Mapping[str, Space], cfg: ReplayConfig) -> tuple[int, int]:
    """(memory, disk) in bytes that a full and saved replay takes, without batches and half-used segments.

    Disk counts the saved contents and, with `memmap`, the scratch files. Latents of earlier checkpoints come on top.
    """
    kept = columns(spec, latent, cfg.latents == "half") | extra_columns(cfg.sampler)
    rows = cfg.capacity * sum(column.nbytes for column in kept.values())
    order = 2 * cfg.capacity
    return (order, 2 * rows + order) if cfg.memmap else (rows + order, rows + order)


def refuse_too_large(run: RunConfig, spec: Spec, latent: Mapping[str, Space], folder: Path, memory: int | None = None) -> None:
    """Raise ConfigError, with a capacity that would fit, where the replay of a run would not fit in memory or on the disk.

    Only the steps that the run will take count. folder: where the run will live, or would if it existed. memory: bytes
    available, None asks the system.
    """
    import psutil

    sequence = run.env.count * (run.replay.context + run.length)
    if run.replay.capacity < sequence:
        raise ConfigError(f"replay.capacity={run.replay.capacity} is too small: one sequence of every environment takes {sequence} steps")
    while not folder.exists():
        folder = folder.parent
    available = psutil.virtual_memory().available if memory is None else memory
    free = shutil.disk_usage(folder).free
    held = min(run.replay.capacity, int(1.1 * run.steps / spec.repeat) + run.env.count)  # with the first steps of episodes
    share = held / run.replay.capacity
    for need, there, what, hint in (
        (
            predicted_bytes(spec, latent, run.replay)[0],
            available,
            "of memory",
            "" if run.replay.memmap else ", or set replay.memmap to true",
        ),
        (predicted_bytes(spec, latent, run.replay)[1], free, f"on the disk of {folder}", ", or put the run elsewhere with --dir"),
    ):
        if need * share > SHARE * there:
            fits = int(held * SHARE * there / (need * share))
            raise ConfigError(
                f"replay.capacity={run.replay.capacity}: {held:,} steps need {need * share / 1e9:.1f} GB {what}, {there / 1e9:.1f} GB "
                f"are free; about {max(fits, 1):,} steps fit: lower replay.capacity{hint}"
            )
