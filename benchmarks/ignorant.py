"""What becomes of a policy that learns before its rewards are known? `python -m benchmarks.ignorant [--ignorant 150] [--wait 150]`.

Actor and critic of the variant `multitask` dream in the true world/grid4, without any world model: features are the cell, the
task's vector and its number. For the first `--ignorant` updates every corner pays `--guess` in every task, as heads have it that know how
often a corner pays and not which; then rewards are the true ones. `--wait`: updates in which the policy stands still. Every 100
updates one line: the exact probability, by task, that an episode ends in the task's own corner.
"""

from __future__ import annotations

import argparse

import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core.behavior import Behavior, actor_critic
from polydream.core.nets import initialize
from polydream.core.optim import Optimizer, make_groups
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.specs import Space
from polydream.tasks.world import MOVES
from polydream.variants.padding import Mark, TaskPolicy
from polydream.variants.yardstick import TaskObjective

SIDE, TASKS, VECTOR, LIMIT = 5, 4, 32, 20
CELLS = torch.arange(SIDE * SIDE)
CORNER = torch.full((SIDE * SIDE,), -1).index_put((torch.tensor([0, SIDE - 1, SIDE * (SIDE - 1), SIDE**2 - 1]),), torch.arange(TASKS))
"""Number of the corner that a cell is, -1 for others."""
ACTION = {"action": Space(dtype="int32", classes=len(MOVES))}


def neighbours() -> Tensor:
    """The cell (cells, actions) that an action leads to; walls stop, and corners end the episode, so nothing leads out of them."""
    row, column = CELLS[:, None] // SIDE, CELLS[:, None] % SIDE
    moves = torch.tensor(MOVES)
    there_row, there_column = row + moves[:, 0], column + moves[:, 1]
    inside = (there_row >= 0) & (there_row < SIDE) & (there_column >= 0) & (there_column < SIDE) & (CORNER[:, None] < 0)
    return torch.where(inside, there_row * SIDE + there_column, CELLS[:, None])


NEXT = neighbours()
FREE = (CORNER < 0).nonzero().squeeze(-1)


class Grid:
    """A behavior, and the true world that it dreams in. changes: settings of the run, as on the command line."""

    def __init__(self, seed: int, changes: dict[str, str]) -> None:
        cfg = self.cfg = resolve({"variant": "multitask"}, changes).agent
        width = 2 * SIDE + VECTOR
        self.mark, self.generator = Mark(width, TASKS), torch.Generator().manual_seed(seed)
        self.vectors = torch.nn.functional.normalize(torch.randn(TASKS, VECTOR, generator=self.generator), dim=1)
        policy = TaskPolicy(width + 1, ACTION, cfg.actor.policy, [ACTION] * TASKS, self.mark)
        known = {"mark": self.mark, "discounts": [cfg.critic.discount] * TASKS}
        self.objective = TaskObjective(width + 1, cfg.critic, **known, scales=True, replay=None)  # type: ignore[arg-type]
        self.behavior = Behavior(policy, {"extrinsic": self.objective}, cfg.actor)
        initialize(self.behavior, seed)
        self.objective.start()
        self.optimizer = Optimizer(make_groups(cfg.optim, [], policy.parameters(), self.objective.critic.parameters()), cfg.optim)

    def view(self, cell: Tensor, task: Tensor) -> Tensor:
        """Features (*, F) of cells and tasks (*)."""
        rows, columns = (torch.nn.functional.one_hot(x, SIDE).float() for x in (cell // SIDE, cell % SIDE))
        return torch.cat([rows, columns, self.vectors[task], self.mark.write(task)], -1)

    @torch.no_grad()
    def dream(self, count: int, draws: Draws) -> tuple[Tensor, Tensor, TensorDict]:
        """Cells and tasks (N, H + 1) and actions of dreams from cells drawn uniformly."""
        task = torch.arange(count) % TASKS
        cell = FREE[torch.randint(len(FREE), (count,), generator=self.generator)]
        cells, actions = [], []
        for _ in range(self.cfg.dream + 1):
            cells.append(cell)
            actions.append(self.behavior.policy(self.view(cell, task))["action"].sample(draws, "action"))
            cell = NEXT[cell, actions[-1].argmax(-1)]
        at = torch.stack(cells, 1)
        return at, task[:, None].expand_as(at), TensorDict({"action": torch.stack(actions, 1)}, at.shape)

    def update(self, number: int, count: int, seed: int, guess: float | None) -> None:
        """One update; every corner pays `guess`, or what it does where that is None."""
        cell, task, action = self.dream(count, Draws(seed, number))
        corner = CORNER[cell]
        pays = torch.where(corner == task, 1.0, -1.0) if guess is None else torch.full_like(cell, 1, dtype=torch.float32) * guess
        reward = torch.where(corner < 0, 0.0, pays)
        cont = torch.where(corner < 0, self.cfg.critic.discount, 0.0)
        losses, _, _ = actor_critic(self.behavior, self.view(cell, task), action, {"extrinsic": reward}, cont)
        kept = [v.mean() for k, v in losses.items() if k != "policy" or self.behavior.awake]
        self.optimizer.zero_grad()
        torch.stack(kept).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.objective.follow(number + 1)

    @torch.no_grad()
    def reached(self) -> list[float]:
        """Probability, by task, that an episode from a random cell ends in the task's own corner."""
        found = []
        for task in range(TASKS):
            chance = self.behavior.policy(self.view(CELLS, torch.full_like(CELLS, task)))["action"].log_probs.exp()  # type: ignore[attr-defined]
            step = torch.zeros(len(CELLS), len(CELLS)).scatter_add_(1, NEXT, chance)
            at = torch.where(CORNER < 0, 1 / len(FREE), 0.0)
            for _ in range(LIMIT):
                at = at @ step
            found.append(float(at[task == CORNER]))
        return found


def main() -> None:
    """Train, and print how the tasks stand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ignorant", type=int, default=150)
    parser.add_argument("--wait", type=int, default=0)
    parser.add_argument("--guess", type=float, default=-0.5)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--dreams", type=int, default=24, help="dreams of an update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the run: agent.actor.entropy=3e-3")
    given = parser.parse_args()
    grid = Grid(given.seed, dict(s.split("=", 1) for s in given.set))
    for number in range(given.updates):
        grid.behavior.awake = number >= given.wait
        grid.update(number, given.dreams, given.seed, given.guess if number < given.ignorant else None)
        if not (number + 1) % 100:
            print(f"{number + 1:5d} updates: " + ", ".join(f"{p:.2f}" for p in grid.reached()), flush=True)


if __name__ == "__main__":
    main()
