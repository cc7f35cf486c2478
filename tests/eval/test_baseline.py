"""Model-free baselines: refused where they do not fit, logged and judged like our own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from polydream.baseline import _observation, applies, baseline
from polydream.core.config import ConfigError
from polydream.core.log import read_metrics
from polydream.core.specs import Space

QUIET = ["--log.mlflow", "false", "--eval.video", "false", "--eval.baseline", "2", "--eval.episodes", "3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "sb3-sak"], "did you mean 'sb3-sac'"),
        ([], "no baseline ''"),
        (["--method", "sb3-ppo", "--agent.rssm.deter", "3"], "means nothing to sb3-ppo"),
        (["--method", "sb3-ppo", "--ratio", "3"], "means nothing to sb3-ppo"),
    ],
)
def test_bad_words(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        baseline([*words, "--task", "world/chain"])


def test_options_that_apply() -> None:
    assert applies("env.repeat") and applies("seed") and not applies("batch") and not applies("envy")


def test_observations_are_boxes() -> None:
    classes = Space(shape=(2,), dtype="int32", classes=3)
    np.testing.assert_array_equal(_observation(classes, np.array([2, 0])), [0, 0, 1, 1, 0, 0])
    assert _observation(classes, np.array([[2, 0], [1, 1]]), batch=True).shape == (2, 6)
    assert _observation(Space(), np.float32(3.0)).tolist() == [3.0]
    picture = np.zeros((4, 4, 3), np.uint8)
    assert _observation(Space(shape=(4, 4, 3), dtype="uint8"), picture).shape == (4, 4, 3)


class TestTrained:
    """With stable-baselines3."""

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("stable_baselines3")

    @pytest.mark.parametrize(("method", "task"), [("sb3-sac", "world/chain"), ("sb3-dqn", "world/reach")])
    def test_the_wrong_kind_of_action(self, method: str, task: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"{method} is for"):
            baseline(["--method", method, "--task", task, "--dir", str(tmp_path / "run"), *QUIET])

    @pytest.mark.parametrize(("method", "task"), [("sb3-sac", "world/reach"), ("sb3-ppo", "world/reach"), ("sb3-dqn", "world/grid4")])
    def test_a_run_leaves_what_ours_leave(self, method: str, task: str, tmp_path: Path) -> None:
        run = tmp_path / "run"
        words = ["--method", method, "--task", task, "--steps", "400", "--env.repeat", "2", "--eval.every", "200", "--dir", str(run)]
        assert baseline([*words, *QUIET]) == 0
        rows = read_metrics(run)
        kinds = [row["kind"] for row in rows]
        assert {"run", "eval", "episode"} <= set(kinds)
        evaluations = [(row["step"], row["mode"]) for row in rows if row["kind"] == "eval"]
        assert evaluations == [(0, "random"), (200, "sample"), (200, "mode"), (400, "sample"), (400, "mode")]
        assert all(len(row["returns"]) == 3 for row in rows if row["kind"] == "eval" and row["mode"] != "random")
        episodes = [row for row in rows if row["kind"] == "episode"]
        assert all(row["step"] % 2 == 0 and row["step"] <= 400 for row in episodes)
        if task == "world/reach":
            assert {row["length"] for row in episodes} == {10} and episodes[0]["step"] == 20  # 20 steps are 10 decisions
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["variant"] == method and "agent" not in config and config["steps"] == 400
        assert (run / "report.html").is_file()
        with pytest.raises(ConfigError, match="already holds a run"):
            baseline([*words, *QUIET])

    def test_an_evaluation_is_repeated_and_leaves_training_alone(self) -> None:
        from stable_baselines3 import PPO

        from polydream.baseline import _Player, as_gymnasium
        from polydream.core.saving import generators
        from polydream.eval.judge import Judge
        from polydream.tasks.world import make

        env = as_gymnasium(make("reach"))
        player = _Player(PPO("MultiInputPolicy", env, seed=0), env, 3)
        judge, before = Judge(), generators()
        wanted: dict[str, Any] = {"episodes": 3, "seed": 0, "mode": "sample", "video": None}
        one, two = (judge.evaluate(player, lambda: make("reach"), **wanted).row()["returns"] for _ in range(2))
        assert one == two and len(set(one)) == 3
        after = generators()
        assert (after["torch"] == before["torch"]).all() and (after["numpy"]["keys"] == before["numpy"]["keys"]).all()

    @pytest.mark.slow
    def test_ppo_learns_a_bandit(self, tmp_path: Path) -> None:
        """The best arm gives 1, a random one 0.5."""
        run = tmp_path / "run"
        assert (
            baseline(["--method", "sb3-ppo", "--task", "world/bandit", "--steps", "8192", "--eval.every", "0", "--dir", str(run), *QUIET])
            == 0
        )
        assert read_metrics(run)[-1]["kind"] in ("eval", "artifact")
        final = [row for row in read_metrics(run) if row["kind"] == "eval"][-1]
        assert final["mode"] == "mode" and final["return_mean"] == 1.0
