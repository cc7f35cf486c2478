"""The Minecraft adapter on a game that answers as MineRL 0.4.4 does; MineRL itself (Java 8) is not among what tests install."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polydream.core.config import ConfigError
from polydream.tasks import gym, minecraft
from polydream.tasks.base import Common
from polydream.tasks.check import check_task


class Game:
    """Digs one log for each attack and dies at the 30th step."""

    observation_space = {"inventory": SimpleNamespace(spaces={"log": None, "diamond": None, "stone_pickaxe": None})}
    action_space = SimpleNamespace(noop=lambda: {"attack": 0, "camera": (0.0, 0.0), "equip": "none"})

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.told: list[dict[str, Any]] = []
        self.bag = {"log": 0, "diamond": 0, "stone_pickaxe": 0}
        self.clock = 0

    def _seen(self) -> dict[str, Any]:
        return {"pov": np.full((64, 64, 3), self.clock, np.uint8), "inventory": {k: np.array(v) for k, v in self.bag.items()}}

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def reset(self) -> dict[str, Any]:
        self.bag, self.clock = dict.fromkeys(self.bag, 0), 0
        return self._seen()

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        self.told.append(action)
        self.clock += 1
        self.bag["log"] += action["attack"]
        return self._seen(), 99.0, self.clock == 30, {}

    def close(self) -> None:
        """Nothing to end."""


def test_a_milestone_pays_once_and_death_terminates() -> None:
    game = Game()
    env = minecraft.Minecraft(game, seed=7)
    seen, _ = env.reset()
    assert game.seeds == [7] and seen["inventory"].tolist() == [0, 0, 0]
    attack = minecraft.ACTIONS.index({"attack": 1})
    rewards = [env.step(attack)[1] for _ in range(3)]
    assert rewards == [1.0, 0.0, 0.0]
    game.bag["diamond"] = 1
    seen, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated, info["milestones"]) == (1.0, False, False, 2)
    assert seen["inventory"].tolist() == pytest.approx([np.log(2), np.log(4), 0])  # diamond, log, stone_pickaxe
    assert [env.step(0)[2] for _ in range(26)] == [False] * 25 + [True]
    env.reset()
    assert env.step(attack)[1] == 1.0 and game.seeds == [7]


def test_the_best_pickaxe_is_held() -> None:
    game = Game()
    env = minecraft.Minecraft(game)
    env.reset()
    best = minecraft.ACTIONS.index({"equip": "best"})
    env.step(best)
    game.bag["stone_pickaxe"] = 1
    env.step(0)
    env.step(best)
    assert [action["equip"] for action in game.told] == ["none", "none", "stone_pickaxe"]


def test_half_an_hour_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minecraft, "LENGTH", 5)
    env = minecraft.Minecraft(Game())
    env.reset()
    assert [env.step(0)[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


def test_it_is_a_task_of_ours() -> None:
    task = gym.wrap(minecraft.Minecraft(Game()), Common(seed=0), "minecraft")
    assert set(task.spec.obs) == {"image", "inventory"} and task.spec.action["action"].classes == 25
    assert not [problem for problem in check_task(task, steps=60) if "seed" not in problem]


@pytest.mark.skipif(find_spec("minerl") is not None, reason="MineRL is installed")
def test_without_minerl_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="needs MineRL.*Java 8"):
        minecraft.make()
