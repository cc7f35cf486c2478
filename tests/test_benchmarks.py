"""The speed benchmarks run, at a tiny size, and say what they are said to say. No time is asserted anywhere."""

from __future__ import annotations

import json
import math
import sys
import threading
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import act, cost, floor, further, growth, rounds, tasks, train, update, worlds
from benchmarks.case import Case, arrays
from benchmarks.contender import PEERS, Process
from polydream.core.config import ConfigError

TINY = Case(size="laptop", deter=256, hidden=64, stoch=16, classes=8, units=64, depth=4, batch=2, length=4, horizon=2, threads=1)
OPTIONS = ["--size", "laptop", "--threads", "1"]
BATCH = ["--batch", "2", "--length", "4", "--horizon", "2", "--rounds", "2", "--updates", "1"]


def result(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, Any]:
    """What a benchmark writes when it is called with these options."""
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *OPTIONS, *options, "--json", str(path)])
    module.main()
    return json.loads(path.read_text())


@pytest.mark.slow
def test_update_measures_every_round_over_a_counted_floor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = result(update, monkeypatch, tmp_path, *BATCH)
    (row,) = found["rows"]
    assert row["contender"] == "polydream float32 none"
    assert [len(seconds) for seconds in row["rounds"]] == [1, 1]
    assert row["times"] == 1.0  # against itself
    assert row["best s"] <= row["median s"]
    under = found["floor"]
    assert 0 < under["matrix products"] <= under["operations"]
    assert under["seconds"]["float32"] == pytest.approx(under["operations"] / under["rate"]["float32"])
    assert row["over floor"] == pytest.approx(row["best s"] / under["seconds"]["float32"])


@pytest.mark.slow
def test_growth_changes_one_size_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = result(update, monkeypatch, tmp_path, *BATCH, "--growth")
    assert {(r["B"], r["T"], r["H"]) for r in found["rows"]} == {(2, 4, 2), (4, 4, 2), (2, 2, 2), (2, 8, 2), (2, 4, 4)}
    assert found["slopes"].keys() == {"B", "T", "H"}


@pytest.mark.slow
def test_act_has_a_row_for_every_number_of_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = result(act, monkeypatch, tmp_path, "--obs", "image", "--environments", "1", "3", "--steps", "2", "--rounds", "1")
    assert [row["environments"] for row in found["rows"]] == [1, 3]
    assert all(row["us per environment"] == pytest.approx(row["median ms"] / row["environments"] * 1e3) for row in found["rows"])


@pytest.mark.slow
def test_train_gives_all_of_the_time_to_some_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = [
        "--task",
        "world/fourrooms",
        "--updates",
        "3",
        "--warmup",
        "1",
        "--ratio",
        "4",
        "--set",
        "batch=2",
        "length=4",
        "agent.dream=2",
    ]
    found = result(train, monkeypatch, tmp_path, *small)
    assert found["updates"] == 3
    assert found["environment steps"] == 6  # two decisions an update: 2 * 4 replayed steps at 4 a decision
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(found["seconds"][part] > 0 for part in train.PARTS)


@pytest.mark.slow
def test_train_compares_runs_that_step_beside_learning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = ["--task", "world/fourrooms", "--updates", "4", "--warmup", "1", "--ratio", "4", "--ahead", "0", "2", "--rounds", "2"]
    found = result(train, monkeypatch, tmp_path, *small, "--set", "batch=2", "length=4", "agent.dream=2")
    assert [run["ahead"] for run in found["runs"]] == [0, 0, 2, 2] and all(run["updates"] == 4 for run in found["runs"])
    turn, beside = found["rows"]
    assert turn["times as fast"] == 1.0
    assert beside["environment"] == beside["acting"] == "0.0%", "what happens beside the updates takes none of the learner's time"
    assert all(run["seconds"]["environment"] > 0 for run in found["runs"][:2]) and found["runs"][2]["seconds"]["waiting"] > 0


def test_the_clock_books_nothing_to_other_threads() -> None:
    loop, done = SimpleNamespace(part=lambda: None), []
    clock = train.Clock("cpu")
    clock.wrap(loop, "part", "environment")
    loop.part = lambda inner=loop.part: done.append(inner())
    thread = threading.Thread(target=loop.part)
    thread.start()
    thread.join()
    assert done == [None] and "environment" not in clock.read()
    loop.part()
    assert clock.read()["environment"] > 0


def test_a_mode_that_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *OPTIONS, "--dtype", "float7"])
    with pytest.raises(SystemExit):
        update.main()
    assert "float7" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="needs `make benchmark-peers`")
@pytest.mark.parametrize("peer", ["sheeprl", "torchrl"])
def test_a_peer_is_the_same_model_and_updates(peer: str) -> None:
    settings = {"dtype": "float32", "compile": "none"}
    with Process(f"benchmarks.peers.{peer}", TINY, settings, PEERS) as other, Process("benchmarks.ours", TINY, settings) as own:
        assert other.facts["parameters"] == own.facts["parameters"]
        assert len(other.ask("update", count=2)["seconds"]) == 2


def test_a_contender_that_ends_is_an_error_not_a_wait() -> None:
    with pytest.raises(RuntimeError, match="benchmarks.nobody ended with status 1"):
        Process("benchmarks.nobody", TINY, {})


# ------------------------------------------------------------------------------------------------ arithmetic


def test_operations_of_products_forward_and_backward() -> None:
    a, w, v = torch.ones(2, 3, requires_grad=True), torch.ones(3, 5, requires_grad=True), torch.ones(4, 5, 7)
    total, by_shape = floor.count(lambda: (a @ w).sum().backward())
    # Forward 2 x 3 x 5; backward the gradients of a (2 x 5 x 3) and of w (3 x 2 x 5).
    assert by_shape == {(1, 2, 3, 5): 60, (1, 2, 5, 3): 60, (1, 3, 2, 5): 60}
    assert total == 180
    total, by_shape = floor.count(lambda: torch.bmm(torch.ones(4, 2, 5), v))
    assert by_shape == {(4, 2, 5, 7): 560}
    assert total == 560


def test_the_floor_is_operations_over_the_best_rate_of_any_round() -> None:
    facts = {"operations": 600, "shapes": [{"shape": [1, 1, 1, 1]}, {"shape": [1, 2, 2, 2]}]}
    found = floor.summarize(facts, [{"float32": [10.0, 200.0]}, {"float32": [30.0, 100.0]}])
    assert found["rate"] == {"float32": 200.0}
    assert found["seconds"] == {"float32": 3.0}
    assert [row["float32 GFLOP/s"] for row in found["shapes"]] == [30 / 1e9, 200 / 1e9]


def test_summary_and_ratio_of_rounds() -> None:
    slow = [{"seconds": [2.0, 4.0, 3.0], "peak GB": 1.0, "others": 0.5}, {"seconds": [6.0, 8.0, 7.0], "peak GB": 2.0, "others": 0.1}]
    quick = [{"seconds": [1.0], "peak GB": 1.0, "others": 0.0}, {"seconds": [3.5], "peak GB": 1.0, "others": 0.0}]
    found = rounds.summary(slow)
    assert (found["median"], found["best"], found["peak GB"], found["others"]) == (5.0, 2.0, 2.0, 0.3)
    assert found["spread"] == pytest.approx((6.75 - 3.25) / 5)
    assert rounds.ratio(slow, quick) == (3.0 / 1.0 + 7.0 / 3.5) / 2
    assert rounds.fastest({"sheeprl": quick, "polydream a": slow, "polydream b": quick}) == "polydream b"


def test_slope_is_the_exponent() -> None:
    assert growth.slope([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert growth.slope([1, 10], [1, 100]) == pytest.approx(2)


def test_table_is_markdown() -> None:
    assert rounds.table([{"a": "x", "b": 1234.5}, {"a": "y", "b": 0.12345}], ["a", "b"]) == "\n".join(
        ["| a | b     |", "| - | ----- |", "| x | 1,234 |", "| y | 0.123 |"]
    )


def test_the_clock_gives_each_part_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    loop = SimpleNamespace(inner=lambda: passes(3), outer=lambda: (passes(1), loop.inner(), passes(2)))
    clock = train.Clock("cpu")
    clock.wrap(loop, "inner", "replay")
    clock.wrap(loop, "outer", "update")
    passes(10)
    loop.outer()
    loop.inner()
    assert clock.read() == {"rest": 10, "update": 3, "replay": 6}


def test_a_case_survives_the_command_line_and_everyone_gets_the_same_batch() -> None:
    again = Case.from_json(TINY.to_json())
    assert again == TINY
    first, second = arrays(TINY), arrays(again)
    assert all((first[key] == second[key]).all() for key in first)
    assert first["obs"].shape == (2, 5, 24)
    assert first["stoch"].max() < TINY.classes
    assert math.isclose(abs(first["action"]).max(), 1, rel_tol=0.1)


def test_worlds_are_timed_beside_a_single_agent() -> None:
    found = worlds.measure(TINY, [2], 1)
    assert list(found) == [0, 2] and all(len(seconds) == 1 for seconds in found.values())
    single, _, batch = worlds.make(TINY, 0)
    several, _, wide = worlds.make(TINY, 2)
    assert several.latent_spaces["deter"].shape == (2 * single.latent_spaces["deter"].shape[0],) == wide["latent", "deter"].shape[2:]
    assert torch.equal(batch["obs", "vector"], wide["obs", "vector"]), "both learn from the same steps"


def test_what_a_variant_costs_is_its_updates_over_those_of_the_base_agent() -> None:
    small = {"batch": "2", "length": "4", "random": "10", "replay.online": "false", "agent.dream": "4"}
    given = {"base": {"variant": "base"} | small, "theirs": {"variant": "hierarchical"} | small}
    seconds = cost.measure(given, {"task": "world/chain", "preset": "smoke"}, 2)
    assert list(seconds) == ["base", "theirs"] and all(len(s) == 2 and min(s) > 0 for s in seconds.values())
    rows = cost.table({"base": [1.0, 2.0, 4.0], "theirs": [2.0, 3.0, 5.0]})
    assert [r["over base"] for r in rows] == [1.0, 1.5] and rows[1]["median s"] == 3.0 and rows[1]["best s"] == 2.0
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        cost.settings(["agent.dream"])


class Seeks:
    """Walks to the corner whose number it is told."""

    spec = SimpleNamespace(tasks=dict.fromkeys(("a", "b", "c", "d")))

    def initial(self, n: int) -> None:
        return None

    def act(self, obs: dict[str, Any], state: None, *, is_first: Any, mode: str) -> tuple[dict[str, Any], None]:
        row, column = 1 + 4 * (obs["task"] // 2), 1 + 4 * (obs["task"] % 2)
        down, right = np.sign(row - obs["y"]), np.sign(column - obs["x"])
        sideways, upright = np.where(right > 0, 4, 3), np.where(down > 0, 2, 1)
        astray = (obs["y"] % 4 == 1) & (down != 0)  # along this wall another corner lies in the way
        return {"action": np.where(astray | (right == 0), upright, sideways)}, None


def test_a_player_told_another_task_fails_at_its_own() -> None:
    """And rewards of one size or a thousand times that are judged alike."""
    for loud in (0, 3):
        make = partial(tasks.loud, task=loud)
        own = tasks.successes(Seeks(), make, episodes=10, seed=0)
        assert set(own.values()) == {1.0}
        for shift in (1, 2, 3):
            wrong = tasks.successes(tasks.Misled(Seeks(), shift), make, episodes=10, seed=0)  # type: ignore[arg-type]
            assert set(wrong.values()) == {0.0}


def test_one_corner_pays_a_thousand_times_as_much() -> None:
    suite = tasks.loud(task=2)
    assert [m.success for m in suite.spec.tasks.values()] == [1.0, 1.0, 1000.0, 1.0]
    found = set()
    for index in range(4):
        suite.share(index, 4)
        for seed in range(30):
            step = suite.reset(seed)
            while not step["is_last"]:
                step = suite.step({"action": np.int32(1 + 2 * (seed % 2))})  # up, or left
            found.add((index, float(step["reward"])))
    assert found >= {(0, 1.0), (0, -1.0), (1, 1.0), (2, 1000.0), (2, -1000.0), (3, -1.0)} and not any(
        abs(r) == 1 for i, r in found if i == 2
    )


@pytest.mark.slow
def test_a_further_tasks_memory_is_its_heads_and_its_vector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = result(further, monkeypatch, tmp_path, *BATCH, "--tasks", "2", "4")
    (two, four) = found["rows"]
    agent = further.Contender(further.configuration("laptop"), TINY, 2).agent
    own = sum(p.numel() for name in ("reward", "cont", "tasks") for p in agent.nets[name][0].parameters())  # type: ignore[index]
    assert four["memory"] == own and four["parameters"] - two["parameters"] == 2 * own
    assert len(four["rounds"]) == 2
