"""What variants cost: `python -m benchmarks.cost [VARIANT ...] [--task world/pinpad3] [--size laptop] [--rounds 9] [--set key=value ...]`.

Each variant and the base agent collects a little of the task at random and then they update in turn, on batches of their own replay, all
with dreams of the same length. Prints processor seconds of an update and how many of the base agent's that is: the median of the
ratios round by round. A variant may carry its own settings: `hierarchical:agent.hierarchy.units=512`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polydream.core.config import ConfigError
from polydream.core.presets import resolve
from polydream.core.train import Trainer

from . import rounds

BASE = "base"
WARMUP = 3
"""Updates before the first that counts: a compiled part is traced in the first, and may be again."""


def settings(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a mapping. Raises ConfigError for a word without =."""
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is no KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


def measure(contenders: Mapping[str, Mapping[str, Any]], named: Mapping[str, str], count: int) -> dict[str, list[float]]:
    """Processor seconds of `count` updates by contender, in turn.

    contenders: settings of each, whose `variant` says what it is. named: task, preset and size.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as exits:
        trainers = {}
        for name, given in contenders.items():
            folder = exits.enter_context(TemporaryDirectory())
            own = {k: v for k, v in given.items() if k != "variant"}
            quiet = {"dir": folder, "log.mlflow": False, "save_every": 0, "eval.video": False, "steps": 10**9}
            trainers[name] = exits.enter_context(Trainer(resolve({"variant": given["variant"], **named}, own | quiet)))
            _fill(trainers[name])
        for step in range(WARMUP + count):
            for name, trainer in trainers.items():
                begin = time.process_time()
                trainer.learn()
                if step >= WARMUP:
                    seconds[name].append(time.process_time() - begin)
    return seconds


def _fill(trainer: Trainer) -> None:
    """Collect until a batch could be made of different sequences."""
    while trainer.step < max(trainer.cfg.random, 4 * trainer.cfg.length):
        trainer.collect()


def table(seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row for each contender: its median and least time, and the median of its ratios to the base agent."""
    usual = seconds[BASE]
    return [
        {
            "variant": name,
            "median s": statistics.median(found),
            "best s": min(found),
            "over base": statistics.median(a / b for a, b in zip(found, usual, strict=True)),
        }
        for name, found in seconds.items()
    ]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=["hierarchical"], help="NAME, or NAME:KEY=VALUE,KEY=VALUE")
    parser.add_argument("--task", default="world/pinpad3")
    parser.add_argument("--size", default="laptop", help="size of the model, as `polydream train --size`")
    parser.add_argument("--dream", type=int, default=16, help="imagined steps of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9, help="updates of each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of all")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    try:
        shared = {"agent.dream": given.dream, "threads": given.threads, **settings(given.set)}
        contenders: dict[str, dict[str, Any]] = {BASE: {"variant": BASE, **shared}}
        for word in given.variants:
            name, _, own = word.partition(":")
            contenders[word] = {"variant": name, **shared, **settings([w for w in own.split(",") if w])}
        seconds = measure(contenders, {"task": given.task, "preset": "laptop", "size": given.size}, given.rounds)
    except ConfigError as why:
        raise SystemExit(f"benchmarks.cost: {why}") from None
    rows = table(seconds)
    print(rounds.table(rows, ("variant", "median s", "best s", "over base")))
    rounds.write(
        {"benchmark": "cost", "task": given.task, "size": given.size, "settings": shared, "rows": rows, "seconds": seconds}, given.json
    )


if __name__ == "__main__":
    main()
