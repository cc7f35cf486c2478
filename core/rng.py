"""Randomness by name: every draw of an update comes from a stream whose seed is derived, so that nothing depends on history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def generator(self, stream: str) -> torch.Generator:
        """What a stream is drawn from."""
        if stream not in self._generators:
            generator = torch.Generator(self.device)
            generator.manual_seed(seed_for(self.root, stream, self.step))
            self._generators[stream] = generator
        return self._generators[stream]

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        """Uniform numbers in [0, 1) of the given shape, or None where the stream is replaced by the mode."""
        if stream in self.modes:
            return None
        return torch.rand(shape, generator=self.generator(stream), device=self.device)

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers of the given shape, or the constant that replaces them."""
        if stream in self.modes:
            return torch.full(shape, float(self.modes[stream]), device=self.device)
        return torch.randn(shape, generator=self.generator(stream), device=self.device)


class Asked(Draws):
    """Draws as those given, that write down what they are asked for and what they answer. What `modes` replaces is no draw."""

    def __init__(self, draws: Draws) -> None:
        super().__init__(draws.root, draws.step, draws.device, draws.modes)
        self.questions: list[tuple[str, str, tuple[int, ...]]] = []  # kind, stream, shape
        self.values: list[Tensor] = []

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        value = super().uniform(stream, *shape)
        if value is not None:
            self._note("uniform", stream, shape, value)
        return value

    def normal(self, stream: str, *shape: int) -> Tensor:
        value = super().normal(stream, *shape)
        if stream not in self.modes:
            self._note("normal", stream, shape, value)
        return value

    def _note(self, kind: str, stream: str, shape: tuple[int, ...], value: Tensor) -> None:
        self.questions.append((kind, stream, shape))
        self.values.append(value)

    def again(self, draws: Draws) -> list[Tensor]:
        """The same questions to other draws."""
        return [getattr(draws, kind)(stream, *shape) for kind, stream, shape in self.questions]


class Given(Draws):
    """Draws that hand out given tensors, in the order in which they are asked for."""

    def __init__(self, values: Sequence[Tensor], modes: Mapping[str, float] | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(0, 0, device, modes)
        self.waiting = list(values)

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        return super().uniform(stream, *shape) if stream in self.modes else self.waiting.pop(0)

    def normal(self, stream: str, *shape: int) -> Tensor:
        return super().normal(stream, *shape) if stream in self.modes else self.waiting.pop(0)
