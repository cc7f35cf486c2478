"""Several tasks as one: whose turn it is, padding, numbers at every step, files, and one evaluation of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polydream.core import registry
from polydream.core.checkpoint import spec_from, spec_to
from polydream.core.config import ConfigError
from polydream.core.launch import make_task
from polydream.core.presets import resolve
from polydream.core.specs import Member, Space, Spec
from polydream.core.vector import Vector
from polydream.eval.judge import Judge
from polydream.eval.report import write_report
from polydream.eval.rollout import Evaluation, RandomPlayer
from polydream.eval.round import Round
from polydream.tasks.check import check_task
from polydream.tasks.suites import SUITES, cut, pad, read, union

GRID = "suite/world-grid4"


def test_padding_and_cutting() -> None:
    wide = Space(shape=(2, 3))
    assert pad([[1.0, 2]], wide).tolist() == [[1, 2, 0], [0, 0, 0]]
    assert pad(5.0, Space()).tolist() == 5.0
    assert cut(np.arange(6.0).reshape(2, 3), Space(shape=(1, 2))).tolist() == [[0, 1]]
    assert cut(np.int32(4), Space(dtype="int32", classes=3)).tolist() == 1


def test_every_suite_of_ours_has_one_spec() -> None:
    spec = registry.task("suite/dmc-mixed").spec
    assert {k: s.shape for k, s in spec.obs.items()} == {"position": (8,), "velocity": (9,), "to_target": (2,)}
    assert spec.action["action"].shape == (6,)
    assert list(spec.tasks) == ["cartpole_swingup", "reacher_easy", "cheetah_run"]
    assert spec.tasks["reacher_easy"].action["action"].shape == (2,) and spec.repeat == 2
    assert spec_from(spec_to(spec)) == spec
    for name in SUITES:
        if name not in ("dmc-mixed", "atari-3"):  # which need options, and are tested by themselves
            task = registry.task(f"suite/{name}")
            assert len(task.spec.tasks) == len(SUITES[name]), name
            task.close()


def test_atari_speaks_of_all_actions_in_every_game() -> None:
    task = registry.task("suite/atari-3", obs="pixels", repeat=4)
    assert task.spec.action["action"].classes == 18 and task.spec.obs["image"].shape == (64, 64, 3)
    for index in range(3):
        task.share(index, 3)
        step = task.reset(0)
        for k in range(5):
            step = task.step({"action": np.int32(k)})
        assert step["obs"]["image"].any() and int(step["task"]) == index
    task.close()


@pytest.mark.filterwarnings("ignore:.*Box observation space")
def test_an_arms_tasks_follow_the_seed_and_report_success() -> None:
    from metaworld.policies import ENV_POLICY_MAP

    one, two = (registry.task("gym/Meta-World/MT1", env_name="drawer-close-v3") for _ in range(2))
    starts = {seed: one.reset(seed)["obs"]["vector"] for seed in (3, 4, 5)}
    assert len({tuple(v[-3:]) for v in starts.values()} | {tuple(v[4:7]) for v in starts.values()}) > 2
    for seed in (5, 3):
        assert np.array_equal(two.reset(seed)["obs"]["vector"], starts[seed])
    step, policy = one.reset(3), ENV_POLICY_MAP["drawer-close-v3"]()
    reached = []
    while not step["is_last"]:
        step = one.step({"action": policy.get_action(step["obs"]["vector"].astype(np.float64)).clip(-1, 1)})
        reached.append(step["success"])
    assert not reached[0] and any(reached), "the written policy moves a hand that is tied to the point it commands"
    one.close()
    two.close()
    entries = SUITES["metaworld-mt10"]
    assert len(entries) == 10 and all(e.title in ENV_POLICY_MAP and e.low < e.high for e in entries)


def test_it_is_an_environment_as_any_other() -> None:
    task = registry.task(GRID)
    assert check_task(task, steps=100) == []


def test_cheetahs_run_both_ways() -> None:
    rewards = []
    for index in (0, 1):
        task = registry.task("suite/dmc-cheetah", repeat=1)
        task.share(index, 2)
        task.reset(0)
        task._made[index]._env.physics.named.data.qvel["rootx"] = -4.0
        rewards.append(float(task.step({"action": np.zeros(6, np.float32)})["reward"]))
        task.close()
    assert rewards[0] == 0.0 and 0.2 < rewards[1] < 0.5


def test_environments_divide_the_tasks() -> None:
    shares = []
    for index in range(3):
        task = registry.task(GRID)
        task.share(index, 3)
        shares.append(task.plays)
    assert shares == [[0, 3], [1, 0], [2, 1]]
    task.share(5, 8)
    assert task.plays == [1]


def test_the_task_with_the_fewest_steps_is_next() -> None:
    task = registry.task(GRID)
    task.share(0, 1)
    seen = []
    for k in range(12):
        step = task.reset(k)
        seen.append(int(step["task"]))
        while not step["is_last"]:
            step = task.step({"action": np.int32(k % 5)})
            assert step["task"] == seen[-1]
    assert seen[:4] == [0, 1, 2, 3]
    assert task.steps.max() - task.steps.min() <= 21, "within one episode, though some last one step and some twenty"
    assert sum(task.steps) > 60


def test_a_state_is_restored_whoever_plays() -> None:
    first, second = (registry.task(GRID) for _ in range(2))
    first.share(0, 1)
    second.share(0, 1)
    for k in range(3):
        step = first.reset(k)
        while not step["is_last"]:
            step = first.step({"action": np.int32(4)})
    first.reset(9)
    second.set_state(first.get_state())
    for _ in range(30):
        one, two = (t.step({"action": np.int32(3)}) for t in (first, second))
        assert one["task"] == two["task"] and (one["obs"]["x"] == two["obs"]["x"]).all()
        if one["is_last"]:
            one, two = (t.reset(5) for t in (first, second))
            assert one["task"] == two["task"]


def test_a_run_gives_each_environment_its_task() -> None:
    cfg = resolve({"suite": "world-grid4"}, {"env.count": "4"})
    with Vector([partial(make_task, cfg, i, 4) for i in range(4)], seed=0) as envs:
        steps = envs.step(None)
        for _ in range(50):
            assert steps["task"].tolist() == [0, 1, 2, 3]
            steps = envs.step({"action": np.full(4, 2, np.int32)})


def specs(**changes: Any) -> Mapping[str, Spec]:
    plain = Spec(obs={"x": Space(shape=(2,))}, action={"action": Space(shape=(1,))})
    return {"one": plain, "two": replace(plain, **changes)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"repeat": 2}, "env.repeat"),
        ({"action": {"action": Space(dtype="int32", classes=3)}}, "'action' is .* cannot share"),
        ({"obs": {"x": Space(shape=(2, 2))}}, "'x' is"),
        ({"extras": {"task": Space()}}, "extras"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        union("mine", specs(**changes), SUITES["world-grid4"][:2])


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_a_users_suite(tmp_path: Path, suffix: str) -> None:
    text = {
        "toml": 'tasks = ["world/chain", {task = "world/grid4", name = "far", low = -0.36, settings = {env = {options = "goal=3"}}}]',
        "yaml": "tasks:\n  - world/chain\n  - {task: world/grid4, name: far, low: -0.36, settings: {env.options: [goal=3]}}\n",
    }
    path = tmp_path / f"mine.{suffix}"
    path.write_text(text[suffix])
    entries = read(path)
    assert [e.title for e in entries] == ["chain", "far"]
    assert entries[1].options == {"goal": 3} and entries[1].low == -0.36
    task = registry.task(f"suite/{path}")
    assert list(task.spec.tasks) == ["chain", "far"]
    assert check_task(task, steps=50) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks = []", "list of `tasks`"),
        ("taks = ['world/chain']\ntasks = ['world/chain']", "did you mean tasks"),
        ("tasks = ['os:system']", "code"),
        ("tasks = [{task = 'world/chain', lo = 1}]", "no key 'lo'"),
        ("tasks = [3]", "neither"),
        ("tasks = [", "not readable"),
        ("tasks = [{task = 'world/chain', low = 1}]", "low and high of chain, .*, are both 1"),
        ("tasks = [{task = 'world/chain', settings = {env = {repeat = 8}}}]", "sets env.repeat, which all tasks of one agent share"),
    ],
)
def test_files_that_are_no_suite(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read(path)


def test_an_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(KeyError, match="dmc-walker"):
        registry.task("suite/dmc-walkers")


# ---------------------------------------------------------------------------------------------------- judging


def evaluation(*returns: float) -> Evaluation:
    return Evaluation(mode="sample", returns=returns, lengths=(5,) * len(returns), terminated=(True,) * len(returns))


def test_scores_means_and_the_worst_task() -> None:
    easy, hard = (Member(obs={}, action={}, low=low, high=high, success=success) for low, high, success in ((0, 10, 5), (-10, 10, None)))
    members = {"easy": easy, "hard": hard}
    found = Round(members, {"hard": evaluation(-5.0, -5.0), "easy": evaluation(4.0, 6.0)})
    one, two, total = found.rows()
    assert (one["task"], one["score_mean"], one["success_mean"]) == ("easy", 0.5, 0.5)
    assert (two["task"], two["score_mean"]) == ("hard", 0.25) and "success_mean" not in two
    assert "task" not in total
    assert (total["return_mean"], total["score_mean"], total["score_worst"], total["worst"]) == (0.0, 0.375, 0.25, "hard")
    assert (total["success_mean"], total["success_worst"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="hard"):
        Round(members, {"easy": evaluation(1.0)})
    with pytest.raises(ValueError, match="'other'"):
        Round(members, {"easy": evaluation(1.0), "hard": evaluation(1.0), "other": evaluation(1.0)})


def test_the_report_has_a_table_of_the_tasks(tmp_path: Path) -> None:
    members = {"easy": Member(obs={}, action={}, high=10, success=5), "hard": Member(obs={}, action={}, low=-10, high=10)}
    rows = Round(members, {"easy": evaluation(4.0, 6.0), "hard": evaluation(-5.0)}).rows()
    lines = [{"step": 100, "time": 0.0, "kind": "eval", **row} for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    assert "5.0, score 0.50, success 50%" in page and "-5.0, score 0.25" in page
    assert "<td>hard, score 0.25</td>" in page and "0.0, score 0.38, success 50%" in page


def test_the_judge_plays_every_task() -> None:
    make = partial(registry.task, GRID)
    rows = Judge().baseline(make, episodes=6, seed=0)
    assert [row.get("task") for row in rows] == [f"corner{k}" for k in range(4)] + [None]
    assert all(row["mode"] == "random" and len(row["returns"]) == 6 for row in rows[:4])
    spec = make().spec
    found = Judge().evaluate(RandomPlayer(spec, 0), make, episodes=2, seed=0, mode="sample", video=None)
    assert len(found.returns) == 8
