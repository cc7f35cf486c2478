"""The command `benchmark`: variants on a suite, a grid of ordinary training runs, and one report that compares them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.config import ConfigError, convert
from .flags import filled, none, parse

if TYPE_CHECKING:
    from .eval.grid import Grid
    from .eval.lineage import Lineage
    from .eval.runner import Backend
    from .eval.suites import Suite

KINDS = {
    "suite": str,
    "variants": tuple[str, ...],
    "tasks": tuple[str, ...],
    "seeds": str,
    "dir": str,
    "jobs": int,
    "threads": int,
    "cluster": str,
}
SWITCHES = ("help", "dry_run", "retry", "report_only")
RESERVED = ("variant", "task", "seed")


def benchmark(argv: Sequence[str]) -> int:
    """Compare variants on a suite: benchmark --suite worlds --variants base,goal --seeds 3 [--any.option VALUE ...].

    --suite NAME       worlds, dmc-proprio, dmc-vision, atari100k, crafter, minigrid-memory, minecraft, or a .toml or .yaml file
    --variants A,B     variants, or model-free baselines sb3-sac, sb3-ppo, sb3-dqn; the first is what the others are compared with
    --seeds N          seeds 0 ... N-1, or a list such as 3,7 (one seed: 3,); the suite's own number by default
    --tasks A,B        only these tasks of the suite
    --dir FOLDER       default runs/benchmark-<suite>; the same command goes on where it stopped, finished cells are kept
    --jobs N           cells at a time (default: as many as cores / threads, or one for each GPU)
    --threads N        threads of a cell (default 1)
    --cluster ADDRESS  run the cells on a Ray cluster: auto, or host:port
    --retry            give failed cells another try
    --dry-run          print the commands of all cells
    --report-only      write the report of what is there

    Any other option is one of `polydream train` and holds for every cell; --preset or --size replaces the suite's published settings.
    """
    words = parse(argv, switches=SWITCHES)
    none(words.positional)
    switches = {name for name in SWITCHES if convert(bool, words.flags.pop(name, "false") or "true", name)}
    own = {key: convert(KINDS[key], text, key) for key, text in filled({k: v for k, v in words.flags.items() if k in KINDS}).items()}
    for name in ("jobs", "threads"):
        if own.get(name, 1) < 1:
            raise ConfigError(f"{name} must be at least 1, got {own[name]}")
    grid = _grid(own, {k: "true" if v is None else v for k, v in words.flags.items() if k not in KINDS})
    from .eval import runner

    runner.check(grid)
    if "dry_run" in switches:
        print("\n".join(cell.shown for cell in grid.cells))
        return 0
    if "report_only" not in switches:
        _validate(grid)
    return _run(grid, own, switches)


def _grid(own: Mapping[str, Any], options: Mapping[str, str]) -> Grid:
    """The grid that the options ask for."""
    from .eval.grid import Grid, safe
    from .eval.suites import find

    for key in RESERVED:
        if key in options:
            raise ConfigError(f"--{key} is the benchmark's own; use --{key}s")
    suite = find(own.get("suite", "worlds")).only(own.get("tasks", ()))
    variants = own.get("variants") or ("base",)
    if len(set(variants)) != len(variants):
        raise ConfigError(f"variants are named twice: {', '.join(variants)}")
    directory = Path(own.get("dir") or f"runs/benchmark-{safe(suite.name)}").absolute()
    return Grid(suite, tuple(variants), _seeds(own.get("seeds", ""), suite), directory, options)


def _seeds(text: str, suite: Suite) -> tuple[int, ...]:
    """`3` is 0, 1, 2; `3,7` and `3,` are these."""
    numbers = convert(tuple[int, ...], text, "seeds") if text else (suite.seeds,)
    found = tuple(numbers) if "," in text else tuple(range(numbers[0]))
    if not found or min(found) < 0 or len(set(found)) != len(found):
        raise ConfigError(f"seeds wants how many, or different numbers from 0 on separated by commas, got {text!r}")
    return found


def _validate(grid: Grid) -> None:
    """Find bad input before the first cell is started: every configuration is put together once, every task made once."""
    from .asked import known_family, made, resolved
    from .baseline import METHODS
    from .core.config import nearest

    grid.suite.require()
    for entry in grid.suite.tasks:
        known_family(entry.task)
    first = [cell for cell in grid.cells if cell.seed == grid.seeds[0]]
    for cell in first:
        if not cell.baseline:
            resolved(dict(zip([w[2:] for w in cell.words[1::2]], cell.words[2::2], strict=True)))
        elif cell.variant not in METHODS:
            raise ConfigError(f"no baseline {cell.variant!r}; did you mean {nearest(cell.variant, METHODS)[0]!r}?")
    from functools import partial

    from .core.launch import make_task

    for cell in first[:: len(grid.variants)]:
        cfg = resolved({"task": cell.entry.task, **{k: v for k, v in cell.options.items() if k.startswith("env.")}})
        made(cfg.task, partial(make_task, cfg)).close()


def _run(grid: Grid, own: Mapping[str, Any], switches: set[str]) -> int:
    from .core.signals import Signals
    from .eval import runner
    from .eval.board import Board
    from .eval.grid import DONE, FAILED
    from .eval.summary import write_summary

    grid.directory.mkdir(parents=True, exist_ok=True)
    grid.save()
    if "report_only" in switches:
        print(f"report: {write_summary(grid)}")
        return 0
    if "retry" in switches:
        runner.forgive(grid)
    lineage = _lineage(grid)
    backend = _backend(own, lineage)
    print(f"{len(grid.cells)} cells in {grid.directory}, {sum(c.state == DONE for c in grid.cells)} of them done", flush=True)
    status = "KILLED"
    try:
        with Signals(2 * runner.GRACE), Board(grid) as board:
            complete = runner.run(grid, backend, board.show, board.say)
        status = "FINISHED" if complete else "FAILED"
    finally:
        path = write_summary(grid)
        lineage.claim(grid.cells)
        lineage.close(_numbers(grid), path, status)
        print(f"report: {path}")
    for cell in grid.cells:
        if cell.state == FAILED:
            print(f"failed: {cell.label}: {cell.reason}")
    return 0 if complete else 1


def _lineage(grid: Grid) -> Lineage:
    from .eval.lineage import Lineage

    params = {"suite": grid.suite.name, "variants": ",".join(grid.variants), "seeds": ",".join(map(str, grid.seeds)), **grid.options}
    name = f"{grid.suite.name} {time.strftime('%Y-%m-%d %H:%M')}"
    return Lineage(
        grid.directory,
        name=name,
        experiment=grid.options.get("log.experiment", "polydream"),
        params=params,
        enabled=grid.options.get("log.mlflow", "true") != "false",
    )


def _backend(own: Mapping[str, Any], lineage: Lineage) -> Backend:
    """This machine, or a Ray cluster."""
    threads = own.get("threads", 1)
    if own.get("cluster"):
        from .eval.cluster import Cluster

        return Cluster(own["cluster"], threads=threads, jobs=own.get("jobs"), environment=lineage.environment)
    import torch

    from .eval.runner import Local

    devices = [str(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = own.get("jobs") or len(devices) or max(cores // threads, 1)
    return Local(jobs, threads, devices, lineage.environment)


def _numbers(grid: Grid) -> dict[str, float]:
    """Aggregates for the parent run: `<kind>/<variant>/<aggregate>`, its ends as `low` and `high`."""
    from .eval.comparison import AGGREGATES, Comparison

    found: dict[str, float] = {}
    for kind, scores in Comparison(grid).own.items():
        for one in scores:
            for name in AGGREGATES if one.known else ():
                value = one.aggregate(name)
                key = f"{kind}/{one.label}/{name.replace(' ', '_')}"
                found |= {key: value.value} | ({f"{key}/low": value.low, f"{key}/high": value.high} if value.known else {})
    return found
