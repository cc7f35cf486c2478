"""The compiler: how it is set up, where it keeps what it made, and how to do without it for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn

Compile = Literal["none", "steps", "graph"]
"""steps: what is done again and again is compiled. graph: on a GPU the whole update is recorded as well, as one CUDA graph."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that tells torch where generated code lies. Whoever sets it has the last word."""


def prepare() -> Path | None:
    """Set the compiler up for this process; returns the directory in which it keeps what it made, None where torch chooses.

    What was compiled once is found again by every later start. torch would keep it under /tmp, which a restart of the machine or of a
    container empties and which others can write to; here it lies in the user's own cache, unless that cannot be written to.
    """
    # One code path serves layers of many widths; the default allows eight.
    torch.compiler.config.recompile_limit = 256
    if CACHE not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polydream" / "compiled"
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            return None
        if not os.access(home, os.W_OK):
            return None
        os.environ[CACHE] = str(home)
    return Path(os.environ[CACHE])


@contextmanager
def paused(module: nn.Module) -> Iterator[None]:
    """Context in which no part of a module that was told to compile itself does so."""
    parts = [part for part in module.modules() if getattr(part, "compiled", False) is True]
    for part in parts:
        part.compiled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for part in parts:
            part.compiled = True  # type: ignore[assignment]
