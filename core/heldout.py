"""Steps of evaluation episodes, kept apart: the world model is never trained on them, so they tell whether it overfits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from .specs import Spec, Step, Task, unjudged

EPISODES = 6
"""Episodes kept, the newest, of every task; and sequences of a batch."""


class Recorder:
    """A task that behaves as the one inside and hands every finished episode to `keep`."""

    # Of several tasks, whoever evaluates says which.
    share = property(lambda self: self.task.share)

    def __init__(self, task: Task, keep: Callable[[list[Step]], None]) -> None:
        self.task, self.keep = task, keep
        self.spec = task.spec
        self.steps: list[Step] = []

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode and its record."""
        step = self.task.reset(seed)
        self.steps = [unjudged(self.spec, step)]
        return step

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Advance; the action belongs to the step it was chosen in."""
        self.steps[-1]["action"] = {k: np.asarray(v) for k, v in action.items()}
        step = self.task.step(action)
        self.steps.append(unjudged(self.spec, step))
        if step["is_last"]:
            self.steps[-1]["action"] = {k: np.zeros(s.shape, s.dtype) for k, s in self.spec.action.items()}
            self.keep(self.steps)
        return step

    def render(self) -> np.ndarray:
        """Picture of the task inside."""
        return self.task.render()

    def close(self) -> None:
        """Close the task inside."""
        self.task.close()


class Heldout:
    """The newest evaluation episodes of a run, as batches."""

    def __init__(self, spec: Spec, length: int) -> None:
        self.spec, self.length = spec, length
        self.episodes: deque[list[Step]] = deque(maxlen=EPISODES * max(len(spec.tasks), 1))

    def recording(self, make: Callable[[], Task]) -> Callable[[], Task]:
        """A maker of tasks whose episodes are kept here."""
        return lambda: Recorder(make(), self.episodes.append)

    def state_dict(self) -> dict[str, Any]:
        """The kept episodes, each as nested arrays (steps, ...)."""
        kept = [_stack(episode) for episode in self.episodes]
        return {"episodes": [{k: _arrays(v) for k, v in episode.items()} for episode in kept]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        self.episodes.clear()
        self.episodes.extend(_unstack(episode) for episode in state["episodes"])

    def batch(self, device: torch.device | str = "cpu") -> TensorDict | None:
        """(B, length): pieces cut from the kept episodes one after another, spread over them. None before there is enough."""
        steps = [step for episode in self.episodes for step in episode]
        count = min(EPISODES, len(steps) // self.length)
        if not count:
            return None
        starts = np.linspace(0, len(steps) - self.length, count).astype(int)
        rows = [_stack([steps[i] for i in range(s, s + self.length)]) for s in starts]
        batch: TensorDict = torch.stack([TensorDict(row, [self.length]) for row in rows])
        batch["is_first"][:, 0] = True
        return batch.to(device)


def _unstack(stacked: Mapping[str, Any]) -> list[Step]:
    """The inverse of `_stack`, arrays in place of tensors."""
    count = len(stacked["is_first"])
    return [{k: {n: a[t] for n, a in v.items()} if isinstance(v, Mapping) else v[t] for k, v in stacked.items()} for t in range(count)]


def _stack(steps: list[Step]) -> dict[str, Any]:
    """A list of steps as one step of stacked arrays; flags and rewards as tensors."""
    first = steps[0]
    out: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, Mapping):
            out[key] = {k: torch.as_tensor(np.stack([s[key][k] for s in steps])) for k in value}
        else:
            out[key] = torch.as_tensor(np.stack([np.asarray(s[key]) for s in steps]))
    return out


def _arrays(value: Any) -> Any:
    return {k: v.numpy() for k, v in value.items()} if isinstance(value, Mapping) else value.numpy()
