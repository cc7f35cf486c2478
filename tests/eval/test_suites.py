"""Suites: what is in them, their published settings and aggregates, and suites of a user's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from polydream.core.config import ConfigError, difference
from polydream.core.presets import resolve
from polydream.eval import metrics, references
from polydream.eval.grid import settings
from polydream.eval.suites import SUITES, Suite, find, read

COUNTS = {"dmc-proprio": 18, "dmc-vision": 20, "atari100k": 26, "crafter": 1, "minigrid-memory": 6, "minecraft": 1, "worlds": 3}


def table(suite: Suite, method: str, end: int, last: int) -> np.ndarray:
    return references.table(suite.scores, method, tuple(entry.published for entry in suite.tasks), end, last)


def normal(suite: Suite, scores: np.ndarray) -> np.ndarray:
    return metrics.normalise(scores, np.array([e.low for e in suite.tasks]), np.array([e.high for e in suite.tasks]))


# ---------------------------------------------------------------------------------------------------- published aggregates


def test_published_atari_aggregates_in_the_last_10k_frames() -> None:
    suite = find("atari100k")
    scores = normal(suite, table(suite, "dreamerv3", suite.steps, suite.window))
    assert scores.shape == (5, 26) and np.isfinite(scores).sum() == 122  # an episode may not end in the window
    assert round(100 * float(metrics.mean(scores)), 1) == 124.7
    assert round(100 * float(metrics.median(scores)), 1) == 49.4
    wider = normal(suite, table(suite, "dreamerv3", suite.steps, 20_000))
    assert [round(100 * float(f(wider)), 1) for f in (metrics.mean, metrics.median)] == [114.7, 45.5]


def test_published_proprio_aggregates_move_with_the_window() -> None:
    suite = find("dmc-proprio")
    expected = {30_000: (757.5, 885.3), 20_000: (757.8, 868.5), 50_000: (748.8, 838.5), 100_000: (742.4, 843.1)}
    for last, numbers in expected.items():
        scores = table(suite, "dreamerv3", suite.steps, last)
        assert scores.shape == (5, 18)
        assert (round(float(metrics.mean(scores)), 1), round(float(metrics.median(scores)), 1)) == numbers
    assert suite.window == 30_000


def test_published_vision_aggregates() -> None:
    suite = find("dmc-vision")
    scores = table(suite, "dreamerv3", suite.steps, suite.window)
    assert metrics.mean(scores) == pytest.approx(786.5, abs=0.1)
    assert metrics.median(scores) == pytest.approx(864.0, abs=0.1)


def test_published_methods_of_each_suite() -> None:
    assert references.methods("dmc_proprio") == ["dreamerv3", "dmpo", "d4pg", "ppo_fixhp"]
    assert references.methods("dmc_vision") == ["dreamerv3", "drqv2", "sac", "ppo_fixhp"]
    assert references.methods("atari100k") == ["dreamerv3", "ppo_fixhp"]
    assert references.methods("minecraft_diamond") == ["dreamerv3"]
    assert references.methods("") == []


@pytest.mark.parametrize(
    ("suite", "method", "mean", "median"),
    [("dmc-proprio", "d4pg", 735, 811), ("dmc-proprio", "dmpo", 685, 800), ("dmc-vision", "drqv2", 705, 771)],
)
def test_other_methods_agree_with_known_finals(suite: str, method: str, mean: float, median: float) -> None:
    """Last point of each seed, as tabulated from the original files before they were rounded."""
    found = find(suite)
    runs = [references.curve(found.scores, method, entry.published) for entry in found.tasks]
    finals = np.array([np.mean([row[np.isfinite(row)][-1] for row in curve.scores]) for curve in runs if curve is not None])
    assert finals.mean() == pytest.approx(mean, rel=0.02)
    assert np.median(finals) == pytest.approx(median, rel=0.03)


def test_every_published_task_is_in_the_files() -> None:
    for name in SUITES:
        suite = find(name)
        for method in references.methods(suite.scores):
            assert all(references.curve(suite.scores, method, entry.published) is not None for entry in suite.tasks), (name, method)
    assert references.curve("dmc_proprio", "dreamerv3", "dmc_quadruped_run") is None
    with pytest.raises(KeyError, match="quadruped_run"):
        references.table("dmc_proprio", "dreamerv3", ("dmc_quadruped_run",), 500_000, 30_000)


def test_a_run_without_a_point_in_the_window_is_missing() -> None:
    scores = references.table("atari100k", "dreamerv3", ("atari_boxing", "atari_pong"), 2_000, 1_000)
    assert np.isnan(scores).all() and scores.shape == (5, 2)


def test_atari_baselines() -> None:
    assert len(references.atari()) == 57
    assert references.atari()["pong"] == (-20.7, 14.6)


# ---------------------------------------------------------------------------------------------------- built-in suites


@pytest.mark.parametrize("name", sorted(SUITES))
def test_suites_hold_what_they_say(name: str) -> None:
    suite = find(name)
    assert suite.name == name and len(suite.tasks) == COUNTS[name]
    assert len({entry.name for entry in suite.tasks}) == len(suite.tasks)
    for entry in suite.tasks:
        assert entry.high > entry.low and suite.budget(entry) > suite.window > 0
        cfg = resolve(*split(settings(suite, entry, {})))
        assert cfg.env.repeat == int(suite.settings.get("env.repeat", "0"))


def split(options: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    chosen = ("size", "preset", "profile")
    return {k: v for k, v in options.items() if k in chosen}, {k: v for k, v in options.items() if k not in chosen}


@pytest.mark.parametrize(("name", "obs"), [("dmc-proprio", "vector"), ("dmc-vision", "pixels")])
def test_settings_of_the_control_suites_are_those_of_preset_reproduce(name: str, obs: str) -> None:
    suite = find(name)
    ours = resolve(*split(settings(suite, suite.tasks[0], {"steps": str(suite.steps), "task": suite.tasks[0].task})))
    theirs = resolve({"preset": "reproduce", "task": suite.tasks[0].task}, {"env.obs": obs})
    assert set(difference(ours, theirs)) == {"preset"}


def test_a_size_or_preset_replaces_the_published_learning_but_not_the_task() -> None:
    suite = find("dmc-vision")
    mine = settings(suite, suite.tasks[0], {"preset": "laptop"})
    assert mine == {"env.obs": "pixels", "env.repeat": "2", "preset": "laptop"}
    assert settings(suite, suite.tasks[0], {"ratio": "64"})["ratio"] == "64"
    assert settings(suite, suite.tasks[0], {"ratio": "64"})["size"] == "size12m"


def test_only_takes_names_and_whole_ids_and_refuses_others() -> None:
    suite = find("dmc-proprio")
    assert [e.name for e in suite.only(("walker_walk", "dmc/cheetah_run")).tasks] == ["cheetah_run", "walker_walk"]
    assert suite.only(()) == suite
    with pytest.raises(ConfigError, match="did you mean 'walker_walk'"):
        suite.only(("walker_wolk",))
    with pytest.raises(ConfigError, match="did you mean 'dmc-proprio'"):
        find("dmc-propio")


@pytest.mark.skipif(find_spec("minerl") is not None, reason="MineRL is installed")
def test_a_missing_library_is_said_with_its_cure() -> None:
    with pytest.raises(ConfigError, match="needs minerl, which is not installed: MineRL 0.4.4 needs Java 8"):
        find("minecraft").require()
    find("worlds").require()


# ---------------------------------------------------------------------------------------------------- a user's own

TOML = """
about = "two small ones"
steps = 3000
window = 500
[settings]
env.repeat = 2
[learning]
preset = "laptop"
[[tasks]]
task = "world/chain"
low = 0.26
[[tasks]]
task = "world/grid4"
steps = 4000
low = -0.36
settings.env.options = ["goal=2", "limit=30"]
"""


def test_a_suite_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    suite = find(str(path))
    assert (suite.name, suite.about, suite.seeds, suite.window) == ("mine", "two small ones", 3, 500)
    assert [suite.budget(entry) for entry in suite.tasks] == [3000, 4000]
    assert [(e.name, e.low, e.high) for e in suite.tasks] == [("chain", 0.26, 1.0), ("grid4[goal=2,limit=30]", -0.36, 1.0)]
    assert settings(suite, suite.tasks[1], {}) == {"preset": "laptop", "env.repeat": "2", "env.options": "goal=2,limit=30"}


def test_tasks_of_one_id_are_told_apart_by_options_or_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    row = "{task: gym/FrozenLake-v1, settings: {env: {options: is_slippery=false}}}"
    path.write_text(f"steps: 5\ntasks: [gym/FrozenLake-v1, {row}, {{task: gym/FrozenLake-v1, name: third, success: 1.0}}]\n")
    assert [e.name for e in read(path).tasks] == ["FrozenLake-v1", "FrozenLake-v1[is_slippery=false]", "third"]


def test_a_suite_from_yaml_may_just_name_tasks(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("steps: 1e4\nneeds: [yaml, install it]\ntasks: [world/chain, 'my_module:make_env']\n")
    suite = read(path)
    assert [(e.task, suite.budget(e)) for e in suite.tasks] == [("world/chain", 10_000), ("my_module:make_env", 10_000)]
    suite.require()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: []", "list of `tasks`"),
        ("tasks: [world/chain]", "world/chain has no budget"),
        ("steps: 5\nsedes: 3\ntasks: [a]", "did you mean 'seeds'"),
        ("steps: 5\ntasks: [{task: a, lo: 3}]", "did you mean 'low'"),
        ("steps: five\ntasks: [a]", "steps wants an integer"),
        ("steps: 5\ntasks: [3]", "neither a task's name"),
        ("steps: 5\nsettings: 3\ntasks: [a]", "wants a table of options"),
        ("tasks: [", "not readable"),
        ("steps: 5\ntasks: [{task: a, low: 1}]", "a: low and high, .*, are both 1"),
        ("steps: 5\ntasks: [gym/CartPole-v1, gym/CartPole-v1]", "two tasks are called 'CartPole-v1'; give each a `name`"),
    ],
)
def test_bad_suites_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(path)
    with pytest.raises(ConfigError, match="there is no suite file"):
        read(tmp_path / "nowhere.toml")
