"""What does one more task cost `multitask`? `python -m benchmarks.further [--size laptop] [--tasks 2 3 4 8] [--json FILE]`.

Updates of agents with 2, 3, ... tasks of one body, on synthetic batches of one size that hold all tasks alike. The agents take
turns in every round; `further` is the median over rounds of how much longer an update takes for each task above the fewest, and
`memory` what each of those tasks adds in parameters: its two heads and its vector.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from polydream.core.launch import make_agent, prepare_processor
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.run import RunConfig
from polydream.core.specs import Member, Space

from . import machine, ours, rounds
from .case import CONTEXT, Case

WARMUP = 3  # updates before the first timed one


class Contender:
    """An agent of so many tasks, and a batch that holds them all alike."""

    def __init__(self, cfg: RunConfig, case: Case, tasks: int) -> None:
        spec = ours.spec(case)
        members = {f"task{i}": Member(obs=spec.obs, action=spec.action) for i in range(tasks)}
        self.agent = make_agent(cfg, replace(spec, tasks=members, extras={"task": Space(dtype="int32", classes=tasks)}))
        self.agent.accelerate(cfg.precision, cfg.compile)
        self.optimizer, self.updates = self.agent.optimizer(), 0
        self.batch = ours.batch(case)
        rows, steps = self.batch.batch_size
        self.batch["task"] = (torch.arange(rows, dtype=torch.int32) % tasks)[:, None].expand(-1, steps).clone()

    def seconds(self, count: int) -> list[float]:
        """How long each of so many updates took."""
        found = []
        for _ in range(count):
            begin = time.perf_counter()
            self.agent.update(self.batch, self.optimizer, Draws(0, self.updates), CONTEXT)
            self.updates += 1
            found.append(time.perf_counter() - begin)
        return found

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.agent.parameters() if p.requires_grad)


def configuration(size: str, **settings: Any) -> RunConfig:
    """The run whose agents are measured."""
    return resolve({"variant": "multitask", "size": size}, settings)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure them in turn. Every second round goes backwards, so that none is always the first."""
    cfg = configuration(given.size, precision=given.precision, compile=given.compile, **{"agent.dream": given.horizon})
    given.obs, given.device = "vector", "cpu"
    case = ours.case(given, batch=given.batch, length=given.length, horizon=given.horizon)
    prepare_processor(given.threads)
    contenders = {n: Contender(cfg, case, n) for n in sorted(given.tasks)}
    for one in contenders.values():
        one.seconds(WARMUP)
    others = machine.Others()
    found: dict[int, list[float]] = {n: [] for n in contenders}
    for turn in range(given.rounds):
        for n in sorted(contenders, reverse=bool(turn % 2)):
            found[n].append(median(contenders[n].seconds(given.updates)))
    fewest = min(contenders)
    rows = []
    for n, one in contenders.items():
        row = {"tasks": n, "median s": median(found[n]), "parameters": one.parameters}
        if more := n - fewest:
            ratios = [(a / b - 1) / more for a, b in zip(found[n], found[fewest], strict=True)]
            row |= {"further": median(ratios), "memory": (one.parameters - contenders[fewest].parameters) / more, "rounds": ratios}
        rows.append(row)
    about = machine.describe("cpu")
    return {"benchmark": "further", "case": vars(case), "machine": about, "others": others.cores(), "rows": rows}


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="size1m", help="size of the model, as `polydream train --size`")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="times that every agent has its turn")
    parser.add_argument("--updates", type=int, default=3, help="updates in a turn")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    given = parser.parse_args()
    result = run(given)
    print(rounds.table(result["rows"], ("tasks", "median s", "further", "memory", "parameters")))
    print(f"others used {result['others']:.2g} cores meanwhile")
    rounds.write(result, given.json)


if __name__ == "__main__":
    main()
