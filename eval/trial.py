"""A variant on trial: small agents on real steps of a task, and everything they do, so that two of them can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from ..core.agent import AgentConfig, Dreamer
from ..core.config import override
from ..core.presets import smoke
from ..core.replay import Replay, ReplayConfig
from ..core.rng import Draws
from ..core.run import RunConfig
from ..core.specs import Space, Step, Task
from ..core.vector import Vector

STREAMS, STEPS, LIMIT = 2, 40, 8
"""Environments, steps of each that are recorded, and decisions after which their episodes are cut, so that several are seen."""

BATCH, LENGTH, UPDATES = 4, 10, 3

LIVELY = {
    "reward.outscale": 1e-3,
    "critic.head.outscale": 1e-3,
    "critic.retnorm.limit": 1e-3,
    "optim.lr": 1e-3,
    "optim.warmup": 0,
    "encoder.depth": 2,  # the fewest channels that a decoder of images can start from
    "decoder.depth": 2,
}
"""Settings under which nothing is hidden by a start at zero, by the floor of a normaliser or by the warm-up."""


def small(cls: type[Dreamer], settings: Mapping[str, Any]) -> AgentConfig:
    """A variant's own configuration at a size for tests of a second, `settings` on top."""
    cfg = smoke(RunConfig(agent=cls.Config())).agent
    for path, value in {**LIVELY, **settings}.items():
        cfg = override(cfg, path, value)
    return cfg


class Short:
    """A task whose episodes are cut after `LIMIT` decisions and whose rewards are never all alike: every knob has something to act on."""

    def __init__(self, task: Task) -> None:
        self.task, self.spec = task, task.spec
        self.clock, self.noise = 0, np.random.default_rng(0)

    def share(self, index: int, count: int) -> None:
        """Of several tasks, play a part: as the task inside."""
        self.task.share(index, count)  # type: ignore[attr-defined]

    def reset(self, seed: int | None = None) -> Step:
        """Begin an episode."""
        self.clock = 0
        return self.task.reset(seed)

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Advance; the last step is a truncation unless the task itself ends there."""
        step = dict(self.task.step(action))
        self.clock += 1
        step["reward"] = np.float32(step["reward"] + 0.1 * self.noise.standard_normal())
        step["is_last"] = bool(step["is_last"]) or self.clock >= LIMIT
        return step

    def render(self) -> np.ndarray:
        """Picture of the task inside."""
        return self.task.render()

    def close(self) -> None:
        """Close the task inside."""
        self.task.close()


class Record(NamedTuple):
    """What an agent did in the world: steps (n,) as it saw them, its states (n,) after each, batches (B, K + T) of its replay."""

    steps: list[TensorDict]
    states: list[TensorDict]
    batches: list[TensorDict]


class Trial:
    """One variant on one task, at a small size. make: gives a fresh environment. settings: knobs to set first."""

    def __init__(self, cls: type[Dreamer], make: Callable[[], Task], settings: Mapping[str, Any]) -> None:
        self.cls, self.cfg, self.settings = cls, small(cls, settings), settings
        self.make: Callable[[], Task] = lambda: Short(make())
        task = make()
        self.spec = task.spec
        task.close()

    def agent(self, cfg: AgentConfig | None = None) -> Dreamer:
        """A fresh agent, the same at every call."""
        return self.cls(self.spec, cfg or self.cfg, 3)

    @cached_property
    def record(self) -> Record:
        """What the variant itself does as it begins."""
        return record(self.agent(), self.make)

    def outcome(self, cfg: AgentConfig) -> dict[str, Tensor]:
        """Everything that a short life of an agent leaves behind: states while acting, metrics, weights, its report."""
        agent = self.agent(cfg)
        lived = record(agent, self.make)
        optimizer = agent.optimizer()
        found: dict[str, Tensor] = {}
        for step, batch in enumerate(lived.batches):
            metrics, latents = agent.update(batch, optimizer, Draws(0, step))
            found |= {f"update {step}/{k}": v for k, v in (metrics | dict(flat(latents))).items()}
        metrics, pictures = agent.report(replayed(lived.batches[0]), Draws(1))
        found |= {f"report/{k}": v for k, v in metrics.items()}
        found |= {f"report/{k}/{n}": v for k, frames in pictures.items() for n, v in frames.items()}
        found |= {f"weights/{k}": v for k, v in agent.state_dict().items()}
        return found | {f"acting {t}/{k}": v for t, state in enumerate(lived.states) for k, v in flat(state)}


def record(agent: Dreamer, make: Callable[[], Task]) -> Record:
    """Let an agent act as the training loop does, and sample the batches it would be trained on."""
    cfg = ReplayConfig(capacity=STREAMS * STEPS, memmap=False)
    replay = Replay(agent.spec, agent.latent_spaces, cfg, batch=BATCH, length=LENGTH, streams=STREAMS)
    lived = Record([], [], [])
    state, actions = agent.initial(STREAMS), None
    with Vector([make] * STREAMS, seed=0) as envs:
        for t in range(STEPS):
            steps = envs.step(actions)
            data = TensorDict({k: _tensors(v) for k, v in steps.items() if k != "reward"}, [STREAMS])
            chosen, state = agent.policy(data, state, Draws(0, t))
            lived.steps.append(data.clone())
            lived.states.append(state.clone())
            actions = {k: _zero_at_ends(v.numpy(), steps["is_last"], agent.spec.action[k]) for k, v in chosen.items()}
            latent = {"deter": state["deter"], "stoch": state["stoch"].argmax(-1)}
            replay.add({**steps, "action": actions, "latent": latent})
    lived.batches.extend(replay.sample().clone() for _ in range(UPDATES))
    return lived


def replayed(batch: TensorDict) -> TensorDict:
    """A batch as reports get it: of evaluation episodes, which no replay has numbered and no policy left latents in."""
    return batch.exclude("stepid", "latent")


def flat(data: TensorDict) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a nested TensorDict by name, levels joined by /."""
    for key, value in data.items(True, True):
        yield key if isinstance(key, str) else "/".join(key), value


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names that only one side has or whose tensors are not equal to the bit."""
    return [k for k in one.keys() | other.keys() if k not in one or k not in other or not same(one[k], other[k])]


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit: shape, kind and every element, nan included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one, other)) or bool(
        torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
    )


def _zero_at_ends(action: np.ndarray, is_last: np.ndarray, space: Space) -> np.ndarray:
    return np.where(is_last.reshape(-1, *[1] * len(space.shape)), np.zeros_like(action), action)


def _tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _tensors(v) for k, v in value.items()}
    return torch.as_tensor(np.array(value))
