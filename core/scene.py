"""What pictures of an agent may be made from: steps out of its replay, and episodes played for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict

from .rng import seed_for
from .specs import Step, Task, unjudged

if TYPE_CHECKING:
    from .agent import Dreamer

PLACES = 4
"""Environments that are opened at a time."""


class Episode(NamedTuple):
    """One episode on the processor. steps (T,): obs, reward, flags, extras. states (T,): what the agent carried after each."""

    steps: TensorDict
    states: TensorDict


@dataclass(frozen=True)
class Scene:
    """replayed: steps (B, T) drawn from the replay. make: opens an environment of the task. seed: of the episodes."""

    replayed: TensorDict
    make: Callable[[], Task]
    seed: int = 0

    def play(self, agent: Dreamer, episodes: int, longest: int = 200) -> list[Episode]:
        """Let the agent act with sampled actions, as in an evaluation, on seeds that neither training nor evaluation uses.

        Episodes are broken off after `longest` decisions. Of several tasks each has its turn.
        """
        from .player import Player

        count = min(episodes, PLACES)
        player = Player(agent, seed_for(self.seed, "scene", 0))
        found: list[Episode] = []
        with ExitStack() as exits:
            tasks = [self.make() for _ in range(count)]
            for i, task in enumerate(tasks):
                exits.callback(task.close)
                if task.spec.tasks:
                    task.share(i, count)  # type: ignore[attr-defined]
            while len(found) < episodes:
                found += self._together(player, tasks[: episodes - len(found)], len(found), longest)
        return found

    def _together(self, player: Any, tasks: list[Task], begun: int, longest: int) -> list[Episode]:
        """One episode in each of the tasks, side by side. begun: episodes before these."""
        n, spec = len(tasks), tasks[0].spec
        steps = [task.reset(seed_for(self.seed, "scene", begun + i)) for i, task in enumerate(tasks)]
        tracks: list[list[tuple[Step, TensorDict]]] = [[] for _ in tasks]
        state, first, over = player.initial(n), np.ones(n, bool), np.zeros(n, bool)
        for _ in range(longest):
            seen = {k: np.stack([step["obs"][k] for step in steps]) for k in spec.obs}
            seen |= {k: np.stack([step[k] for step in steps]) for k in spec.extras if k in steps[0]}
            action, state = player.act(seen, state, is_first=first)
            first, kept = np.zeros(n, bool), state.cpu()
            for i in np.flatnonzero(~over):
                tracks[i].append((steps[i], kept[i]))
                over[i] = steps[i]["is_last"]
                if not over[i]:
                    steps[i] = tasks[i].step({k: np.asarray(v[i]) for k, v in action.items()})
            if over.all():
                break
        return [Episode(_stacked([unjudged(spec, step) for step, _ in track]), torch.stack([s for _, s in track])) for track in tracks]


def _stacked(steps: list[Step]) -> TensorDict:
    """Steps of one episode as tensors (T, ...)."""
    obs = {k: torch.as_tensor(np.stack([step["obs"][k] for step in steps])) for k in steps[0]["obs"]}
    rest = {k: torch.as_tensor(np.stack([np.asarray(step[k]) for step in steps])) for k in steps[0] if k != "obs"}
    return TensorDict({"obs": obs, **rest}, [len(steps)])
