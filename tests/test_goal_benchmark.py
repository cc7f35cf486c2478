"""The benchmark of goals: which cells are held out, from numbers and from pictures, and what counts as a learned distance."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from benchmarks import coverage
from benchmarks.distances import KNOWN, agreement, journeys, steps_away, visits
from benchmarks.goals import Held, goals_of, rooms, rooms_of
from polydream.core.config import override
from polydream.core.presets import resolve
from polydream.core.train import Trainer
from tests.fixtures import tiny

KINDS = [{}, {"obs": "pixels", "size": 32}, {"world": "rooms25"}]


def agent(reward: str, **kind: Any) -> Held:
    """An untrained agent of these rooms."""
    base = tiny()
    cfg = replace(Held.Config(), **{f.name: getattr(base, f.name) for f in fields(base)})
    for codec in ("encoder", "decoder"):
        cfg = override(override(cfg, f"{codec}.mults", (2, 3, 4)), f"{codec}.depth", 2)
    return Held(rooms(**kind).spec, override(cfg, "goal.reward", reward), 0)


@pytest.mark.parametrize("kind", KINDS, ids=["numbers", "pictures", "rooms25"])
def test_held_out_cells_are_never_goals_in_training(kind: dict[str, Any]) -> None:
    made = agent("auto", **kind)
    make = rooms_of(made.spec)
    trained, held = goals_of(make)
    cells = [*held, *trained]
    shown = [make(goal=n).reset(0)["obs"] for n in cells]
    obs = {a: torch.as_tensor(np.stack([s[d] for s in shown]))[None] for d, a in made.spec.goals.items()}
    allowed = made.eligible(TensorDict({"obs": obs}, [1, len(cells)]))
    assert allowed[0].tolist() == [False] * len(held) + [True] * len(trained)
    commanding: Any = make(seed=1)
    spots = {tuple(s): n for n, s in enumerate(commanding._spots)}
    told = set()
    for _ in range(200):
        commanding.reset()
        told.add(spots[tuple(commanding._goal)])
    assert told and not told & set(held)


def test_one_room_is_where_all_begins_and_what_is_judged_lies_outside() -> None:
    task: Any = rooms("oneroom")
    trained, held = goals_of(lambda **goal: rooms("oneroom", **goal))
    inside = {n for n, s in enumerate(task._spots) if s.max() < 5}
    assert len(inside) == 16 and len(held) == 7 and not inside & {*trained, *held} and len({*trained, *held}) == 68 - 16
    for n in (*trained, *held, -1, -1, -1):
        told: Any = rooms("oneroom", goal=n, seed=n + 9)
        told.reset()
        assert told._cell.max() < 5 and (told._goal.max() < 5) == (n < 0)


def test_pictures_of_goals_are_goals_and_show_none() -> None:
    task: Any = rooms(obs="pixels", size=32)
    assert task.spec.goals == {"goal_image": "image"} and set(task.spec.obs) == {"image", "goal_image"}
    seen = task.reset(0)["obs"]
    other: Any = rooms(obs="pixels", size=32)
    other.reset(0)
    other._cell = task._goal
    assert np.array_equal(other._observe()["image"], seen["goal_image"])
    with pytest.raises(ValueError, match="rooms25 has no pictures of goals"):
        rooms("rooms25", obs="pixels")


def test_a_true_distance_agrees_and_one_that_is_blind_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made, task = agent("distance"), rooms()
    free, cells = task._free, task._spots  # type: ignore[attr-defined]
    far = np.stack([steps_away(free, c) for c in cells])
    numbers = np.full(free.shape, 0)
    numbers[tuple(cells.T)] = np.arange(len(cells))
    ways = torch.as_tensor(far)

    class Counted(torch.nn.Module):
        """Steps between the cells that two embeddings stand for: x and y, each one-hot."""

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            (ax, ay), (bx, by) = ((e[..., :11].argmax(-1), e[..., 11:].argmax(-1)) for e in torch.broadcast_tensors(a, b))
            return ways[torch.as_tensor(numbers)[ay, ax], by, bx].float()

    made.nets["distance"] = Counted()
    visited = np.zeros(free.shape, int)
    visited[tuple(cells[:9].T)] = KNOWN
    visited[tuple(cells[9])] = 1
    found = agreement(made, task, visited)
    assert found["rank"] == found["rank_near"] == found["rank_near_seen"] == found["rank_near_known"] == 1.0
    assert found["seen"] == 10 and found["known"] == 9
    assert abs(found["rank_latent"]) < 0.5, "an untrained model does not know where it is"
    # One that shows nothing but where it is now is asked in the right step.
    made.encode = lambda data: made.embed(data, made.aims.achieved(data))  # type: ignore[method-assign]
    monkeypatch.setattr(made.rssm, "observe", lambda tokens, *rest: {"tokens": tokens})
    made.latent = lambda post: post["tokens"]  # type: ignore[method-assign, assignment]
    made.nets["achieved"] = torch.nn.Identity()
    assert agreement(made, task, visited)["rank_latent"] == 1.0


@pytest.mark.parametrize("world", ["fourrooms", "rooms25"])
def test_journeys_go_from_a_start_to_every_cell_one_step_at_a_time(world: str) -> None:
    task: Any = rooms(world)
    ways, actions = journeys(task, task._spots, last=3, wander=12)
    assert bool(task._free[tuple(np.moveaxis(ways, -1, 0))].all())
    assert np.array_equal(ways[:, -2], task._spots) and (actions[:, -2] == 3).all()
    assert len(np.unique(ways[:, 12], axis=0)) > 20, "they wander before they go"
    for number in (0, 7, len(ways) - 1):  # the task itself, told the same actions, goes the same way
        task.reset(number)
        assert np.array_equal(task._cell, ways[number, 0])
        for action, there in zip(actions[number, :-1], ways[number, 1:], strict=True):
            task._walk(action)
            assert np.array_equal(task._cell, there)


def test_doubts_are_those_of_the_ways_out_of_each_cell() -> None:
    """An agent that doubts the ways out of one cell, and that by the number of the action, is found out."""

    class Doubter:
        def measure(self, batch: Any, draws: Any) -> torch.Tensor:
            y, x = batch["obs", "y"], batch["obs", "x"]
            out = torch.zeros(y.shape)
            before = (y[:, :-1] == 3) & (x[:, :-1] == 4)
            out[:, 1:] = before * (1.0 + batch["action", "action"][:, :-1])
            return out

    doubt = coverage.doubts(Doubter())
    assert doubt[3, 4] == 3.0 and np.nansum(doubt) == 3.0 and np.isnan(doubt[0, 0])
    assert np.array_equal(np.isnan(doubt), ~coverage.FREE)


def test_visits_are_those_of_the_run(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"dir": str(tmp_path), "log.mlflow": False, "eval.video": False, "eval.baseline": 0, "save_every": 0}
    cfg = resolve({"preset": "smoke", "task": "world/fourrooms"}, usual | {"steps": 100, "warmup": 1000, "threads": 1})
    free = rooms()._free  # type: ignore[attr-defined]
    counted = np.zeros(free.shape, int)
    with Trainer(cfg) as trainer:
        stepped = trainer.envs.step

        def noted(actions: Any) -> Any:
            seen = stepped(actions)
            counted[seen["obs"]["y"][0], seen["obs"]["x"][0]] += 1
            return seen

        trainer.envs.step = noted  # type: ignore[method-assign]
        trainer.run()
    assert counted.sum() >= 100 and (visits(tmp_path, free) == counted).all()
