"""Fine-tuning: a run on another task that begins with the weights of a trained agent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from . import registry
from .agent import Dreamer
from .checkpoint import CheckpointError, locate, read, spec_from
from .launch import make_agent
from .presets import restore
from .run import RunConfig
from .specs import Spec

SHARED = ("encoder", "rssm", "decoder")
"""Modules of the world model that learn=heads leaves as they were."""

OWN = ("updates",)
"""What a run counts for itself."""


@runtime_checkable
class Heir(Protocol):
    """A variant whose weights belong to tasks, so that not all of them fit another task."""

    @staticmethod
    def adapt(cfg: RunConfig) -> RunConfig:
        """The configuration of the trained agent, with the new task already in it, as this variant needs it for that task."""
        ...

    def heir_of(self, name: str, donor: Spec) -> str | None:
        """What a weight of this agent is called in an agent trained on `donor`. None: it has none, so the start value stays."""
        ...


def configuration(start: Path, task: str, code: Collection[str] = ()) -> RunConfig:
    """The configuration of a trained agent's run, for another task. code: `module:name` that the command line vouches for.

    Raises CheckpointError where `start` holds no sound checkpoint, ConfigError where its configuration is none.
    """
    _, state = read(locate(start))
    cfg = restore(state["config"], code)
    cfg = replace(cfg, task=task, dir="", start=str(start), env=replace(cfg.env, options=()))
    cls = registry.variant(cfg.variant)
    return cls.adapt(cfg) if issubclass(cls, Heir) else cfg


def begin(cfg: RunConfig, spec: Spec, fresh: bool = True) -> Dreamer:
    """The agent of a run as `start` and `learn` want it. fresh: the run begins now; a resumed one has its weights already."""
    agent = make_agent(cfg, spec)
    if cfg.start and fresh:
        inherit(agent, Path(cfg.start))
    if cfg.learn == "heads":
        freeze(agent)
    return agent


def inherit(agent: Dreamer, start: Path) -> list[str]:
    """Take over the weights of a trained agent, moments and counters aside. Returns the names of those that are new.

    Raises CheckpointError naming a weight whose shape differs: the new task does not look or act as the old one did.
    """
    groups, state = read(locate(start))
    there, donor, fresh = groups["agent"], spec_from(state["spec"]), []
    for name, value in agent.state_dict().items():
        source = agent.heir_of(name, donor) if isinstance(agent, Heir) else name
        if name in OWN or source is None:
            fresh.append(name)
            continue
        if source not in there or there[source].shape != value.shape:
            found = tuple(there[source].shape) if source in there else "missing"
            raise CheckpointError(f"{start} does not fit this task: {name} is {tuple(value.shape)} here and {found} there")
        with torch.no_grad():
            value.copy_(there[source])
    return fresh


def freeze(agent: Dreamer) -> None:
    """Leave the shared world model as it is: what is learned are heads, embeddings, actor and critics."""
    for name in SHARED:
        if name in agent.nets:
            agent.nets[name].requires_grad_(False)
