"""Update: time of one full update (world model, actor, critic, slow critic, optimizer) on a synthetic batch, ours and the peers'.

    python -m benchmarks.update --size size1m --dtype float32 bfloat16 --compile none --peers sheeprl,torchrl --json update.json
    python -m benchmarks.update --size size1m --growth

Every contender is a process of its own and has its turn in every round, so ratios hold on a noisy machine: `times` is the
median over rounds of a contender's median over that of the fastest of our modes in the same round. `over floor` is the best
time over the time of the update's floating-point operations at this machine's best matrix rate in that dtype, measured in the
same rounds. `others` is the number of cores that other programs used meanwhile: times say little where it is not near zero.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from typing import Any

from . import floor, growth, machine, ours, rounds
from .case import Case
from .contender import Process

WARMUP = 3  # updates before the first timed one: compilation, allocation
COLUMNS = ("contender", "median s", "best s", "spread", "times", "over floor", "peak GB", "parameters", "first s", "others")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every contender and the floor under them."""
    case = ours.case(given, batch=given.batch, length=given.length, horizon=given.horizon)
    about = machine.describe(case.device)
    with ExitStack() as exits:
        contenders = rounds.field(given, case, exits)
        dtypes = list(dict.fromkeys(["float32", *given.dtype, *(["bfloat16"] if _native(about, case) else [])]))
        processes = contenders | {"floor": exits.enter_context(Process("benchmarks.floor", case, {"dtypes": dtypes}))}
        first = {name: _warm_up(process) for name, process in contenders.items()}
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
        for _ in range(given.rounds):
            for name, process in processes.items():
                answers[name].append(process.ask("rates") if name == "floor" else process.ask("update", count=given.updates))
        under = floor.summarize(processes["floor"].facts, answers.pop("floor"))
    best = rounds.fastest(answers)
    rows = []
    for name, found in answers.items():
        row = {"contender": name, **contenders[name].facts, "first s": first[name], **rounds.summary(found)}
        row |= {"median s": row.pop("median"), "best s": row.pop("best"), "times": rounds.ratio(found, answers[best])}
        row["over floor"] = row["best s"] / under["seconds"][name.split()[1]]
        rows.append(row)
    return {"benchmark": "update", "case": vars(case), "machine": about, "updates": given.updates, "rows": rows, "floor": under}


def _native(about: dict[str, Any], case: Case) -> bool:
    """Whether bfloat16 products are a matter of hardware; emulated ones would take minutes."""
    return case.device.startswith("cuda") or bool({"avx512_bf16", "amx_bf16"} & set(about["instructions"]))


def _warm_up(process: Process) -> float:
    """Seconds until the first update is done, from the start of the process; then some more, unmeasured."""
    begin = time.perf_counter()
    process.ask("update", count=1)
    first = process.start + time.perf_counter() - begin
    process.ask("update", count=WARMUP - 1)
    return first


def show(result: dict[str, Any]) -> None:
    """The tables."""
    under = result["floor"]
    print(rounds.table(result["rows"], COLUMNS))
    for row in result["rows"]:
        if row["note"]:
            print(f"{row['contender']}: {row['note']}")
    shapes = [s | {"G x M x K x N": " x ".join(map(str, s["shape"]))} for s in under["shapes"]]
    rates = [f"{name} GFLOP/s" for name in under["rate"]]
    print(f"\n{under['operations'] / 1e9:.4g} GFLOP an update, {under['matrix products'] / under['operations']:.0%} in matrix products")
    print(rounds.table(shapes, ("G x M x K x N", "share", *rates)))
    for name, seconds in under["seconds"].items():
        print(f"floor {name}: {seconds:.4g} s at {under['rate'][name] / 1e9:.0f} GFLOP/s")


def main() -> None:
    """Run, print the tables, write the JSON."""
    parser = rounds.options(__doc__)
    parser.add_argument("--updates", type=int, default=4, help="updates of a contender in each round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--growth", action="store_true", help="instead: time of ours over B * T and over H, with the slopes")
    given = parser.parse_args()
    try:
        result = growth.run(given) if given.growth else run(given)
    except rounds.REFUSALS as error:
        parser.error(str(error))
    growth.show(result) if given.growth else show(result)
    rounds.write(result, given.json)


if __name__ == "__main__":
    main()
