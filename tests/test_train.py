"""The training loop on small real tasks: what is stored, counted, saved, and that a stopped run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polydream
from polydream.core import checkpoint
from polydream.core.columns import PRIORITY
from polydream.core.config import ConfigError
from polydream.core.launch import make_task
from polydream.core.log import read_metrics
from polydream.core.presets import resolve
from polydream.core.run import RunConfig
from polydream.core.train import Trainer, train
from polydream.eval.judge import Judge


def smoke(tmp_path: Path, **overrides: Any) -> RunConfig:
    values = {"dir": str(tmp_path / "run"), "log.mlflow": False, "eval.video": False, "steps": 200, "threads": 1, "eval.baseline": 2}
    return resolve(
        {"preset": "smoke", "task": overrides.pop("task", "gym/CartPole-v1")},
        values | {k.replace("__", "."): v for k, v in overrides.items()},
    )


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    run = train(smoke(tmp_path), Judge())
    rows = read_metrics(run)
    kinds = {r["kind"] for r in rows}
    assert {"run", "episode", "train", "eval", "report", "speed", "artifact"} <= kinds
    assert {r["mode"] for r in rows if r["kind"] == "eval"} == {"random", "sample", "mode"}
    assert (run / "config.yaml").is_file() and (run / "report.html").is_file()
    episodes = [r for r in rows if r["kind"] == "episode"]
    assert all(r["return"] == r["length"] for r in episodes), "CartPole pays 1 a step"
    assert sum(r["length"] for r in episodes) <= 200
    agent = polydream.load(run)
    action, state = agent.act(np.zeros(4, np.float32))
    action, state = agent.act(np.zeros(4, np.float32), state)
    assert int(action) in (0, 1)


def test_rows_are_stored_with_the_action_chosen_after_seeing_them(tmp_path: Path) -> None:
    """Episodes of one step: a row to act on, then a row that only ends."""
    cfg = smoke(tmp_path, task="world/bandit", steps=40)
    with Trainer(cfg) as trainer:
        for _ in range(100):
            trainer.collect()
        batch = trainer.replay.sample()
        first, last = batch["is_first"][:, 1:], batch["is_last"]
        assert bool((batch["reward"][:, 1:][first] == 0).all()), "reset rows have reward 0"
        assert bool((batch["action", "action"][last] == 0).all()), "the action of a last row is zero"
        assert bool((last[:, :-1] == first).all()), "one-step episodes: every last row is followed by a first one"


def test_updates_follow_the_train_ratio(tmp_path: Path) -> None:
    cfg = smoke(tmp_path, steps=300, ratio=32.0)  # half an update per row of 4 x 16
    with Trainer(cfg) as trainer:
        trainer.run()
        waited = cfg.batch * cfg.length
        expected = 1 + (trainer.count.rows - waited) * 32 / 64
        assert abs(trainer.count.updates - expected) <= 1
        assert int(trainer.agent.updates) == trainer.count.updates


@pytest.mark.parametrize("task", ["gym/CartPole-v1", "world/fourrooms"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, task: str) -> None:
    whole = smoke(tmp_path / "a", task=task, steps=240, eval__every=0)
    with Trainer(whole) as trainer:
        trainer.run()
        expected = {k: v.clone() for k, v in trainer.agent.state_dict().items()}
        counters = vars(trainer.count).copy()
    part = smoke(tmp_path / "b", task=task, steps=140, eval__every=0)
    with Trainer(part) as trainer:
        trainer.run()
    with Trainer(replace(part, steps=240), resume=Path(part.dir)) as trainer:
        assert trainer.step >= 140
        trainer.run()
        got = trainer.agent.state_dict()
        assert vars(trainer.count) == counters
        assert all(torch.equal(got[k], v) for k, v in expected.items())


def test_an_interrupt_saves_and_ends(tmp_path: Path) -> None:
    cfg = smoke(tmp_path, steps=10_000)
    with pytest.raises(KeyboardInterrupt), Trainer(cfg) as trainer:
        trainer._announce()
        while trainer.count.updates < 2:
            trainer.collect()
            for _ in range(trainer._due()):
                trainer.learn()
        raise KeyboardInterrupt
    assert checkpoint.complete(Path(cfg.dir) / "checkpoints")


def test_a_directory_holds_one_run(tmp_path: Path) -> None:
    train(smoke(tmp_path, steps=80))
    with pytest.raises(FileExistsError, match="polydream resume"):
        train(smoke(tmp_path, steps=80))


def test_several_environments_in_processes_learn_the_same(tmp_path: Path) -> None:
    results = []
    for name, processes in (("a", False), ("b", True)):
        cfg = smoke(tmp_path / name, steps=120, env__count=2, env__processes=processes)
        with Trainer(cfg) as trainer:
            trainer.run()
            results.append(trainer.agent.state_dict())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


def test_a_prioritised_replay_learns_how_badly_each_step_is_explained(tmp_path: Path) -> None:
    cfg = smoke(tmp_path, steps=150, replay__sampler="priority")
    with Trainer(cfg) as trainer:
        trainer.run()
        known = trainer.replay.segments.arrays[PRIORITY][: trainer.replay.steps]
        assert len(np.unique(known)) > 20, "every trained step has a priority of its own"


def test_random_first_decisions_are_uniform_and_known_to_the_agent(tmp_path: Path) -> None:
    cfg = smoke(tmp_path, task="world/bandit", random=400, steps=10_000)
    with Trainer(cfg) as trainer:
        chosen = []
        for _ in range(300):
            trainer.collect()
            assert trainer.collector.actions is not None
            chosen.append(int(trainer.collector.actions["action"][0]))
            if not trainer.envs._over[0]:
                assert int(trainer.collector.state["action", "action"][0].argmax()) == chosen[-1]
    arms = trainer.spec.action["action"].classes or 1
    free = chosen[::2]  # every other row ends an episode and has no action
    assert len(set(free)) == arms and max(np.bincount(free)) < 2.5 * len(free) / arms


def test_task_options_reach_the_task() -> None:
    fixed = resolve({"task": "world/fourrooms"}, {"env.options": "goal=5,limit=7"})
    task = make_task(fixed)
    goals = {tuple(int(task.reset(seed)["obs"][k]) for k in ("goal_x", "goal_y")) for seed in range(8)}
    assert len(goals) == 1 and task.spec.limit == 7
    with pytest.raises(ConfigError, match="name=value"):
        make_task(resolve({"task": "world/fourrooms"}, {"env.options": "goal"}))
    with pytest.raises(TypeError, match="goal"):
        make_task(resolve({"task": "world/fourrooms"}, {"env.options": "gaol=5"}))


@pytest.mark.parametrize("obs", ["pixels", "both"])
def test_pixels_train_and_dream(tmp_path: Path, obs: str) -> None:
    run = train(
        smoke(tmp_path, task="world/fourrooms", env__obs=obs, steps=100, env__size=64, agent__encoder__depth=2, agent__decoder__depth=2),
        Judge(),
    )
    assert list((run / "videos").glob("openloop-*-image.mp4"))
    report = next(r for r in read_metrics(run) if r["kind"] == "report")
    assert report["openloop/image"] > 0 and "overfit" in report
