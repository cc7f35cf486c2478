"""Rounds: every contender in turn, again and again, so that what disturbs the machine disturbs all of them; and what comes of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from polydream.core.config import ConfigError

from .case import Case
from .contender import PEERS, Process, Unsupported

KNOWN_PEERS = ("sheeprl", "torchrl")
REFUSALS = (Unsupported, FileNotFoundError, ConfigError)
"""What a wrong option raises: told in one line, without a trace."""
Answers = Sequence[Mapping[str, Any]]


def field(given: argparse.Namespace, case: Case, exits: ExitStack) -> dict[str, Process]:
    """All contenders that the options name, started, by name: ours in every dtype and compile mode, the peers in every dtype.

    Raises Unsupported for a mode that ours lacks. A mode that a peer lacks is left out, and said.
    """
    processes = {}
    for dtype in given.dtype:
        for compile in given.compile:
            name = f"polydream {dtype} {compile}"
            processes[name] = exits.enter_context(Process("benchmarks.ours", case, {"dtype": dtype, "compile": compile}))
    for peer in given.peers:
        for dtype in given.dtype:
            settings = {"dtype": dtype, "compile": given.peer_compile}
            try:
                process = Process(f"benchmarks.peers.{peer}", case, settings, PEERS)
            except Unsupported as why:
                print(f"left out: {peer} {dtype} {given.peer_compile}: {why}")
                continue
            processes[f"{peer} {dtype} {given.peer_compile}"] = exits.enter_context(process)
    return processes


def interleave(processes: Mapping[str, Process], rounds: int, do: str, **arguments: Any) -> dict[str, list[dict[str, Any]]]:
    """A B C A B C ...: the answers of each process to the same request, one per round."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            answers[name].append(process.ask(do, **arguments))
    return answers


def fastest(answers: Mapping[str, Answers]) -> str:
    """Which of our modes had the smallest median: what the others are compared with."""
    return min((name for name in answers if name.startswith("polydream")), key=lambda name: summary(answers[name])["median"])


def summary(answers: Answers) -> dict[str, Any]:
    """Median, best and spread (quartiles' distance over the median) of all times, s; peak memory; cores used by others."""
    times = np.concatenate([a["seconds"] for a in answers])
    low, mid, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return {
        "median": mid,
        "best": float(times.min()),
        "spread": (high - low) / mid,
        "peak GB": max(a["peak GB"] for a in answers),
        "others": median(a["others"] for a in answers),
        "rounds": [a["seconds"] for a in answers],
    }


def ratio(answers: Answers, reference: Answers) -> float:
    """How many times the reference's time: median over rounds of the ratio of the two medians of that round."""
    return median(median(a["seconds"]) / median(b["seconds"]) for a, b in zip(answers, reference, strict=True))


def table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """Rows as Markdown, numbers to three digits."""
    cells = [[_cell(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [list(keys), *cells]) for i in range(len(keys))]
    lines = [list(keys), ["-" * w for w in widths], *cells]
    return "\n".join("| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(result: Mapping[str, Any], path: Path | None) -> None:
    """The whole result as JSON, where a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of contenders share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="size1m", help="size of the model, as `polydream train --size`")
    parser.add_argument("--obs", choices=("vector", "image"), default="vector", help="24 numbers, or 64 x 64 x 3 pixels")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16 (products only); several are interleaved")
    parser.add_argument("--compile", nargs="+", default=["none"], help="compile modes of ours; several are interleaved")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each contender")
    parser.add_argument("--rounds", type=int, default=6, help="times that every contender has its turn")
    parser.add_argument("--peers", type=_names, default=[], help="sheeprl,torchrl: interleaved with ours, from .venv-peers")
    parser.add_argument("--peer-compile", choices=("none", "own"), default="none", help="own: as the peer itself compiles")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in KNOWN_PEERS:
            raise argparse.ArgumentTypeError(f"no peer {name!r}; there are {', '.join(KNOWN_PEERS)}")
    return names
