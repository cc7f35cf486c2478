"""What E whole agents cost: `python -m benchmarks.worlds [--members 2 5] [--size laptop] [--batch 16] [--length 32] [--rounds 5]`.

Times an update of `ensemble.kind=worlds` and one of a single agent in turn, each in processor seconds of this process, and prints
how many updates of the single agent the ensemble's takes; E of them would be the price of E agents one after another. Members learn
from all replayed steps, E times a single agent's, and share its dreams.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from polydream.core.agent import Dreamer
from polydream.core.optim import Optimizer
from polydream.core.presets import resolve
from polydream.core.registry import variant
from polydream.core.rng import Draws

from . import rounds
from .case import CONTEXT, Case, arrays
from .ours import case, spec

WARMUP = 2


def make(case: Case, members: int) -> tuple[Dreamer, Optimizer, TensorDict]:
    """An agent of so many members, 0 for the base agent, its optimizer and a batch."""
    named = {"size": case.size, "variant": "ensemble" if members else "base"}
    given: dict[str, Any] = {"agent.dream": case.horizon}
    if members:
        given |= {"agent.ensemble.kind": "worlds", "agent.ensemble.members": members}
    agent: Dreamer = variant(named["variant"])(spec(case), resolve(named, given).agent, 0)
    found, lead = arrays(case), (case.batch, CONTEXT + case.length)
    flags = {k: torch.as_tensor(found[k]) for k in ("is_first", "is_last", "is_terminal")}
    latent = {k: torch.as_tensor(found[k]).repeat(1, 1, max(members, 1)) for k in ("deter", "stoch")}
    data = {"reward": torch.as_tensor(found["reward"]), "latent": latent, **flags}
    data |= {"obs": {case.key: torch.as_tensor(found["obs"])}, "action": {"action": torch.as_tensor(found["action"])}}
    return agent, agent.optimizer(), TensorDict(data, lead)


def measure(case: Case, members: list[int], count: int) -> dict[int, list[float]]:
    """Processor seconds of updates by number of members, 0 for the base agent, in turn."""
    made = {k: make(case, k) for k in (0, *members)}
    seconds: dict[int, list[float]] = {k: [] for k in made}
    for step in range(WARMUP + count):
        for k, (agent, optimizer, batch) in made.items():
            begin = time.process_time()
            agent.update(batch, optimizer, Draws(0, step))
            if step >= WARMUP:
                seconds[k].append(time.process_time() - begin)
    return seconds


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="laptop", help="size of the model, as `polydream train --size`")
    parser.add_argument("--obs", choices=("vector", "image"), default="vector", help="24 numbers, or 64 x 64 x 3 pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="updates of each")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--members", type=int, nargs="+", default=[2, 5])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=15)
    given = parser.parse_args()
    given.device = "cpu"
    torch.set_num_threads(given.threads)
    seconds = measure(case(given, batch=given.batch, length=given.length, horizon=given.horizon), given.members, given.rounds)
    usual = seconds[0]
    rows = []
    for k, found in seconds.items():
        times = statistics.median(a / b for a, b in zip(found, usual, strict=True))
        row = {"members": k or "base", "median s": statistics.median(found), "best s": min(found), "single agents": times}
        rows.append(row | {"of E": times / max(k, 1)})
    print(rounds.table(rows, ("members", "median s", "best s", "single agents", "of E")))
    rounds.write({"benchmark": "worlds", "rows": rows}, given.json)


if __name__ == "__main__":
    main()
