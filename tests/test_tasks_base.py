"""Options, action scaling, pictures, repeated actions, and attributes saved as text and arrays."""

import random
from collections import deque

import numpy as np
import pytest

from polydream.core.specs import Restorable, Space, Spec, Task
from polydream.tasks import base, snapshot


class Countdown(base.Episodic):
    """Reward k at step k; ends after `length` steps, by itself or by the clock."""

    def __init__(self, length: int, repeat: int, terminates: bool) -> None:
        super().__init__("countdown", Spec(obs={"vector": Space()}, action={"action": Space(shape=(2,))}, repeat=repeat), seed=5)
        self.length, self.terminates, self.seeds = length, terminates, []

    def _begin(self, seed):
        self.seeds.append(seed)
        self.k = 0

    def _advance(self, action):
        self.k += 1
        over = self.k == self.length
        return float(self.k), over and self.terminates, over and not self.terminates

    def _observe(self):
        return {"vector": np.array(self.k, np.float32)}

    def render(self):
        return np.zeros((2, 2, 3), np.uint8)


ACTION = {"action": np.zeros(2, np.float32)}


def test_repeat_sums_rewards_and_stops_at_the_end():
    task = Countdown(length=5, repeat=3, terminates=True)
    first = task.reset()
    assert (first["reward"], first["is_first"], first["is_last"], first["is_terminal"]) == (0.0, True, False, False)
    middle = task.step(ACTION)
    assert (middle["reward"], middle["is_first"], middle["is_last"], float(middle["obs"]["vector"])) == (6.0, False, False, 3.0)
    last = task.step(ACTION)
    assert (last["reward"], last["is_last"], last["is_terminal"], float(last["obs"]["vector"])) == (9.0, True, True, 5.0)
    assert last["reward"].dtype == np.float32
    assert isinstance(task, Task) and not isinstance(task, Restorable)


def test_a_time_limit_is_last_but_not_terminal():
    task = Countdown(length=1, repeat=2, terminates=False)
    task.reset()
    last = task.step(ACTION)
    assert last["is_last"] and not last["is_terminal"]


def test_steps_outside_an_episode_are_refused():
    task = Countdown(length=1, repeat=1, terminates=True)
    with pytest.raises(RuntimeError, match="countdown: no episode is running"):
        task.step(ACTION)
    task.reset()
    task.step(ACTION)
    with pytest.raises(RuntimeError, match="reset"):
        task.step(ACTION)


def test_the_first_reset_uses_the_seed_the_task_was_made_with():
    task = Countdown(length=1, repeat=1, terminates=True)
    for seed in (None, None, 9, None):
        task.reset(seed)
    assert task.seeds == [5, None, 9, None]


def test_scale_action_by_hand():
    low, high = np.array([-2.0, 0.0, -np.inf, 0.0]), np.array([2.0, 10.0, np.inf, np.inf])
    scaled = base.scale_action(np.array([0.5, -0.5, 0.25, 0.75]), low, high)
    assert scaled.tolist() == [1.0, 2.5, 0.25, 0.75]
    assert base.scale_action(np.array([-7.0, 7.0, 7.0, -7.0]), low, high).tolist() == [-2.0, 10.0, 1.0, 0.0]


def test_scale_action_stays_within_the_bounds_for_any_number():
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = rng.normal(size=4) * 10 ** rng.uniform(-4, 4)
        high = low + rng.uniform(1e-6, 1e4, 4)
        scaled = base.scale_action(rng.normal(size=4) * 2, low, high)
        assert (scaled >= low).all() and (scaled <= high).all()
        assert np.array_equal(base.scale_action(np.ones(4), low, high), base.scale_action(np.full(4, 3.0), low, high))


SPEC = Spec(obs={"vector": Space()}, action={"move": Space(shape=(2,)), "mode": Space(dtype="int32", classes=3)})


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        ({"move": np.zeros(2)}, KeyError, "'mode' is missing"),
        ({"move": np.zeros(2), "mode": 0, "mve": 1}, KeyError, "did you mean move"),
        ({"move": np.zeros(3), "mode": 0}, ValueError, "'move' has shape"),
        ({"move": np.array([0, np.nan]), "mode": 0}, ValueError, "'move' is not finite"),
        ({"move": np.zeros(2), "mode": 3}, ValueError, r"'mode' must hold whole numbers 0 \.\.\. 2"),
        ({"move": np.zeros(2), "mode": -1}, ValueError, "'mode'"),
        ({"move": np.zeros(2), "mode": 1.0}, ValueError, "'mode'"),
    ],
)
def test_bad_actions_are_named(action, error, words):
    with pytest.raises(error, match=words):
        base.check_action(SPEC, action)


def test_good_actions_get_the_specs_dtypes():
    checked = base.check_action(SPEC, {"mode": np.int64(2), "move": [0.5, 7.0]})
    assert checked["mode"].dtype == np.int32 and int(checked["mode"]) == 2
    assert checked["move"].dtype == np.float32 and checked["move"].tolist() == [0.5, 7.0]


def test_random_actions_cover_their_range():
    rng = np.random.default_rng(0)
    drawn = [base.check_action(SPEC, SPEC.random_action(rng)) for _ in range(300)]
    assert {int(a["mode"]) for a in drawn} == {0, 1, 2}
    moves = np.array([a["move"] for a in drawn])
    assert moves.min() < -0.9 and moves.max() > 0.9 and np.abs(moves).max() <= 1


def test_resize_is_the_mean_of_the_area():
    image = np.array([[[0], [10]], [[20], [30]]], np.uint8)
    assert base.resize(image, 1, 1).tolist() == [[[15]]]
    assert base.resize(image, 2, 2) is image
    assert base.resize(image, 4, 4)[:, :, 0].tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30]]
    strip = np.array([[[0], [90], [240]]], np.uint8)
    assert base.resize(strip, 1, 2)[0, :, 0].tolist() == [30, 190]  # (0 + 90 / 2) / 1.5, (90 / 2 + 240) / 1.5


def test_resize_keeps_the_mean_of_every_channel():
    rng = np.random.default_rng(1)
    for rows, columns, height, width in ((13, 7, 5, 5), (31, 31, 64, 64), (40, 60, 16, 16), (8, 8, 64, 48)):
        image = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
        small = base.resize(image, height, width)
        assert small.shape == (height, width, 3) and small.dtype == np.uint8
        assert np.abs(small.mean((0, 1)) - image.mean((0, 1))).max() < 0.6
        assert (base.resize(np.full_like(image, 200), height, width) == 200).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"obs": "pixel"}, "did you mean pixels"),
        ({"repeat": -1}, "repeat"),
        ({"size": 2}, "size"),
        ({"camera": -2}, "camera"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_common_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        base.Common(**options)


def test_unknown_options_name_the_nearest():
    with pytest.raises(TypeError, match="toy takes no option 'lenght'; did you mean length"):
        base.refuse_options({"lenght": 3}, {"length"}, "toy")


def test_decisions_round_up():
    assert [base.decisions(steps, 2) for steps in (1000.0, 999.5, 999, None, float("inf"))] == [500, 500, 500, None, None]
    assert base.decisions(1000.0000001, 1) == 1001  # dm_control counts until it reaches the limit


def _values(seed: int) -> dict:
    generator = np.random.default_rng(seed)
    generator.normal(size=3)
    old = np.random.RandomState(seed)
    old.normal()
    plain = random.Random(seed)
    plain.random()
    return {
        "none": None,
        "flag": True,
        "number": 0.1 + 0.2,
        "infinite": float("-inf"),
        "text": "héllo",
        "bytes": b"\x00\xff",
        "scalar": np.float32(1.5),
        "array": np.arange(6.0).reshape(2, 3),
        "letters": np.array([b"ab", b"c"]),
        "list": [1, (2, {"k": deque([3, 4], maxlen=2)}), {5}],
        "keys": {(0, 1): np.int64(4), 2: "x"},
        "generator": generator,
        "mt": np.random.Generator(np.random.MT19937(seed)),
        "old": old,
        "plain": plain,
    }


def test_frozen_values_come_back_with_their_types():
    values = _values(3)
    state = snapshot.freeze(values)
    assert all(isinstance(v, (str, np.ndarray)) for v in state.values())
    expected = {k: values[k].random(4).tolist() for k in ("generator", "mt")} | {
        "old": values["old"].rand(4).tolist(),
        "plain": values["plain"].random(),
    }
    back = snapshot.thaw(state, {})
    for key in ("none", "flag", "number", "infinite", "text", "bytes", "list", "keys"):
        assert back[key] == values[key] and type(back[key]) is type(values[key])
    assert back["list"][1][1]["k"].maxlen == 2
    assert type(back["scalar"]) is np.float32 and back["scalar"] == 1.5
    assert np.array_equal(back["array"], values["array"]) and back["letters"].tolist() == [b"ab", b"c"]
    assert {k: back[k].random(4).tolist() for k in ("generator", "mt")} | {
        "old": back["old"].rand(4).tolist(),
        "plain": back["plain"].random(),
    } == expected


def test_thawing_writes_into_what_is_there():
    values, present = _values(3), _values(8)
    array, generator = present["array"], present["generator"]
    back = snapshot.thaw(snapshot.freeze(values), present)
    assert back["array"] is array and back["generator"] is generator
    assert np.array_equal(array, values["array"]) and generator.random() == values["generator"].random()


def test_frozen_arrays_are_copies():
    array = np.zeros(3)
    state = snapshot.freeze({"a": array})
    array[:] = 1
    assert snapshot.thaw(state, {})["a"].tolist() == [0, 0, 0]


def test_what_is_not_plain_is_named():
    shared = [1]
    whole = np.zeros(4)
    for values, words in (
        ({"thing": object()}, "thing is a builtins.object"),
        ({"deep": [1, [lambda: 0]]}, r"deep\[1\]\[0\]"),
        ({"objects": np.array([None])}, "objects is an array of dtype object"),
        ({"a": shared, "b": shared}, "b and a are the same object"),
        ({"a": whole, "b": whole[1:]}, "views of the same memory"),
    ):
        with pytest.raises(snapshot.NotPlain, match=words):
            snapshot.freeze(values)


def test_generator_text_round_trip():
    rng = np.random.default_rng(1)
    text = snapshot.rng_text(rng)
    drawn = rng.random(5)
    snapshot.set_rng(rng, text)
    assert np.array_equal(rng.random(5), drawn)
    with pytest.raises(ValueError):
        snapshot.set_rng(np.random.Generator(np.random.MT19937(0)), text)
