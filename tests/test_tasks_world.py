"""The worlds: their maps, their rules played by hand, what is seen, and exact restoring."""

import numpy as np
import pytest

from polydream.core.specs import Restorable
from polydream.tasks import grids, pinpad, world
from polydream.tasks.check import check_task

STAY, UP, DOWN, LEFT, RIGHT = range(5)


def act(index):
    return {"action": np.array(index, np.int32)}


def connected(free):
    reached, front = set(), [tuple(np.argwhere(free)[0])]
    while front:
        cell = front.pop()
        if cell not in reached:
            reached.add(cell)
            front += [(cell[0] + r, cell[1] + c) for r, c in world.MOVES if free[cell[0] + r, cell[1] + c]]
    return len(reached) == free.sum()


def random_value(free, goals, starts, horizon):
    """Exact share of random walks from `starts` that stand on `goals` within the horizon."""
    spots = [tuple(s) for s in np.argwhere(free)]
    index = {s: i for i, s in enumerate(spots)}
    moves = np.zeros((len(spots), len(spots)))
    for i, (row, column) in enumerate(spots):
        for r, c in world.MOVES:
            moves[i, index.get((row + r, column + c), i)] += 0.2
    missed = np.ones(len(spots))
    for _ in range(horizon):
        missed[[index[g] for g in goals]] = 0
        missed = moves @ missed
    missed[[index[g] for g in goals]] = 0
    return 1 - np.mean([missed[index[s]] for s in starts])


@pytest.mark.parametrize("obs", ["vector", "pixels", "both"])
@pytest.mark.parametrize("name", list(world.WORLDS))
def test_every_world_keeps_its_promises(name, obs):
    if (name, obs) == ("dots", "vector"):
        assert list(world.make(name, obs=obs).spec.obs) == ["image"]
    task = world.make(name, seed=3, obs=obs, size=16)
    assert isinstance(task, Restorable)
    assert check_task(task, 60) == []
    assert ("image" in task.spec.obs) == (obs != "vector" or name == "dots")
    assert (set(task.spec.obs) == {"image"}) == (obs == "pixels" or (name, obs) == ("dots", "vector"))


@pytest.mark.parametrize("name", list(world.WORLDS))
def test_a_state_repeats_itself_in_another_instance(name):
    def play(task, rows):
        rng, steps = np.random.default_rng(1), []
        for _ in range(rows):
            steps.append(task.step(task.spec.random_action(rng)) if task._running else task.reset())
        return steps

    task, other = world.make(name, seed=1, obs="both", size=16), world.make(name, seed=2, obs="both", size=16)
    task.reset()
    play(task, 7)
    other.set_state(task.get_state())
    for a, b in zip(play(task, 60), play(other, 60), strict=True):
        assert a["reward"] == b["reward"] and a["is_last"] == b["is_last"]
        assert all(np.array_equal(a["obs"][k], b["obs"][k]) for k in a["obs"])


def test_four_rooms_map():
    free = grids.read_map(grids.FOUR_ROOMS)
    assert free.shape == (11, 11) and free.sum() == 68 and connected(free)
    assert not free[0].any() and not free[-1].any() and not free[:, 0].any() and not free[:, -1].any()
    assert free[5].sum() == 2 and free[:, 5].sum() == 2


def test_four_rooms_random_policy_scores_what_the_docstring_says():
    free = grids.read_map(grids.FOUR_ROOMS)
    cells = [tuple(s) for s in np.argwhere(free)]
    value = np.mean([random_value(free, [goal], [c for c in cells if c != goal], 50) for goal in cells])
    assert round(value, 3) == 0.184


def test_four_rooms_walls_goal_and_end():
    task = world.make("fourrooms", goal=0, limit=4)
    task.reset(0)
    task._cell = np.array([2, 1])
    step = task.step(act(LEFT))  # a wall
    assert step["obs"]["x"] == 1 and step["obs"]["y"] == 2 and step["reward"] == 0
    assert step["obs"]["goal_x"] == 1 and step["obs"]["goal_y"] == 1
    step = task.step(act(UP))
    assert step["reward"] == 1 and step["is_last"] and step["is_terminal"]
    task.reset()
    task._cell = np.array([9, 9])
    flags = [task.step(act(RIGHT)) for _ in range(4)]
    assert [s["is_last"] for s in flags] == [False, False, False, True] and not flags[-1]["is_terminal"]


def test_four_rooms_draws_goals_and_starts_everywhere():
    task = world.make("fourrooms", seed=1)
    pairs = []
    for _ in range(600):
        seen = task.reset()["obs"]
        pairs.append(tuple(int(seen[k]) for k in ("y", "x", "goal_y", "goal_x")))
    assert all(pair[:2] != pair[2:] for pair in pairs)
    assert len({pair[2:] for pair in pairs}) == 68 and len({pair[:2] for pair in pairs}) == 68
    fixed = world.make("fourrooms", seed=1, goal=67)
    goals = {tuple(int(fixed.reset()["obs"][k]) for k in ("goal_y", "goal_x")) for _ in range(5)}
    assert goals == {(9, 9)}


def test_four_rooms_picture_shows_agent_and_goal():
    task = world.make("fourrooms", obs="pixels", size=11, goal=0)
    task.reset(0)
    task._cell = np.array([3, 2])
    image = task.step(act(RIGHT))["obs"]["image"]
    assert tuple(image[1, 1]) == world.GOAL and tuple(image[3, 3]) == world.AGENT and tuple(image[0, 0]) == world.WALL
    assert task.render().shape == (264, 264, 3)


def test_rooms25_map_and_far_goal():
    free = grids.rooms(5, 5)
    assert free.shape == (31, 31) and free.sum() == 665 and connected(free)
    assert random_value(free, [(29, 29)], [(3, 3)], 500) == pytest.approx(3.03e-5, rel=0.01)
    task = world.make("rooms25")
    task.reset(0)
    path = [DOWN] * 24 + [RIGHT] * 24  # along the doors of the first column of rooms, then of the last row
    rewards = [task.step(act(a))["reward"] for a in path]
    assert not any(rewards) and task._cell.tolist() == [27, 27]
    rewards = [task.step(act(a)) for a in (DOWN, DOWN, RIGHT, RIGHT)]
    assert [s["reward"] for s in rewards] == [0, 0, 0, 1] and rewards[-1]["is_terminal"]


def test_grid4_goals_contradict_each_other():
    rewards = np.zeros((4, 4))
    for goal in range(4):
        task = world.make("grid4", goal=goal)
        for corner, (row, column) in enumerate(((1, 1), (1, 5), (5, 1), (5, 5))):
            task.reset(0)
            task._cell = np.array([row, 3])
            steps = [task.step(act(LEFT if column == 1 else RIGHT)) for _ in range(2)]
            assert steps[-1]["is_terminal"] and not steps[0]["is_last"]
            rewards[goal, corner] = steps[-1]["reward"]
    assert np.array_equal(rewards, 2 * np.eye(4) - 1)


def test_grid4_hides_its_goal():
    rows = [world.make("grid4", goal=goal, obs="both").reset(4)["obs"] for goal in range(4)]
    assert all(np.array_equal(rows[0][k], row[k]) for row in rows for k in row)


def walk(task, row, column):
    """Go to a cell, columns first; the rewards on the way."""
    moves = [RIGHT if column > task._cell[1] else LEFT] * abs(column - task._cell[1])
    moves += [DOWN if row > task._cell[0] else UP] * abs(row - task._cell[0])
    return [task.step(act(m))["reward"] for m in moves]


def test_pinpad_rewards_the_order_and_goes_on():
    task = world.make("pinpad3")
    task.reset(0)
    total = 0.0
    for _ in range(2):
        task._cell = np.array([6, 5])
        total += sum(walk(task, 4, 4)) + sum(walk(task, 6, 8))
        total += sum(walk(task, 9, 12)) + sum(walk(task, 6, 12))
        assert total in (0.0, 10.0)
        assert task._history.tolist() == [0, 1, 2]
        total += sum(walk(task, 4, 12))
        assert task._history.tolist() == [0, 0, 0]
    assert total == 20.0 and task._running


def test_pinpad_wrong_order_slides_out_of_the_history():
    task = world.make("pinpad3")
    task.reset(0)
    task._cell = np.array([6, 12])
    assert sum(walk(task, 4, 12)) == 0 and task._history.tolist() == [0, 0, 3]
    task.step(act(STAY))
    assert task._history.tolist() == [0, 0, 3]  # staying is not stepping on it again
    assert task.step(act(UP))["obs"]["history"].tolist() == [0, 0, 3]


def test_pinpad_layouts():
    for pads in (3, 4, 5, 6):
        cells = pinpad.layout(pads)
        assert cells.shape == (14, 16) and [int((cells == p).sum()) for p in range(1, pads + 1)] == [16] * pads
        assert (cells == -1).sum() == 2 * 14 + 2 * 16 - 4
        task = world.make(f"pinpad{pads}", obs="pixels", size=16)
        image = task.reset(0)["obs"]["image"]
        colours = {tuple(c) for c in image.reshape(-1, 3)}
        assert set(pinpad.COLOURS[:pads]) <= colours and not set(pinpad.COLOURS[pads:]) & colours
        assert all(cells[tuple(task._cell)] == 0 for _ in range(20) if task.reset())


def test_pinpad_sticky_moves_repeat():
    free, stuck = world.make("pinpad3"), world.make("pinpad3", sticky=0.9)
    for task in (free, stuck):
        task.reset(0)
        task._cell, task._last = np.array([6, 8]), RIGHT
        for _ in range(3):
            task.step(act(LEFT))
    assert free._cell.tolist() == [6, 5] and stuck._cell[1] > 8


def test_bandit():
    task = world.make("bandit", arms=5)
    for arm in range(5):
        task.reset(0)
        step = task.step(act(arm))
        assert step["reward"] == arm / 4 and step["is_last"] and step["is_terminal"]
    noisy = world.make("bandit", noise=1.0)
    rewards = []
    for _ in range(400):
        noisy.reset()
        rewards.append(noisy.step(act(0))["reward"])
    assert abs(np.mean(rewards)) < 0.2 and 0.8 < np.std(rewards) < 1.2


def test_chain():
    task = world.make("chain", length=4)
    task.reset(0)
    assert [task.step(act(a))["obs"]["vector"].argmax() for a in (0, 1, 1, 0)] == [0, 1, 2, 1]
    steps = [task.step(act(1)) for _ in range(2)]
    assert steps[-1]["reward"] == 1 and steps[-1]["is_terminal"] and steps[0]["reward"] == 0
    task.reset()
    lasts = [task.step(act(0)) for _ in range(12)]
    assert [s["is_last"] for s in lasts] == [False] * 11 + [True] and not lasts[-1]["is_terminal"]


def test_reach():
    task = world.make("reach")
    task.reset(0)
    task._point, task._target = 0.0, 0.5
    step = task.step({"action": np.array([1.0], np.float32)})
    assert step["obs"]["point"] == np.float32(0.2) and step["reward"] == np.float32(1 - 0.3 / 2)
    step = task.step({"action": np.array([9.0], np.float32)})  # clipped
    assert step["obs"]["point"] == np.float32(0.4)
    lasts = [task.step({"action": np.array([-1.0], np.float32)}) for _ in range(18)]
    assert lasts[-1]["is_last"] and not lasts[-1]["is_terminal"] and lasts[-1]["obs"]["point"] == -1


def test_dots_image_and_new_goal():
    task = world.make("dots", size=8)
    task.reset(0)
    task._cell, task._goal = np.array([2, 2]), np.array([2, 4])
    image = task.step(act(RIGHT))["obs"]["image"]
    assert tuple(image[2, 3]) == world.AGENT and tuple(image[2, 4]) == world.GOAL
    step = task.step(act(RIGHT))
    assert step["reward"] == 1 and not step["is_last"] and task._goal.tolist() != [2, 4]


def test_repeat_of_worlds():
    task = world.make("reach", repeat=4)
    assert (task.spec.repeat, task.spec.limit) == (4, 5)
    task.reset(0)
    task._point, task._target = -1.0, -0.8
    step = task.step({"action": np.array([0.25], np.float32)})
    assert step["reward"] == pytest.approx(4 - (0.15 + 0.1 + 0.05 + 0.0) / 2)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("forrooms", {}, KeyError, "did you mean fourrooms"),
        ("pinpad7", {}, KeyError, "pinpad"),
        ("fourrooms", {"gaol": 1}, TypeError, "did you mean goal"),
        ("fourrooms", {"goal": 68}, ValueError, "goal must be a whole number from -1 to 67"),
        ("grid4", {"goal": 4}, ValueError, "goal"),
        ("pinpad3", {"sticky": 1.0}, ValueError, "sticky"),
        ("chain", {"length": 1}, ValueError, "length"),
        ("chain", {"camera": 0}, ValueError, "no cameras"),
    ],
)
def test_bad_worlds_and_options_are_named(name, options, error, words):
    with pytest.raises(error, match=words):
        world.make(name, **options)
