"""A user's own file as `module:factory`: tasks, Gymnasium environments, options, repeated actions, pictures."""

import sys

import numpy as np
import pytest

from polydream.core.specs import Restorable, Task
from polydream.tasks import module, world
from polydream.tasks.base import Common
from polydream.tasks.check import check_task

SOURCE = '''
import gymnasium
import numpy as np

from polydream.tasks import world


class Ramp(gymnasium.Env):
    """Reward k at step k; ends after `length` steps."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length=5, render_mode=None):
        self.length, self.render_mode = length, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.k += 1
        return np.full(1, self.k, np.float32), float(self.k), self.k == self.length, False, {}

    def render(self):
        return np.full((10, 10, 3), 10 * self.k, np.uint8)


def chain(length: int = 8, seed: int = 0):
    return world.make("chain", length=length, seed=seed)


def own(obs, size, repeat):
    return world.make("reach", obs=obs, size=size, repeat=repeat)


def anything(**options):
    assert set(options) <= {"length", "render_mode"}, options
    return Ramp(**options)


def number():
    return 3


word = "text"
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "own_envs.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_envs"
    sys.modules.pop("own_envs", None)


def act(index):
    return {"action": np.array(index)}


def test_a_task_is_used_as_it_is(mine):
    task = module.make(f"{mine}:chain", length=5)
    assert isinstance(task, Task) and isinstance(task, Restorable)
    assert task.spec.obs["vector"].shape == (5,)
    assert check_task(task) == []


def test_repeat_around_a_task(mine):
    task = module.make(f"{mine}:chain", length=5, repeat=3)
    assert (task.spec.repeat, task.spec.limit) == (3, 5)
    assert isinstance(task, Restorable) and check_task(task) == []
    task.reset(0)
    state = task.get_state()
    for _ in range(2):
        assert task.step(act(1))["obs"]["vector"].argmax() == 3
        last = task.step(act(1))
        assert last["reward"] == 1 and last["is_terminal"]
        task.set_state(state)


def test_success_within_a_repeated_action_is_told():
    class Once:
        """Succeeds at its first step of each episode."""

        spec = world.make("reach").spec

        def __init__(self):
            self.inner = world.make("reach")

        def reset(self, seed=None):
            self.steps = 0
            return self.inner.reset(seed) | {"success": False}

        def step(self, action):
            self.steps += 1
            return self.inner.step(action) | {"success": self.steps == 1}

        def close(self):
            pass

    task = module.Adapted(Once(), Common(repeat=3), "once")
    assert task.reset(0)["success"] is False
    still = {"action": np.zeros(1, np.float32)}
    assert [task.step(still)["success"] for _ in range(2)] == [True, False]


def test_pictures_around_a_task(mine):
    task = module.make(f"{mine}:chain", obs="both", size=8)
    assert set(task.spec.obs) == {"vector", "image"} and task.reset(0)["obs"]["image"].shape == (8, 8, 3)
    only = module.make(f"{mine}:chain", obs="pixels", size=8)
    assert list(only.spec.obs) == list(only.reset(0)["obs"]) == ["image"]
    assert check_task(task) == check_task(only) == []


def test_a_factory_that_names_common_options_gets_them(mine):
    task = module.make(f"{mine}:own", obs="both", size=12, repeat=4)
    assert task.name == "world/reach" and task.spec.repeat == 4
    assert task.reset(0)["obs"]["image"].shape == (12, 12, 3)
    first, second = (module.make(f"{mine}:chain", seed=seed)._seed for seed in (3, 4))
    assert (first, second) == (3, 4)


def test_a_gymnasium_environment(mine):
    task = module.make(f"{mine}:Ramp", length=4, repeat=3)
    assert isinstance(task, Restorable) and check_task(task) == []
    task.reset(0)
    assert task.step(act(0))["reward"] == 6
    last = task.step(act(0))
    assert last["reward"] == 4 and last["is_terminal"] and last["obs"]["vector"].tolist() == [4]


def test_pictures_of_a_gymnasium_environment(mine):
    for name in ("Ramp", "anything"):
        task = module.make(f"{mine}:{name}", obs="both", size=4)
        task.reset(0)
        assert (task.step(act(0))["obs"]["image"] == 10).all()


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("chain", {"lenght": 3}, TypeError, "own_envs:chain takes no option 'lenght'; did you mean length"),
        ("chian", {}, KeyError, "did you mean 'chain'"),
        ("number", {}, TypeError, "returned a int: no gymnasium.Env, no torchrl EnvBase and no task"),
        ("word", {}, TypeError, "is a str, not a function or class"),
        ("chain", {"camera": 1}, ValueError, "no cameras"),
        ("Ramp", {"camera": 1}, ValueError, "no cameras"),
        ("chain", {"obs": "state"}, ValueError, "obs must be one of"),
    ],
)
def test_bad_paths_and_options(mine, name, options, error, words):
    with pytest.raises(error, match=words):
        module.make(f"{mine}:{name}", **options)


def test_errors_of_the_users_module_pass_through(mine, tmp_path):
    (tmp_path / "broken_envs.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        module.make("broken_envs:make")
