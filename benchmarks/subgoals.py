"""Are subgoals told, used and reached? `python -m benchmarks.subgoals RUN [--code module:Class] [--steps 200] [--seed 1]`.

Plays a trained hierarchy in episodes that it was not trained on and prints one line of JSON: how much of the variance of their states
the code tells (`r2`), at how many nats (`kl`, beside its `target`), with how many classes in use in each group (`perplexity`: mean and
least); and how near the worker comes, in the world, to subgoals that are decoded from codes of visited states, K steps after each was set
(`closeness`), beside random actions that are scored against the same subgoals. Errors are standard errors over segments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core import checkpoint
from polydream.core.launch import make_task
from polydream.core.player import load
from polydream.core.presets import restore
from polydream.core.rng import Draws
from polydream.core.specs import Task
from polydream.core.vector import Vector
from polydream.variants.pursuits import code_metrics

WORLDS = 16
"""Environments side by side."""
Choice = Callable[[TensorDict, Tensor | None], dict[str, Tensor]]


class Play:
    """An agent in several copies of a task, whose subgoals are those of `choose`, and whose actions may be random instead of its own."""

    def __init__(self, agent: Any, make: Callable[[], Task], seed: int) -> None:
        self.agent, self.make, self.seed = agent, make, seed

    @torch.no_grad()
    def run(self, steps: int, choose: Choice | None = None, random: bool = False) -> tuple[Tensor, Tensor]:
        """States (n, T, D) that were visited, and closeness (segments,) at the end of every segment that its episode saw to the end."""
        agent, generator = self.agent, torch.Generator().manual_seed(self.seed)
        if choose is not None:
            agent.choose = choose
        state, actions, seen, ends = agent.initial(WORLDS), None, [], []
        try:
            with Vector([self.make] * WORLDS, seed=self.seed) as worlds:
                for t in range(steps):
                    row = worlds.step(actions)
                    obs = {k: torch.as_tensor(np.array(v)) for k, v in row["obs"].items()}
                    data = TensorDict({"obs": obs, "is_first": torch.as_tensor(row["is_first"])}, [WORLDS])
                    before = state.clone()
                    chosen, state = agent.policy(data, state, Draws(self.seed, t))
                    seen.append(agent.aspect(state))
                    if t:
                        full = (before["clock"] == 0) & ~data["is_first"]
                        ends.append(agent.nearness(before["subgoal"], agent.aspect(state))[full])
                    if random:
                        chosen, state["action"] = self._anything(generator)
                    actions = {k: np.where(_like(row["is_last"], v), np.zeros_like(v), v) for k, v in _arrays(chosen).items()}
        finally:
            agent.__dict__.pop("choose", None)
        return torch.stack(seen, 1), torch.cat(ends)

    def _anything(self, generator: torch.Generator) -> tuple[TensorDict, TensorDict]:
        """Uniform actions (n,) as the environments take them and as the model does."""
        taken, known = {}, {}
        for key, space in self.agent.spec.action.items():
            if space.classes is None:
                taken[key] = 2 * torch.rand(WORLDS, *space.shape, generator=generator) - 1
                known[key] = taken[key].flatten(1)
            else:
                taken[key] = torch.randint(space.classes, (WORLDS, *space.shape), generator=generator)
                known[key] = torch.nn.functional.one_hot(taken[key], space.classes).float().flatten(1)
        return TensorDict(taken, [WORLDS]), TensorDict(known, [WORLDS])


def _arrays(chosen: TensorDict) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in chosen.items()}


def _like(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, *[1] * (value.ndim - 1))


def visited(agent: Any, deter: Tensor, seed: int) -> Choice:
    """Subgoals from codes drawn for states (n, D) out of `deter`, the same sequence for whoever asks."""
    draws, generator = Draws(seed), torch.Generator().manual_seed(seed)

    def choose(state: TensorDict, noise: Tensor | None) -> dict[str, Tensor]:
        rows = deter[torch.randint(len(deter), state.batch_size, generator=generator)]
        code = agent.subgoals.encode(rows).sample(draws, "subgoals")
        return {"code": code, "subgoal": agent.subgoals.decode(code)}

    return choose


def measure(agent: Any, make: Callable[[], Task], steps: int, seed: int) -> dict[str, float]:
    """What the module says, out of `steps` steps of every world for each of its three plays."""
    play = Play(agent, make, seed)
    with torch.no_grad():
        states, _ = play.run(steps)
        told = {k: float(v) for k, v in code_metrics(agent.subgoals, states).items()}
        use = agent.subgoals.encode(states).log_probs.exp().mean((0, 1))
    told["perplexity_least"] = float((-(use * use.log()).sum(-1)).exp().min())
    rows, found = states.flatten(0, 1), told | {"target": agent.subgoals.beta.target}
    for name, random in (("closeness", False), ("random", True)):
        near = play.run(steps, visited(agent, rows, seed), random)[1]
        found |= {name: float(near.mean()), f"{name}_error": float(near.std() / len(near) ** 0.5), f"{name}_segments": len(near)}
    gap, error = found["closeness"] - found["random"], float(np.hypot(found["closeness_error"], found["random_error"]))
    return found | {"gap": gap, "gap_in_errors": gap / error}


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", nargs="*", default=[], help="module:Class of a variant that is not registered")
    parser.add_argument("--steps", type=int, default=200, help="of each of 16 worlds")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = restore(checkpoint.read(checkpoint.locate(args.run))[1]["config"], args.code)
    agent = load(args.run, code=args.code).agent
    print(json.dumps(measure(agent, partial(make_task, cfg), args.steps, args.seed)))


if __name__ == "__main__":
    main()
