"""Randomness by name: every draw of an update comes from a stream whose seed is derived, so that nothing depends on history."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor


def seed_for(root: int, stream: str, step: int) -> int:
    """One 56-bit seed for each (root seed, stream name, step); the same everywhere and always."""
    return int.from_bytes(blake2b(f"{root}/{stream}/{step}".encode(), digest_size=7).digest(), "little")


class Draws:
    """The noise of one update or one acting step, one independent stream per name.

    Every component asks for its own stream, so a component that draws more or less changes nobody else's noise.
    A stream named in `modes` gives no noise: `uniform` returns None (a categorical then takes its most likely class) and
    `normal` returns the constant given there, in standard deviations. The recorded reference agents use
    `modes={"posterior": 0, "prior": 0, "action": 0.5}`; greedy evaluation uses `modes={"action": 0}`.
    """

    def __init__(self, root: int, step: int = 0, device: torch.device | str = "cpu", modes: Mapping[str, float] | None = None) -> None:
        self.root, self.step, self.device = root, step, torch.device(device)
        self.modes = dict(modes or {})
        self._generators: dict[str, torch.Generator] = {}

    def _generator(self, stream: str) -> torch.Generator:
        if stream not in self._generators:
            generator = torch.Generator(self.device)
            generator.manual_seed(seed_for(self.root, stream, self.step))
            self._generators[stream] = generator
        return self._generators[stream]

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        """Uniform numbers in [0, 1) of the given shape, or None where the stream is replaced by the mode."""
        if stream in self.modes:
            return None
        return torch.rand(shape, generator=self._generator(stream), device=self.device)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers of the given shape, or the constant that replaces them."""
        if stream in self.modes:
            return torch.full(shape, float(self.modes[stream]), device=self.device)
        return torch.randn(shape, generator=self._generator(stream), device=self.device)
