"""Act: time of one policy step for several environments, from observations as arrays to actions and stored latents as arrays.

    python -m benchmarks.act --size size1m --environments 1 8 64 --peers sheeprl --json act.json

Contenders are interleaved as in `benchmarks.update`; `times` is against the fastest of our modes with as many environments.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

from . import machine, ours, rounds

WARMUP = 20
COLUMNS = ("environments", "contender", "median ms", "best ms", "us per environment", "spread", "times", "others")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every contender with every number of environments."""
    # The batch has no part in acting: a small one makes contenders that build it start sooner.
    case = ours.case(given, batch=2, length=4)
    rows = []
    with ExitStack() as exits:
        contenders = rounds.field(given, case, exits)
        for environments in given.environments:
            for process in contenders.values():
                process.ask("act", environments=environments, count=WARMUP)
            answers = rounds.interleave(contenders, given.rounds, "act", environments=environments, count=given.steps)
            best = rounds.fastest(answers)
            for name, found in answers.items():
                row = {"environments": environments, "contender": name, **contenders[name].facts, **rounds.summary(found)}
                del row["rounds"]  # thousands of numbers
                row |= {"median ms": row.pop("median") * 1e3, "best ms": row.pop("best") * 1e3}
                row |= {"us per environment": row["median ms"] / environments * 1e3, "times": rounds.ratio(found, answers[best])}
                rows.append(row)
    about = {"case": vars(case), "machine": machine.describe(case.device)}
    return {"benchmark": "act", **about, "steps": given.steps, "rounds": given.rounds, "rows": rows}


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = rounds.options(__doc__)
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=200, help="policy steps of a contender in each round")
    given = parser.parse_args()
    if "torchrl" in given.peers:
        parser.error("torchrl's wheel has the parts of an acting policy and no policy; the peer here is sheeprl")
    try:
        result = run(given)
    except rounds.REFUSALS as error:
        parser.error(str(error))
    print(rounds.table(result["rows"], COLUMNS))
    rounds.write(result, given.json)


if __name__ == "__main__":
    main()
