"""TorchRL on both sides: its environments as tasks, and an agent as its policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as g
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, NonTensor, OneHot, Unbounded
from torchrl.envs import EnvBase, ExplorationType, GymEnv, PendulumEnv, SerialEnv, set_exploration_type

from polydream.core import registry
from polydream.core.launch import make_agent, make_task
from polydream.core.player import Player
from polydream.core.presets import resolve
from polydream.core.train import train
from polydream.tasks import gym
from polydream.tasks import torchrl as family
from polydream.tasks.base import Common
from polydream.tasks.check import check_task
from polydream.torchrl import STATE, Policy


class Levers(EnvBase):
    """Every kind of spec. An episode terminates when both levers are pulled, is truncated after five steps, and shows what was done."""

    def __init__(self) -> None:
        super().__init__()
        action = {"lever": OneHot(3), "pair": MultiOneHot([2, 3]), "deep": Composite(force=Bounded(-2.0, 4.0, (2,)), on=Binary(2))}
        self.action_spec = Composite(action)
        seen = {"last": Unbounded((9,)), "count": Categorical(6), "pixels": Bounded(0, 255, (4, 4, 3), dtype=torch.uint8)}
        self.observation_spec = Composite(seen)
        self.reward_spec = Unbounded((1,))
        self.full_done_spec = Composite({k: Categorical(2, (1,), dtype=torch.bool) for k in ("done", "terminated", "truncated")})
        self.steps, self.bias = 0, 0.0

    def _seen(self, last: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"last": last, "count": torch.tensor(self.steps), "pixels": torch.full((4, 4, 3), 10 * self.steps, dtype=torch.uint8)}

    def _reset(self, tensordict: TensorDict | None = None, **_: Any) -> TensorDict:
        self.steps = 0
        return TensorDict(self._seen(torch.full((9,), self.bias)), [])

    def _step(self, tensordict: TensorDict) -> TensorDict:
        self.steps += 1
        parts = [tensordict[k].float() for k in ("lever", "pair", ("deep", "force"), ("deep", "on"))]
        terminated, truncated = torch.tensor([bool(tensordict["deep", "on"].all())]), torch.tensor([self.steps == 5])
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict({**self._seen(torch.cat(parts)[:9]), "reward": torch.tensor([float(self.steps)]), **ends}, [])

    def _set_seed(self, seed: int | None) -> None:
        self.bias = float(seed or 0)


def levers(**options: Any) -> gym.GymTask:
    return family.wrap(Levers(), Common(**options), "levers")


ACTION = {
    "lever": np.int32(2),
    "pair/0": np.int32(1),
    "pair/1": np.int32(0),
    "deep/force": np.array([-1, 1], np.float32),
    "deep/on": np.array([0, 1], np.int32),
}


def test_actions_arrive_in_the_environments_own_terms() -> None:
    task = levers()
    assert {k: (s.shape, s.classes) for k, s in task.spec.action.items()} == {
        "lever": ((), 3),
        "pair/0": ((), 2),
        "pair/1": ((), 3),
        "deep/force": ((2,), None),
        "deep/on": ((2,), 2),
    }
    assert task.reset(7)["obs"]["last"].tolist() == [7.0] * 9  # the seed reached it
    step = task.step(ACTION)
    assert step["obs"]["last"].tolist() == [0, 0, 1, 0, 1, 1, 0, 0, -2]  # one-hot lever, both of the pair, force in its bounds
    assert step["obs"]["count"] == 1 and step["reward"] == 1.0


def test_ends_stay_apart() -> None:
    task = levers()
    task.reset()
    rows = [task.step(ACTION) for _ in range(5)]
    assert [r["is_last"] for r in rows] == [False] * 4 + [True] and not rows[-1]["is_terminal"]
    task.reset()
    row = task.step({**ACTION, "deep/on": np.array([1, 1], np.int32)})
    assert row["is_last"] and row["is_terminal"]


class Over(Levers):
    """Says `done`, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.full_done_spec = Composite(done=Categorical(2, (1,), dtype=torch.bool))

    def _step(self, tensordict: TensorDict) -> TensorDict:
        return super()._step(tensordict).exclude("terminated", "truncated")


def test_who_says_only_done_terminates() -> None:
    task = family.wrap(Over(), Common(), "over")
    task.reset()
    rows = [task.step(ACTION) for _ in range(5)]
    assert [r["is_terminal"] for r in rows] == [r["is_last"] for r in rows] == [False] * 4 + [True]


def test_the_picture_is_what_the_environment_shows() -> None:
    task = levers(repeat=2)
    task.reset()
    task.step(ACTION)
    assert task.spec.obs["pixels"].image and task.render().shape == (4, 4, 3) and (task.render() == 20).all()


@pytest.mark.parametrize(
    ("spec", "space"),
    [
        (Categorical(4), g.Discrete(4)),
        (Categorical(4, (2,)), g.MultiDiscrete([4, 4])),
        (OneHot(4), g.Discrete(4)),
        (OneHot(4, (2, 4)), g.MultiDiscrete([4, 4])),
        (MultiOneHot([2, 3]), g.MultiDiscrete([2, 3])),
        (MultiCategorical([2, 3]), g.MultiDiscrete([2, 3])),
        (Binary(3), g.MultiBinary((3,))),
        (Bounded(-1.0, 2.0, (3,)), g.Box(-1.0, 2.0, (3,))),
        (Unbounded((3,)), g.Box(-np.inf, np.inf, (3,))),
        (Unbounded((4, 4, 3), dtype=torch.uint8), g.Box(0, 255, (4, 4, 3), np.uint8)),
        (Composite(a=Composite(b=Categorical(2))), g.Dict({"a": g.Dict({"b": g.Discrete(2)})})),
    ],
)
def test_specs_as_spaces(spec: Any, space: g.Space[Any]) -> None:
    assert family.space_of(spec, "observation") == space


def test_what_arrays_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match="observation 'a/words' is a NonTensor"):
        family.space_of(Composite(a=Composite(words=NonTensor(()))), "observation")


def test_registered_environments_pass_the_kit_for_tasks() -> None:
    drawn = registry.task("torchrl/GymEnv", env_name="CartPole-v1", render_mode="rgb_array", limit=40)
    assert check_task(drawn, steps=100) == [] and drawn.spec.limit == 40
    (problem,) = check_task(registry.task("torchrl/PendulumEnv", limit=30), steps=100)
    assert "no picture" in problem
    drawn.close()


def test_the_limit_truncates() -> None:
    task = registry.task("torchrl/PendulumEnv", limit=6, repeat=2)
    task.reset(0)
    rows = [task.step({"action": np.zeros(1, np.float32)}) for _ in range(3)]
    assert [r["is_last"] for r in rows] == [False, False, True] and not rows[-1]["is_terminal"] and task.spec.limit == 3


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("PendulumEnvv", {}, ValueError, "did you mean PendulumEnv"),
        ("PendulumEnv", {"limit": -1}, ValueError, "limit must be a whole number"),
        ("PendulumEnv", {"camera": 1}, ValueError, "has no cameras"),
        ("PendulumEnv", {"obs": "pixels"}, ValueError, "has no picture"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        family.make(name, **options)


def test_several_environments_in_one_are_refused() -> None:
    with pytest.raises(ValueError, match="has batch size"):
        family.wrap(SerialEnv(2, PendulumEnv), Common(), "two")


def test_a_factory_may_return_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "swing.py").write_text("from torchrl.envs import PendulumEnv\ndef make():\n    return PendulumEnv()\n")
    monkeypatch.chdir(tmp_path)
    task = registry.task("swing:make", repeat=3)
    assert task.reset(0)["is_first"] and task.spec.repeat == 3 and "th" in task.spec.obs


def test_training_on_one(tmp_path: Path) -> None:
    options = {"dir": str(tmp_path / "run"), "steps": 120, "log.mlflow": False, "env.options": "limit=40", "replay.capacity": 400}
    cfg = resolve({"preset": "smoke", "task": "torchrl/PendulumEnv"}, options)
    assert (train(cfg) / "metrics.jsonl").read_text().count('"kind": "episode"') >= 2


# ----------------------------------------------------------------------------------------------------------- the agent as a policy


def player(task: str, variant: str = "base") -> Player:
    cfg = resolve({"preset": "smoke", "task": task, "variant": variant}, {})
    made = make_task(cfg)
    made.close()
    return Player(make_agent(cfg, made.spec), seed=3)


@pytest.mark.parametrize("variant", ["base", "hierarchical"])
def test_a_rollout_does_what_the_player_does(variant: str) -> None:
    policy = Policy(player("gym/CartPole-v1", variant), GymEnv("CartPole-v1"))
    rows = policy.equip(GymEnv("CartPole-v1")).rollout(60, policy, break_when_any_done=False)
    assert rows["is_init"].sum() > 1, "several episodes"
    again, state = player("gym/CartPole-v1", variant), None
    for row in rows.unbind(0):
        seen = {"vector": row["observation"].numpy()[None]}
        action, state = again.act(seen, state, is_first=row["is_init"].numpy())
        assert int(action["action"][0]) == int(row["action"].argmax())
        for key in ("deter", "stoch"):
            torch.testing.assert_close(row["next", STATE, key], state[key][0])


def test_continuous_actions_are_in_the_environments_bounds() -> None:
    agent = player("gym/Pendulum-v1")
    policy = Policy(agent, GymEnv("Pendulum-v1"))
    rows = policy.equip(GymEnv("Pendulum-v1")).rollout(20, policy)
    assert rows["action"].abs().max() <= 2.0
    torch.testing.assert_close(rows["action"], 2 * rows["next", STATE, "action", "action"].clamp(-1, 1))


def test_batches_of_environments_and_collectors() -> None:
    several = SerialEnv(3, lambda: GymEnv("CartPole-v1"))
    policy = Policy(player("gym/CartPole-v1"), several)
    rows = policy.equip(several).rollout(40, policy, break_when_any_done=False)
    assert rows.batch_size == (3, 40) and (rows["action"].sum(-1) == 1).all()
    one = GymEnv("CartPole-v1")
    policy = Policy(player("gym/CartPole-v1"), one)
    collector = Collector(policy.equip(one), policy, frames_per_batch=32, total_frames=64)
    assert [batch.batch_size[0] for batch in collector] == [32, 32]
    collector.shutdown()


def test_exploration_type_chooses_the_mode() -> None:
    env = GymEnv("Pendulum-v1")
    begin = Policy(player("gym/Pendulum-v1"), env).equip(env).reset()
    for kind, mode in ((ExplorationType.DETERMINISTIC, "mode"), (ExplorationType.MODE, "mode"), (ExplorationType.RANDOM, "sample")):
        with set_exploration_type(kind):
            chosen = Policy(player("gym/Pendulum-v1"), env)(begin.clone())["action"]
        expected = player("gym/Pendulum-v1").act(begin["observation"].numpy(), mode=mode)[0]
        torch.testing.assert_close(chosen, torch.as_tensor(expected))


def test_goals_and_other_hidden_observations_are_passed_on() -> None:
    agent = player("world/fourrooms", "goal")
    assert {"goal_x", "goal_y"} <= set(agent.spec.obs) - set(agent.spec.visible)

    class Rooms(Levers):
        def __init__(self) -> None:
            super().__init__()
            self.action_spec = Composite(action=Categorical(5))
            self.observation_spec = Composite({k: Categorical(11) for k in ("x", "y", "goal_x", "goal_y")})

        def _seen(self, last: torch.Tensor) -> dict[str, torch.Tensor]:
            return {k: torch.tensor(v) for k, v in {"x": 1, "y": 2, "goal_x": 7, "goal_y": 8}.items()}

        def _step(self, tensordict: TensorDict) -> TensorDict:
            end = torch.tensor([False])
            flags = {"terminated": end, "truncated": end, "done": end}
            return TensorDict({**self._seen(end), "reward": torch.zeros(1), **flags}, [])

    policy = Policy(agent, Rooms())
    rows = policy.equip(Rooms()).rollout(2, policy)
    told = rows["next", STATE, "goal"]
    assert told.shape[0] == 2 and told[0].equal(told[1]) and {7, 11 + 8} == set(told[0].nonzero().flatten().tolist())


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="the agent knows 'vector'"):
        Policy(player("gym/CartPole-v1"), PendulumEnv())
    with pytest.raises(ValueError, match="'vector' is .* but the agent was trained on"):
        Policy(player("gym/CartPole-v1"), GymEnv("Pendulum-v1"))
    policy = Policy(player("gym/CartPole-v1"), GymEnv("CartPole-v1"))
    with pytest.raises(KeyError, match="'is_init' is missing"):
        policy(GymEnv("CartPole-v1").reset())


def test_keys_may_be_renamed() -> None:
    ends = []
    for keys in ({}, {"th": "thdot", "thdot": "th"}):
        env = PendulumEnv()
        env.set_seed(0)
        policy = Policy(player("torchrl/PendulumEnv"), env, keys=keys)
        ends.append(policy.equip(env).rollout(4, policy)[-1][STATE, "deter"])
    assert not torch.allclose(*ends)
