"""Whether an exported acting step does what the agent does: both act through episodes, each with its own state, and are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .core.rng import Draws
from .core.specs import Space
from .policystep import PolicyStep, Tensors, in_units

TOLERANCE = 1e-5
"""Largest difference allowed, absolute below 1 and relative above."""
STEPS, ROWS = 8, (3, 1)
MARGIN = 1e-5

Act = Callable[[Tensors, Tensors, Tensor, Tensors], tuple[Tensors, Tensors]]


class Mismatch(RuntimeError):
    """An exported step differs from the agent, or nothing can be said about it. The message is one line."""


def compare(step: PolicyStep, acts: Mapping[str, Act], seed: int = 0) -> dict[str, float]:
    """The largest difference of actions and states from the agent's, by name, over STEPS steps of three rows and of one.

    Every row begins an episode at the first step, and one of several another in the middle. Observations are random, and so is the
    noise; where it lies within MARGIN of the border between two classes it is drawn again, because there rounding decides.
    """
    return {name: max(_episode(step, act, rows, seed) for rows in ROWS) for name, act in acts.items()}


@torch.no_grad()
def _episode(step: PolicyStep, act: Act, rows: int, seed: int) -> float:
    agent, generator, number, worst = step.agent, torch.Generator().manual_seed(seed), 0, 0.0
    state, memory, own = agent.initial(rows), step.initial(rows), step.initial(rows)
    for t in range(STEPS):
        first = torch.full((rows,), not t)
        first[-1] |= t == STEPS // 2 and rows > 1
        seen = observations(step, rows, generator)
        number = _settled(step, (seen, memory, first), seed, number)
        action, state = agent.policy(step.data(seen, first), state, Draws(seed, number, modes=step.modes))
        action, memory = {k: in_units(agent.spec.action[k], action[k]) for k in step.action}, step.remembered(state)
        found, own = act(seen, own, first, step.draw(Draws(seed, number), rows))
        pairs = [(found[k], action[k]) for k in action] + [(own[k], memory[k]) for k in memory]
        worst = max(worst, *(_difference(a, b) for a, b in pairs))
        number += 1
    return worst


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    a, b = found.double(), wanted.double()
    gap = (a - b).abs() / b.abs().clamp(min=1)
    return float(gap.nan_to_num(float("inf")).max()) if gap.numel() else 0.0


def _settled(step: PolicyStep, given: tuple[Tensors, Tensors, Tensor], seed: int, number: int) -> int:
    """The next number of draws with which a shift of all uniform noise by MARGIN changes no choice."""
    rows = len(given[2])
    for n in range(number, number + 200):
        noise = step.draw(Draws(seed, n), rows)
        wanted = _all(step(*given, noise))
        moved = [{k: _moved(v, by) if step.kinds[k] == "uniform" else v for k, v in noise.items()} for by in (MARGIN, -MARGIN)]
        if all(torch.allclose(a, b, 1e-3, 1e-3) for other in moved for a, b in zip(_all(step(*given, other)), wanted, strict=True)):
            return n
    raise Mismatch("no noise was found that lies apart from the borders between classes, so nothing can be compared")


def _moved(uniform: Tensor, by: float) -> Tensor:
    return (uniform + by).clamp(0, 1 - 2**-24)


def _all(result: tuple[Tensors, Tensors]) -> list[Tensor]:
    return [v.double() for part in result for v in part.values()]


def observations(step: PolicyStep, rows: int, generator: torch.Generator) -> Tensors:
    """Random observations and extras of what the step reads: any byte, any class, numbers within their bounds or of deviation 2."""
    spec = step.agent.spec
    spaces = {**spec.obs, **spec.extras}
    return {k: _random(spaces[k], port.zeros(rows), generator) for k, port in step.observation.items()}


def _random(space: Space, like: Tensor, generator: torch.Generator) -> Tensor:
    if space.image or space.discrete:
        return torch.randint(0, 256 if space.image else space.classes or 1, like.shape, generator=generator).to(like.dtype)
    return (2 * torch.randn(like.shape, generator=generator)).to(like.dtype)
