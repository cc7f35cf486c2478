"""Environments that raise, die, hang and lie: the run goes on, and no sequence joins two episodes."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from polydream.core.faults import FILE, Faults
from polydream.core.specs import Space, Spec
from polydream.core.train import Trainer
from polydream.core.vector import EnvError, Vector
from polydream.eval.judge import Judge

from .harness import child, ended, lane, record, rows, tiny


class Faulty:
    """Episodes of 12 steps that count; does what `fault` says with probability p per step."""

    spec = Spec(obs={"count": Space(), "life": Space()}, action={"action": Space(dtype="int32", classes=2)})

    def __init__(self, fault: str, p: float, rng: random.Random) -> None:
        self.fault, self.p, self.rng, self.life = fault, p, rng, rng.random()

    def reset(self, seed: int | None = None) -> dict[str, Any]:
        self.count = 0
        self.life = self.rng.random()  # of this episode
        return self.row()

    def step(self, action: dict[str, np.ndarray]) -> dict[str, Any]:
        self.count += 1
        return self.row(self.rng.random() < self.p)

    def row(self, bad: bool = False) -> dict[str, Any]:
        row: dict[str, Any] = {"obs": {"count": np.float32(self.count), "life": np.float32(self.life)}, "reward": 1.0 * (self.count > 0)}
        row |= {"is_first": self.count == 0, "is_last": self.count == 12, "is_terminal": False}
        if not bad:
            return row
        if self.fault == "raise":
            raise ZeroDivisionError("on purpose")
        wrong = {
            "dtype": {"count": np.array("text")},
            "shape": {"count": np.zeros(3, np.float32)},
            "nan": {"count": np.float32("nan")},
            "inf": {"count": np.float32("inf")},
            "key": {"more": 1.0},
        }
        row["obs"] |= wrong.get(self.fault, {})
        row |= {"reward none": {"reward": None}, "reward nan": {"reward": float("nan")}, "done int": {"is_last": 1}}.get(self.fault, {})
        if self.fault == "no obs":
            del row["obs"]
        return {} if self.fault == "empty" else row

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        if self.fault == "raise":
            raise RuntimeError("not even this")


def check_episodes(trainer: Trainer) -> None:
    """In every stream each episode has one life, is counted without a gap, and ends where the next begins."""
    segments = trainer.replay.segments
    for stream in range(len(segments.end)):
        rows = segments.rows(np.array(stream), np.arange(segments.first[stream], segments.end[stream]))
        get = {k[-1]: segments.arrays[k][rows] for k in (("obs", "count"), ("obs", "life"), ("is_first",), ("is_last",), ("is_terminal",))}
        assert (get["is_last"][:-1] == get["is_first"][1:]).all(), "an episode ends exactly where the next begins"
        assert not get["is_terminal"].any(), "breaking off is not terminal"
        inside = ~get["is_first"][1:]
        assert (get["count"][1:][inside] == get["count"][:-1][inside] + 1).all(), "no step lost or doubled"
        assert (get["life"][1:][inside] == get["life"][:-1][inside]).all(), "no sequence joins two episodes"


FAULTS = ("raise", "dtype", "shape", "nan", "inf", "key", "reward none", "reward nan", "done int", "no obs", "empty")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_lives_through_faults_within_its_budget(fault: str, tmp_path: Path) -> None:
    steps = lane(20_000, 600) if fault == "raise" else lane(2000, 300)
    rng = random.Random(3)
    cfg = tiny(tmp_path / "run", env__count=2, env__restarts=10**6, steps=10**6, warmup=10**6, replay__capacity=50_000)
    with Trainer(cfg) as trainer:
        faults = trainer.envs.faults
        trainer.envs.close()
        trainer.envs = Vector([lambda: Faulty(fault, 0.01 if fault == "raise" else 0.05, rng)] * 2, seed=0, faults=faults)
        trainer.spec = trainer.envs.spec
        trainer.collect = lambda: collect(trainer)  # type: ignore[method-assign]
        trainer.replay = fresh_replay(trainer)
        for _ in range(steps // 2):
            trainer.collect()
        assert faults is not None and faults.total > (50 if steps > 5000 else 1)
        check_episodes(trainer)
        assert (tmp_path / "run" / FILE).read_text().count("----") == faults.total
    record(f"environment faults: {fault}, {faults.total} of them", 1, 1)


def fresh_replay(trainer: Trainer) -> Any:
    from polydream.core.replay import Replay

    latent = {"deter": Space(shape=(1,))}
    return Replay(Faulty.spec, latent, trainer.cfg.replay, batch=2, length=8, streams=2)


def collect(trainer: Trainer) -> None:
    """The part of `Trainer.collect` around environments and replay, for a spec that has no agent."""
    actions = {"action": np.zeros(2, np.int32)}
    steps = trainer.envs.step(actions if trainer.replay.steps else None)
    for i in trainer.envs.broken:
        trainer.replay.close_episode(i)
    trainer.replay.add({**steps, "action": actions, "latent": {"deter": np.zeros((2, 1), np.float32)}})


def test_workers_that_are_killed_or_stopped_are_replaced(tmp_path: Path) -> None:
    kills, hangs = lane(20, 2), lane(5, 1)
    cfg = tiny(
        tmp_path / "run",
        env__count=2,
        env__processes=True,
        env__restarts=1000,
        env__timeout=25.0,
        steps=10**6,
        warmup=10**6,
        task="world/fourrooms",
    )
    with Trainer(cfg) as trainer:
        for number in [signal.SIGKILL] * kills + [signal.SIGSTOP] * hangs:
            for _ in range(5):
                trainer.collect()
            os.kill(trainer.envs._envs[1]._process.pid, number)  # type: ignore[union-attr, arg-type]
        for _ in range(5):
            trainer.collect()
        assert trainer.envs.faults is not None and trainer.envs.faults.total == kills + hangs
        segments = trainer.replay.segments
        first, last = segments.arrays["is_first",], segments.arrays["is_last",]
        rows = segments.rows(np.array(1), np.arange(segments.first[1], segments.end[1]))
        assert (last[rows][:-1] == first[rows][1:]).all() and first[rows].sum() >= kills + hangs + 1
        workers = [e._process.pid for e in trainer.envs._envs]  # type: ignore[union-attr]
    assert not any(alive(pid) for pid in workers if pid)
    record("environment workers killed or hanging", kills + hangs, kills + hangs)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_worker_outlives_a_killed_run(tmp_path: Path) -> None:
    def run() -> None:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import the tests
        vector = Vector([Sleeper, Sleeper], seed=0, processes=True)
        vector.step(None)
        (tmp_path / "pids").write_text(" ".join(str(e._process.pid) for e in vector._envs))  # type: ignore[union-attr]
        vector.step({"action": np.zeros(2, np.int32)})  # both hang

    pid = child(run)
    until = time.monotonic() + 90
    while not (tmp_path / "pids").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    workers = [int(p) for p in (tmp_path / "pids").read_text().split()]
    while any(alive(p) for p in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(p) for p in workers)


class Sleeper(Faulty):
    """Hangs in its first step."""

    def __init__(self) -> None:
        super().__init__("", 0.0, random.Random(0))

    def step(self, action: dict[str, np.ndarray]) -> dict[str, Any]:
        time.sleep(10_000)
        return self.row()


def test_a_spent_budget_is_one_line_with_the_environment_and_a_traceback_in_a_file(tmp_path: Path) -> None:
    now = [0.0]
    said: list[str] = []
    faults = Faults(2, 10.0, tmp_path, said.append, clock=lambda: now[0])
    rng = random.Random(0)
    vector = Vector([lambda: Faulty("raise", 1.0, rng)], seed=0, faults=faults)
    vector.step(None)
    for moment in (0.0, 1.0, 20.0, 21.0):  # the window forgets
        now[0] = moment
        row = vector.step({"action": np.zeros(1, np.int32)})
        assert row["is_first"].all() and vector.broken == [0]
    now[0] = 22.0
    with pytest.raises(
        EnvError, match=r"environment 0 \(.*\) failed \(ZeroDivisionError: on purpose\) and the budget is spent: 3 faults"
    ) as error:
        vector.step({"action": np.zeros(1, np.int32)})
    assert "\n" not in str(error.value) and len(said) == 4 and all("\n" not in line for line in said)
    assert (tmp_path / FILE).read_text().count("ZeroDivisionError: on purpose") == 5


class Stumbling:
    """A task that raises in its third step, as often as `left` says."""

    def __init__(self, task: Any, left: list[int]) -> None:
        self.task, self.left, self.spec, self.count = task, left, task.spec, 0

    def step(self, action: dict[str, np.ndarray]) -> dict[str, Any]:
        self.count += 1
        if self.count == 3 and self.left[0]:
            self.left[0] -= 1
            raise ZeroDivisionError("on purpose")
        return self.task.step(action)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["task"], name)


def test_an_evaluation_in_which_an_environment_fails_is_done_again_with_the_same_result(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 60, "eval__every": 30, "eval__episodes": 2, "env__restarts": 3, "log__report": 30}

    def play(name: str, faults: int, **more: Any) -> Trainer:
        with Trainer(tiny(tmp_path / name, **options | more), Judge()) as trainer:
            real, left = trainer.make_task, [faults]
            trainer.make_task = lambda: Stumbling(real(), left)  # type: ignore[assignment, arg-type, return-value]
            trainer.run()
        return trainer

    whole, broken = play("whole", 0), play("broken", 3)
    assert (whole.faults.total, broken.faults.total) == (0, 3)
    scores = [[r for r in rows(tmp_path / name) if r["kind"] in ("eval", "report")] for name in ("whole", "broken")]
    assert repr(scores[0]) == repr(scores[1]) and len(scores[0]) > 4
    assert len(whole.heldout.episodes) == len(broken.heldout.episodes) > 0
    with pytest.raises(EnvError, match=r"evaluation failed \(ZeroDivisionError: on purpose\) and the budget is spent: 1 faults") as error:
        play("spent", 1, env__restarts=0)
    assert "\n" not in str(error.value) and (tmp_path / "spent" / FILE).read_text().count("ZeroDivisionError: on purpose") >= 1
    record("evaluations in which an environment fails", 1, 1)
