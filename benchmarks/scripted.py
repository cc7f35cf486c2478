"""What counts as 0 and 1 in suite metaworld-mt10: `python -m benchmarks.scripted [--episodes 20]`, where metaworld is installed.

For each of the ten tasks: mean return and share of successes of uniformly random actions and of the policy that the package has
written by hand, over the same starts. Prints a table; `tasks/suites.py` has the means.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from polydream.core import registry
from polydream.core.specs import Task
from polydream.tasks.suites import SUITES

Policy = Callable[[np.ndarray], np.ndarray]


def play(task: Task, act: Policy, episodes: int) -> tuple[float, float, float]:
    """Mean and deviation of the return, share of episodes that succeed at any step. act: observation (39,) -> action (4,)."""
    returns, successes = [], []
    for seed in range(episodes):
        step, total, success = task.reset(seed), 0.0, False
        while not step["is_last"]:
            step = task.step({"action": act(step["obs"]["vector"]).clip(-1, 1)})
            total, success = total + float(step["reward"]), success or step["success"]
        returns.append(total)
        successes.append(success)
    return float(np.mean(returns)), float(np.std(returns)), float(np.mean(successes))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    from metaworld.policies import ENV_POLICY_MAP  # type: ignore[import-not-found]

    print("| task | random: return, success | scripted: return, success |\n|---|---|---|", flush=True)
    for entry in SUITES["metaworld-mt10"]:
        rng, scripted, cells = np.random.default_rng(0), ENV_POLICY_MAP[entry.name](), []
        task: Any = registry.task(entry.task, **entry.options)
        for act in (lambda obs: rng.uniform(-1, 1, 4), lambda obs: scripted.get_action(obs.astype(np.float64))):  # noqa: B023
            mean, std, success = play(task, act, args.episodes)
            cells.append(f"{mean:.0f} ± {std:.0f}, {success:.2f}")
        task.close()
        print(f"| {entry.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
