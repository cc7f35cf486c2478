"""Episodes are counted by hand on a task whose every number is known, and on a real environment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest

from polydream.core.rng import seed_for
from polydream.core.specs import Space, Spec, Step
from polydream.eval.rollout import Evaluation, Mode, RandomPlayer, evaluate


class Counter:
    """Counts up by the action taken (0 or 1); an episode lasts 2 + seed % 4 decisions and ends by itself where that is odd."""

    opened: list[Counter] = []

    def __init__(self, *, success_at: int | None = None, broken: bool = False) -> None:
        extras = {"task": Space(dtype="int32", classes=7)}
        self.spec = Spec(obs={"count": Space()}, action={"go": Space(dtype="int32", classes=2)}, extras=extras)
        self.success_at, self.broken, self.closed = success_at, broken, False
        self.seeds: list[int | None] = []
        Counter.opened.append(self)

    def reset(self, seed: int | None = None) -> Step:
        self.seeds.append(seed)
        self.count, self.time, self.length = 0, 0, 2 + (seed or 0) % 4
        return self._step(0.0, first=True)

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        self.count += int(action["go"])
        self.time += 1
        return self._step(float(self.count))

    def _step(self, reward: float, *, first: bool = False) -> Step:
        last = self.time == self.length
        step: Step = {
            "obs": {"count": np.float32(self.count)},
            "reward": np.float32(reward),
            "is_first": first,
            "is_last": last,
            "is_terminal": last and self.length % 2 == 1,
            "task": np.int32(5),
        }
        return step | ({} if self.success_at is None else {"success": self.time == self.success_at})

    def render(self) -> np.ndarray:
        if self.broken:
            raise RuntimeError("gladLoadGL error\nmore")
        return np.full((8, 8, 3), 20 * self.time, np.uint8)

    def close(self) -> None:
        self.closed = True


class Always:
    """Goes on each step ("mode") or each second one ("sample"); remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, np.ndarray], np.ndarray]] = []

    def initial(self, n: int) -> np.ndarray:
        return np.full(n, 99)

    def act(self, obs: Mapping[str, np.ndarray], state: Any, *, is_first: np.ndarray, mode: Mode) -> tuple[dict[str, np.ndarray], Any]:
        self.seen.append(({k: v.copy() for k, v in obs.items()}, is_first.copy()))
        state = np.where(is_first, 0, state + 1)
        go = np.ones_like(state) if mode == "mode" else state % 2
        return {"go": go.astype(np.int32)}, state


def lengths(seed: int, episodes: int) -> list[int]:
    return [2 + seed_for(seed, "eval", k) % 4 for k in range(episodes)]


@pytest.mark.parametrize("parallel", [1, 2, 5, 20])
@pytest.mark.parametrize("mode", ["sample", "mode"])
def test_returns_and_lengths_by_hand(parallel: int, mode: Mode) -> None:
    result = evaluate(Always(), Counter, episodes=9, seed=3, mode=mode, parallel=parallel)
    wanted = lengths(3, 9)
    assert len(set(wanted)) > 1
    assert list(result.lengths) == wanted
    counts = [[(t + 1) if mode == "mode" else (t + 1) // 2 for t in range(n)] for n in wanted]
    assert list(result.returns) == [sum(c) for c in counts]
    assert list(result.terminated) == [n % 2 == 1 for n in wanted]
    assert result.successes is None
    assert result.video is None
    assert result.mode == mode


def test_seeds_are_those_of_the_evaluation_stream_and_tasks_are_closed() -> None:
    Counter.opened.clear()
    evaluate(Always(), Counter, episodes=7, seed=11, parallel=3)
    assert len(Counter.opened) == 3
    used = [seed for task in Counter.opened for seed in task.seeds]
    assert sorted(used) == sorted(seed_for(11, "eval", k) for k in range(7))
    assert not set(used) & {seed_for(11, f"env{i}", k) for i in range(8) for k in range(1000)}
    assert all(task.closed for task in Counter.opened)


def test_tasks_are_closed_after_an_error_too() -> None:
    class Failing(Always):
        def act(self, *args: Any, **kwargs: Any) -> Any:
            raise ArithmeticError

    Counter.opened.clear()
    with pytest.raises(ArithmeticError):
        evaluate(Failing(), Counter, episodes=4, seed=0)
    assert len(Counter.opened) == 4
    assert all(task.closed for task in Counter.opened)


def test_player_sees_stacked_observations_extras_and_first_flags() -> None:
    player = Always()
    evaluate(player, Counter, episodes=2, seed=0, mode="mode", parallel=1)
    first, second = lengths(0, 2)
    flags = [bool(flag[0]) for _, flag in player.seen]
    assert flags == [True] + [False] * (first - 1) + [True] + [False] * (second - 1)
    assert [float(obs["count"][0]) for obs, _ in player.seen] == [*range(first), *range(second)]
    assert all(obs["task"].tolist() == [5] for obs, _ in player.seen)
    assert set(player.seen[0][0]) == {"count", "task"}


def test_success_at_any_time_and_at_the_end() -> None:
    wanted = lengths(3, 9)
    result = evaluate(Always(), lambda: Counter(success_at=3), episodes=9, seed=3)
    assert result.successes == tuple(n >= 3 for n in wanted)
    assert result.final_successes == tuple(n == 3 for n in wanted)
    assert result.successes != result.final_successes
    row = result.row()
    assert row["success_mean"] == pytest.approx(sum(n >= 3 for n in wanted) / 9)
    assert row["final_success_mean"] == pytest.approx(sum(n == 3 for n in wanted) / 9)


def test_max_steps_breaks_off_without_terminating() -> None:
    result = evaluate(Always(), Counter, episodes=9, seed=3, mode="mode", max_steps=3)
    wanted = lengths(3, 9)
    assert list(result.lengths) == [min(n, 3) for n in wanted]
    assert list(result.terminated) == [n == 3 for n in wanted]


def test_row_by_hand() -> None:
    result = Evaluation(mode="mode", returns=(1.0, 3.0), lengths=(10, 20), terminated=(True, False))
    assert result.row() == {
        "mode": "mode",
        "return_mean": 2.0,
        "return_std": 1.0,
        "returns": [1.0, 3.0],
        "length_mean": 15.0,
        "terminated_mean": 0.5,
    }


def test_video_of_the_first_episode(tmp_path: Path) -> None:
    path = tmp_path / "videos/eval.mp4"
    result = evaluate(Always(), Counter, episodes=3, seed=3, video=path, fps=10)
    assert result.video == path
    assert result.warnings == ()
    with av.open(str(path)) as container:
        values = [int(frame.to_ndarray(format="rgb24").mean().round()) for frame in container.decode(video=0)]
    assert values == pytest.approx([20 * t for t in range(lengths(3, 1)[0] + 1)], abs=3)  # with the first and the last picture


def test_a_failing_camera_costs_one_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told once, by whoever plays
        result = evaluate(Always(), lambda: Counter(broken=True), episodes=3, seed=3, video=tmp_path / "eval.mp4")
    plain = evaluate(Always(), Counter, episodes=3, seed=3)
    assert result.returns == plain.returns
    assert result.video is None
    assert len(result.warnings) == 1
    assert "gladLoadGL error; " in result.warnings[0]
    assert "MUJOCO_GL=egl" in result.warnings[0]
    assert list(tmp_path.iterdir()) == []


def test_bad_numbers_are_named() -> None:
    for name in ("episodes", "parallel", "max_steps"):
        with pytest.raises(ValueError, match=name):
            evaluate(Always(), Counter, **{"episodes": 1, "seed": 0, name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'greedy'"):
        evaluate(Always(), Counter, episodes=1, seed=0, mode="greedy")  # type: ignore[arg-type]


def test_random_player_covers_every_action_and_repeats_itself() -> None:
    spec = Spec(
        obs={"x": Space()},
        action={
            "move": Space(shape=(3,), low=-5.0, high=5.0),
            "jump": Space(dtype="bool", classes=2),
            "pick": Space(shape=(2,), dtype="int32", classes=4),
        },
    )
    player = RandomPlayer(spec, seed=1)
    state = player.initial(4)
    drawn: dict[str, list[np.ndarray]] = {key: [] for key in spec.action}
    first = np.zeros(4, bool)
    for _ in range(100):
        action, state = player.act({}, state, is_first=first, mode="sample")
        for key, value in action.items():
            assert value.shape == (4, *spec.action[key].shape)
            assert value.dtype == spec.action[key].dtype
            drawn[key].append(value)
    move = np.concatenate(drawn["move"])
    assert move.min() < -0.95
    assert 0.95 < move.max() <= 1
    assert abs(move.mean()) < 0.06
    assert set(np.unique(np.concatenate(drawn["pick"]))) == {0, 1, 2, 3}
    assert set(np.unique(np.concatenate(drawn["jump"]))) == {False, True}
    again = player.act({}, player.initial(4), is_first=first, mode="sample")[0]
    assert all((again[key] == drawn[key][0]).all() for key in again)
    other = RandomPlayer(spec, seed=2).act({}, (4, 0), is_first=first, mode="sample")[0]
    assert (other["move"] != again["move"]).all()


class CartPole:
    """The real CartPole-v1 behind the task contract."""

    def __init__(self) -> None:
        self.spec = Spec(obs={"state": Space(shape=(4,))}, action={"push": Space(dtype="int64", classes=2)})
        self.env: Any = gymnasium.make("CartPole-v1")

    def reset(self, seed: int | None = None) -> Step:
        obs, _ = self.env.reset(seed=seed)
        return {"obs": {"state": obs}, "reward": 0.0, "is_first": True, "is_last": False, "is_terminal": False}

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        obs, reward, terminated, truncated, _ = self.env.step(int(action["push"]))
        return {"obs": {"state": obs}, "reward": reward, "is_first": False, "is_last": terminated or truncated, "is_terminal": terminated}

    def render(self) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        self.env.close()


def test_random_play_of_a_real_environment_repeats_exactly() -> None:
    spec = CartPole().spec
    runs = [evaluate(RandomPlayer(spec, seed), CartPole, episodes=12, seed=4) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].returns != runs[2].returns
    assert runs[0].returns == tuple(float(n) for n in runs[0].lengths)  # one point for each decision
    assert 10 < runs[0].return_mean < 40  # about 22 is known of random play
    assert all(runs[0].terminated)
