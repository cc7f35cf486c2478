"""Gymnasium: every kind of space in both directions, ends of episodes, pictures, restoring, and helpful errors."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as g

from polydream.core.heldout import Heldout
from polydream.core.specs import Restorable, Space, Spec
from polydream.core.vector import Vector
from polydream.eval.rollout import RandomPlayer, evaluate
from polydream.tasks import gym, spaces
from polydream.tasks.base import Common
from polydream.tasks.check import check_task


def kinds(space, action=False):
    return {key: (leaf.space.shape, leaf.space.dtype, leaf.space.classes) for key, leaf in spaces.flatten(space, action=action).items()}


def box(low, high, shape, dtype):
    return g.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), dtype=np.dtype(dtype).type)


FLOAT = ("float32", None)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (box(-np.inf, np.inf, (4,), "float64"), {"vector": ((4,), *FLOAT)}),
        (box(0, 255, (8, 6, 3), "uint8"), {"image": ((8, 6, 3), "uint8", None)}),
        (box(0, 255, (3, 8, 6), "uint8"), {"image": ((8, 6, 3), "uint8", None)}),
        (box(0, 255, (4, 8, 6), "uint8"), {"image": ((8, 6, 4), "uint8", None)}),
        (box(0, 255, (8, 6), "uint8"), {"image": ((8, 6, 1), "uint8", None)}),
        (box(0, 255, (128,), "uint8"), {"vector": ((128,), *FLOAT)}),
        (box(0, 255, (8, 6, 5), "uint8"), {"vector": ((8, 6, 5), *FLOAT)}),
        (box(0, 10, (7, 7, 3), "uint8"), {"vector": ((7, 7, 3), "int32", 11)}),
        (box(-1, 1, (2, 2), "int64"), {"vector": ((2, 2), "int32", 3)}),
        (box(0, 1000, (2,), "int32"), {"vector": ((2,), *FLOAT)}),
        (g.Box(np.array([0, 0]), np.array([1, 2]), dtype=np.int32), {"vector": ((2,), *FLOAT)}),
        (g.Discrete(5), {"vector": ((), "int32", 5)}),
        (g.MultiBinary((2, 3)), {"vector": ((2, 3), "int32", 2)}),
        (g.MultiDiscrete([4, 4]), {"vector": ((2,), "int32", 4)}),
        (g.MultiDiscrete([4, 2]), {"vector/0": ((), "int32", 4), "vector/1": ((), "int32", 2)}),
        (
            g.Dict(
                {"a": g.Dict({"b": g.Discrete(2), "c": box(-1, 1, (), "float32")}), "t": g.Tuple([g.MultiDiscrete([2, 3]), g.Discrete(7)])}
            ),
            {"a/b": ((), "int32", 2), "a/c": ((), *FLOAT), "t/0/0": ((), "int32", 2), "t/0/1": ((), "int32", 3), "t/1": ((), "int32", 7)},
        ),
    ],
)
def test_observation_spaces(space, expected):
    assert kinds(space) == expected
    space.seed(0)
    leaves = spaces.flatten(space)
    for _ in range(20):
        for key, array in spaces.read(leaves, space.sample()).items():
            assert (array.shape, array.dtype) == (leaves[key].space.shape, np.dtype(leaves[key].space.dtype))
            assert leaves[key].space.classes is None or (array.min() >= 0 and array.max() < leaves[key].space.classes)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (box(-2, 2, (3,), "float32"), {"action": ((3,), *FLOAT)}),
        (g.Discrete(3, start=-1), {"action": ((), "int32", 3)}),
        (g.MultiDiscrete([3, 3, 3], start=[1, 1, 5]), {"action": ((3,), "int32", 3)}),
        (g.MultiDiscrete([3, 5], start=[0, 2]), {"action/0": ((), "int32", 3), "action/1": ((), "int32", 5)}),
        (g.MultiDiscrete([[2, 3], [4, 5]]), {f"action/{i}": ((), "int32", n) for i, n in enumerate((2, 3, 4, 5))}),
        (g.MultiBinary(4), {"action": ((4,), "int32", 2)}),
        (box(0, 99, (2,), "int64"), {"action": ((2,), "int32", 100)}),
        (g.Box(np.array([0, -3]), np.array([1, 3]), dtype=np.int32), {"action/0": ((), "int32", 2), "action/1": ((), "int32", 7)}),
        (
            g.Dict({"arm": box(-1, 1, (2,), "float64"), "hand": g.Tuple([g.Discrete(2), g.MultiDiscrete([2, 9])])}),
            {"arm": ((2,), *FLOAT), "hand/0": ((), "int32", 2), "hand/1/0": ((), "int32", 2), "hand/1/1": ((), "int32", 9)},
        ),
    ],
)
def test_action_spaces_and_their_way_back(space, expected):
    assert kinds(space, action=True) == expected
    leaves = spaces.flatten(space, action=True)
    spec = Spec(obs={"vector": Space()}, action={key: leaf.space for key, leaf in leaves.items()})
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert space.contains(spaces.write(space, leaves, spec.random_action(rng)))


def test_values_by_hand():
    leaves = spaces.flatten(
        g.Dict({"p": g.Discrete(3, start=10), "q": g.MultiDiscrete([2, 3], start=[5, 7]), "r": box(-1, 1, (2,), "int8")})
    )
    seen = spaces.read(leaves, {"p": 12, "q": np.array([6, 7]), "r": np.array([-1, 1], np.int8)})
    assert {k: v.tolist() for k, v in seen.items()} == {"p": 2, "q/0": 1, "q/1": 0, "r": [0, 2]}
    space = g.Tuple([box(0, 10, (2,), "float32"), g.MultiDiscrete([2, 3], start=[5, 7]), g.Discrete(3, start=10)])
    leaves = spaces.flatten(space, action=True)
    built = spaces.write(space, leaves, {"0": np.array([-1.0, 0.5]), "1/0": np.array(1), "1/1": np.array(2), "2": np.array(0)})
    assert built[0].tolist() == [0.0, 7.5] and built[1].tolist() == [6, 9] and built[2] == 10
    frame = np.arange(30, dtype=np.uint8).reshape(3, 2, 5)
    assert np.array_equal(spaces.read(spaces.flatten(box(0, 255, (3, 2, 5), "uint8")), frame)["image"], frame.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("space", "action", "error", "words"),
    [
        (g.Dict({"note": g.Text(5)}), False, TypeError, "observation 'note' is Text"),
        (g.Tuple([g.Discrete(2), g.Sequence(g.Discrete(2))]), True, TypeError, "action '1' is Sequence"),
        (g.Graph(g.Discrete(2), None), False, TypeError, "the observation space is Graph"),
        (g.OneOf([g.Discrete(2), g.Discrete(3)]), True, TypeError, "the action space is OneOf"),
        (box(0, 5000, (2,), "int32"), True, TypeError, "more than 1024 values"),
        (g.Dict({"a/b": g.Discrete(2), "a": g.Dict({"b": g.Discrete(2)})}), False, ValueError, "flatten to one key"),
        (g.Dict({}), False, ValueError, "nothing to see"),
    ],
)
def test_unsupported_spaces_are_named(space, action, error, words):
    with pytest.raises(error, match=words):
        spaces.flatten(space, action=action)


class Machine(gymnasium.Env):
    """Nested spaces in both directions; ends as it is told to."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = g.Dict({"count": g.Discrete(100, start=1), "level": box(-5, 5, (2,), "float64")})
    action_space = g.Dict({"end": g.Discrete(3), "push": box(0, 10, (2,), "float32")})

    def __init__(self, render_mode=None, thing=None):
        self.render_mode = render_mode
        if thing is not None:
            self.thing = thing

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.level = 1, self.np_random.normal(size=2)
        return self._see(), {}

    def _see(self):
        return {"count": self.count, "level": np.clip(self.level, -5, 5)}

    def step(self, action):
        assert self.action_space.contains(action)
        self.count += 1
        self.level += action["push"] / 10 + self.np_random.normal(size=2) / 100
        return self._see(), 1, action["end"] == 1, action["end"] == 2, {}

    def render(self):
        return np.full((20, 30, 3), self.count, np.uint8)


def machine(common=None, **options):
    return gym.wrap(Machine(**options), common or Common(), "machine")


class Judged(Machine):
    """Is accomplished while its count is 3, and does not end."""

    def __init__(self, key, render_mode=None):
        super().__init__(render_mode)
        self.key = key

    def step(self, action):
        return *super().step(action | {"end": 0 * action["end"]})[:4], {self.key: float(self.count == 3)}


PUSH = {"end": np.array(0), "push": np.zeros(2, np.float32)}


@pytest.mark.parametrize("key", ["success", "is_success"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_success_is_told_to_whoever_judges_and_to_nobody_else(key, repeat):
    def make():
        return gym.wrap(Judged(key, "rgb_array"), Common(repeat=repeat), "judged")

    task = make()
    assert check_task(make(), steps=30) == []
    told = [task.reset(0), *(task.step(PUSH) for _ in range(3))]
    assert "success" not in told[0] and "success" not in task.spec.extras
    # With three steps to a decision the one in which it was accomplished is among them.
    assert [step["success"] for step in told[1:]] == ([False, True, False] if repeat == 1 else [True, False, False])
    with Vector([make], seed=0) as envs:
        envs.step(None)
        row = envs.step({k: v[None] for k, v in PUSH.items()})
    assert "success" not in row
    found = evaluate(RandomPlayer(task.spec, 0), make, episodes=2, seed=0, max_steps=4)
    assert found.successes == (True, True) and found.row()["success_mean"] == 1.0
    held = Heldout(task.spec, 4)
    recorded = held.recording(lambda: gym.wrap(gymnasium.wrappers.TimeLimit(Judged(key), 12), Common(repeat=repeat), "judged"))()
    recorded.reset(0)
    while not (step := recorded.step(PUSH))["is_last"]:
        assert "success" in step
    batch = held.batch()
    assert batch is not None and "success" not in batch and "action" in batch and "action" not in step
    silent = machine()
    silent.reset(0)
    assert "success" not in silent.step(PUSH)


def push(end):
    return {"end": np.array(end), "push": np.array([-1.0, 1.0])}


def test_a_nested_environment():
    task = machine()
    assert check_task(task)[:1] == ["render() gives no picture, so there will be no videos: machine: " + gym.CLOSED]
    assert check_task(machine(render_mode="rgb_array")) == []
    task.reset(0)
    level = task._env.level.copy()
    step = task.step(push(0))
    assert int(step["obs"]["count"]) == 1 and step["reward"] == 1
    assert step["obs"]["level"][1] - level[1] == pytest.approx(1.0, abs=0.1) and abs(step["obs"]["level"][0] - level[0]) < 0.1


@pytest.mark.parametrize(("end", "terminal"), [(1, True), (2, False)])
def test_terminated_and_truncated_stay_apart(end, terminal):
    task = machine(Common(repeat=3))
    task.reset(0)
    assert task.step(push(0))["reward"] == 3
    step = task.step(push(end))
    assert step["reward"] == 1 and step["is_last"] and step["is_terminal"] == terminal


def test_time_limits_truncate_and_failures_terminate():
    car = gym.make("MountainCar-v0", repeat=7)
    assert car.spec.limit == 29  # 200 / 7
    car.reset(0)
    steps = [car.step({"action": np.array(1)}) for _ in range(29)]
    assert steps[-1]["is_last"] and not steps[-1]["is_terminal"] and not steps[-2]["is_last"]
    assert steps[0]["reward"] == -7 and steps[-1]["reward"] == -4
    pole = gym.make("CartPole-v1")
    step = pole.reset(0)
    while not step["is_last"]:
        step = pole.step({"action": np.array(0)})
    assert step["is_terminal"] and pole._env.get_wrapper_attr("_elapsed_steps") < 20


def test_pictures_are_rendered_and_resized():
    task = machine(Common(obs="both", size=16), render_mode="rgb_array")
    assert set(task.spec.obs) == {"count", "level", "image"}
    assert (task.reset(0)["obs"]["image"] == 1).all()
    assert (task.step(push(0))["obs"]["image"] == 2).all() and task.render().shape == (20, 30, 3)
    only = gym.make("CartPole-v1", obs="pixels", size=32)
    image = only.reset(0)["obs"]["image"]
    assert list(only.spec.obs) == ["image"] and image.shape == (32, 32, 3) and image.std() > 5
    with pytest.raises(ValueError, match="render mode 'rgb_array'"):
        machine(Common(obs="pixels"))


def play(task, rows):
    rng, steps = np.random.default_rng(1), []
    for _ in range(rows):
        steps.append(task.step(task.spec.random_action(rng)) if task._running else task.reset())
    return [(s["reward"], s["is_last"], {k: v.tolist() for k, v in s["obs"].items()}) for s in steps]


RESTORABLE = [
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Acrobot-v1",
    "FrozenLake-v1",
    "Taxi-v4",
    "Reacher-v5",
    "Ant-v5",
]


@pytest.mark.parametrize("name", RESTORABLE)
def test_a_restored_state_repeats_itself(name):
    task, other = gym.make(name, seed=1), gym.make(name, seed=2)
    assert isinstance(task, Restorable)
    task.reset(3)
    play(task, 15)
    state = task.get_state()
    before = play(task, 60)
    task.set_state(state)
    assert play(task, 60) == before
    other.set_state(state)
    assert play(other, 60) == before


def test_the_time_limit_is_restored():
    task = gym.make("Pendulum-v1")
    task.reset(0)
    play(task, 190)
    other = gym.make("Pendulum-v1")
    other.set_state(task.get_state())
    assert [last for _, last, _ in play(other, 10)] == [False] * 9 + [True]


def test_drawing_does_not_stand_in_the_way_of_saving():
    task, other = gym.make("CartPole-v1"), gym.make("CartPole-v1")
    task.reset(0)
    task.render()
    other.set_state(task.get_state())
    assert np.array_equal(other.render(), task.render())
    task.set_state(other.get_state())
    assert task.render().shape == (400, 600, 3)


def test_objects_cannot_be_saved():
    assert isinstance(machine(thing={"x": [1, 2]}), Restorable)
    hidden = machine(thing=iter([1, 2]))
    assert not isinstance(hidden, Restorable)
    late = machine()
    late.reset(0)
    late._env.thing = iter([1])
    with pytest.raises(NotImplementedError, match=r"0/thing is a builtins.list_iterator"):
        late.get_state()


def test_attributes_born_later_disappear():
    task = machine()
    task.reset(0)
    state = task.get_state()
    task._env.later = 5
    task.set_state(state)
    assert not hasattr(task._env, "later")


@pytest.mark.filterwarnings("ignore:.*latest versioned environment")
def test_options_reach_the_environment():
    task = gym.make("FrozenLake-v1", is_slippery=False, map_name="8x8")
    assert task.spec.obs["vector"].classes == 64
    task.reset(0)
    assert int(task.step({"action": np.array(2)})["obs"]["vector"]) == 1
    assert gym.make("Pendulum", max_episode_steps=9).spec.limit == 9  # without a version: the latest


def test_minigrid_is_seen_without_its_sentence_where_that_never_changes():
    pytest.importorskip("minigrid")
    task = gym.make("MiniGrid-MemoryS7-v0")
    assert task.spec.obs["view"].shape == (7, 7, 3) and task.spec.obs["view"].classes == 11
    assert task.spec.obs["direction"].classes == 4 and set(task.spec.obs) == {"view", "direction"}
    assert check_task(task, steps=200) == []
    with pytest.raises(ValueError, match="other words in every episode"):
        gym.make("MiniGrid-Fetch-5x5-N2-v0")
    with pytest.raises(ValueError, match="other words in every episode"):
        gym.make("BabyAI-GoToLocal-v0")
    assert gym.make("MiniGrid-Fetch-5x5-N2-v0", obs="pixels").spec.obs.keys() == {"image"}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("CartPol-v1", {}, gymnasium.error.NameNotFound, "CartPole"),
        ("ALE/Pong-v5", {}, gymnasium.error.NamespaceNotFound, r'pip install "polydream\[atari\]"'),
        ("MiniGrid-Empty-5x5-v0", {}, gymnasium.error.NameNotFound, r"polydream\[minigrid\]"),
        ("FetchReach-v4", {}, gymnasium.error.NameNotFound, r"polydream\[robotics\]"),
        ("Meta-World/MT1", {}, gymnasium.error.NamespaceNotFound, r"polydream\[metaworld\]"),
        ("CartPole-v1", {"gravity": 3}, TypeError, "gravity"),
        ("CartPole-v1", {"obs": "pixel"}, ValueError, "did you mean pixels"),
    ],
)
def test_bad_ids_and_options(name, options, error, words, monkeypatch):
    monkeypatch.setattr(gym, "find_spec", lambda package: None)  # the same answer whatever is installed
    for known in [key for key in gymnasium.registry if key.startswith(tuple(gym.FAMILIES))]:
        monkeypatch.delitem(gymnasium.registry, known)
    with pytest.raises(error, match=words):
        gym.make(name, **options)


def test_repeat_is_refused_below_zero_and_zero_means_one():
    assert gym.make("CartPole-v1").spec.repeat == 1
    with pytest.raises(ValueError, match="repeat"):
        gym.make("CartPole-v1", repeat=-1)


def test_crafter():
    pytest.importorskip("crafter")
    task = gym.make("CrafterReward-v1")
    assert (task.spec.obs["image"].shape, task.spec.action["action"].classes, task.spec.limit) == ((64, 64, 3), 17, 10_000)
    first = [task.reset(seed)["obs"]["image"] for seed in (1, 1, 2)]
    assert np.array_equal(first[0], first[1]) and not np.array_equal(first[0], first[2])
    assert task.render().shape == (256, 256, 3)
    game = task._env.unwrapped._game
    game._player.health = 0
    step = task.step({"action": np.array(0)})
    assert step["is_last"] and step["is_terminal"]
    task.reset()
    game._step = 9_999
    step = task.step({"action": np.array(0)})
    assert step["is_last"] and not step["is_terminal"]
    assert gym.make("CrafterNoReward-v1").reset(0)["reward"] == 0
