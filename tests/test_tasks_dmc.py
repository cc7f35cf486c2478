"""dm_control: names, spaces, repeated actions, ends of episodes, pictures, and exact restoring."""

import os
import subprocess
import sys

import numpy as np
import pytest

from polydream.core.specs import Restorable
from polydream.tasks import dmc, physics
from polydream.tasks.base import scale_action
from polydream.tasks.check import check_task


def drawable():
    try:
        dmc.make("pendulum_swingup").render()
    except RuntimeError:
        return False
    return True


needs_gl = pytest.mark.skipif(not drawable(), reason="no OpenGL on this machine")


def play(task, rows, seed=1):
    rng, steps = np.random.default_rng(seed), []
    for _ in range(rows):
        steps.append(task.step(task.spec.random_action(rng)) if task._running else task.reset())
    return steps


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert a["reward"] == b["reward"] and a["is_last"] == b["is_last"]
        assert all(np.array_equal(a["obs"][k], b["obs"][k]) for k in a["obs"])


def test_names_cover_the_suite():
    from dm_control import suite

    names = dmc.names()
    assert len(names) == len(suite.ALL_TASKS)
    assert {"cartpole_balance", "ball_in_cup_catch", "point_mass_easy", "humanoid_CMU_stand", "lqr_lqr_2_1"} <= set(names)


def test_spec_of_cartpole():
    spec = dmc.make("cartpole_balance").spec
    assert {k: s.shape for k, s in spec.obs.items()} == {"position": (3,), "velocity": (2,)}
    assert (spec.action["action"].shape, spec.action["action"].low, spec.action["action"].high) == ((1,), -1.0, 1.0)
    assert (spec.repeat, spec.limit) == (2, 500)
    assert dmc.make("walker_walk", repeat=3).spec.limit == 334
    assert dmc.make("walker_walk").spec.obs["height"].shape == ()


@pytest.mark.parametrize("name", ["ball_in_cup_catch", "quadruped_walk", "finger_turn_hard"])
def test_tasks_keep_their_promises(name):
    problems = check_task(dmc.make(name), 40)
    assert [p for p in problems if drawable() or not p.startswith("render()")] == []


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("cartpole_balanc", {}, KeyError, "did you mean .*cartpole_balance"),
        ("ball_in_cup", {}, KeyError, "ball_in_cup_catch"),
        ("cartpole_balance", {"time_limt": 3}, TypeError, "did you mean time_limit"),
        ("cartpole_balance", {"camera": 9}, ValueError, r"cameras 0 \.\.\. 1, not 9"),
        ("cartpole_balance", {"obs": "state"}, ValueError, "obs must be one of"),
    ],
)
def test_bad_names_and_options(name, options, error, words):
    with pytest.raises(error, match=words):
        dmc.make(name, **options)


def test_rewards_are_summed_and_states_are_those_of_the_suite():
    from dm_control import suite

    task, plain = dmc.make("reacher_easy", repeat=3), suite.load("reacher", "easy")
    task.reset(2**40 + 7)
    plain.task.random.seed([7, 2**8])
    plain.reset()
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = task.spec.random_action(rng)
        step = task.step(action)
        times = [plain.step(action["action"].astype(np.float64)) for _ in range(3)]
        assert step["reward"] == np.float32(sum(t.reward for t in times))
        for key, value in times[-1].observation.items():
            assert np.array_equal(step["obs"][key], np.asarray(value, np.float32)) and step["obs"][key].dtype == np.float32


def test_the_time_limit_truncates():
    task = dmc.make("pendulum_swingup", repeat=3, time_limit=0.2)  # 10 steps of 0.02 s
    assert task.spec.limit == 4
    task.reset(0)
    steps = [task.step({"action": np.zeros(1)}) for _ in range(4)]
    assert [s["is_last"] for s in steps] == [False, False, False, True]
    assert not any(s["is_terminal"] for s in steps)


def test_discount_zero_terminates():
    task = dmc.make("lqr_lqr_2_1")
    assert task.spec.limit is None
    task.reset(0)
    task._data.qpos[:] = 0
    task._data.qvel[:] = 0
    task._env.physics.forward()
    step = task.step({"action": np.zeros(1)})
    assert step["is_last"] and step["is_terminal"]


def test_unlimited_actuators_pass_through():
    task = dmc.make("lqr_lqr_2_1", repeat=1)
    task.reset(0)
    task.step({"action": np.array([0.5])})
    assert task._data.ctrl.tolist() == [0.5]


def test_actions_are_scaled_to_the_suites_bounds():
    task = dmc.make("quadruped_walk", repeat=1)
    task.reset(0)
    bounds = task._env.action_spec()
    assert bounds.maximum.max() == pytest.approx(1.1)  # the suite's one case of bounds that are not 1
    task.step({"action": np.full(12, 0.5)})
    assert np.array_equal(task._data.ctrl, scale_action(np.full(12, 0.5), bounds.minimum, bounds.maximum))


@pytest.mark.parametrize("name", ["cartpole_swingup", "finger_turn_easy", "swimmer_swimmer6", "manipulator_bring_ball", "quadruped_escape"])
def test_a_restored_state_repeats_itself(name):
    task, other = dmc.make(name, seed=1), dmc.make(name, seed=1)
    task.reset(4)
    play(task, 5)
    state = task.get_state()
    assert isinstance(task, Restorable)
    before = play(task, 20)
    following = [task.reset()["obs"], task.reset()["obs"]]  # random numbers too
    task.set_state(state)
    assert_equal(before, play(task, 20))
    other.set_state(state)
    assert_equal(before, play(other, 20))
    for seen in following:
        again = other.reset()["obs"]
        assert all(np.array_equal(seen[k], again[k]) for k in seen)


def test_a_state_saved_at_the_end_of_an_episode_stays_there():
    task = dmc.make("pendulum_swingup", time_limit=0.04)
    task.reset(0)
    assert task.step({"action": np.zeros(1)})["is_last"]
    other = dmc.make("pendulum_swingup", time_limit=0.04)
    other.set_state(task.get_state())
    with pytest.raises(RuntimeError, match="reset"):
        other.step({"action": np.zeros(1)})


def test_seeds_choose_the_episode():
    task = dmc.make("cartpole_swingup")
    rows = [task.reset(seed)["obs"]["position"].tolist() for seed in (1, 2, 1, 1 + 2**32)]
    assert rows[0] == rows[2] and len({tuple(r) for r in rows}) == 3


@needs_gl
def test_pictures():
    task = dmc.make("cartpole_balance", obs="both", size=24)
    assert set(task.spec.obs) == {"position", "velocity", "image"}
    image = task.reset(0)["obs"]["image"]
    assert image.shape == (24, 24, 3) and image.dtype == np.uint8 and image.std() > 5
    assert np.array_equal(task.reset(0)["obs"]["image"], image)
    assert list(dmc.make("cartpole_balance", obs="pixels", size=24).spec.obs) == ["image"]
    side = dmc.make("cartpole_balance", obs="pixels", size=24, camera=1).reset(0)["obs"]["image"]
    assert not np.array_equal(side, image)
    assert task.render().shape == (256, 256, 3)


@needs_gl
def test_restored_terrain_is_drawn():
    task, other = dmc.make("quadruped_escape", obs="pixels", size=16), dmc.make("quadruped_escape", obs="pixels", size=16)
    other.reset(2)  # its graphics memory holds another terrain
    task.reset(1)
    other.set_state(task.get_state())
    assert np.array_equal(task.render(), other.render())


def _python(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_states_need_no_opengl_and_pictures_say_what_to_install():
    code = """
from polydream.tasks import dmc
task = dmc.make("cartpole_balance")
print(task.reset(0)["obs"]["position"].shape)
for call in (task.render, lambda: dmc.make("cartpole_balance", obs="pixels")):
    try:
        call()
    except RuntimeError as error:
        print("apt-get install libegl1" in str(error))
"""
    assert _python(code, MUJOCO_GL="disable").splitlines() == ["(3,)", "True", "True"]


def test_the_backend_is_chosen_only_when_nobody_chose(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    physics.choose_gl()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    physics.choose_gl()
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for egl, library, chosen in ((True, None, "egl"), (False, "libOSMesa.so.8", "osmesa"), (False, None, "disable")):
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        monkeypatch.setattr(physics, "_egl_starts", lambda egl=egl: egl)
        monkeypatch.setattr(physics.ctypes.util, "find_library", lambda name, library=library: library)
        monkeypatch.setattr(physics.sys, "platform", "linux")
        physics.choose_gl()
        assert os.environ["MUJOCO_GL"] == chosen
