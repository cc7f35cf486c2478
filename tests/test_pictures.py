"""Pictures that agents are asked for: what they show, where places come from, the episodes played for them, and how they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydream.core.agent import Dreamer
from polydream.core.pictures import HIT, MISS, Picture, Pictures, Plane, drawn, field, frames, save, table
from polydream.core.rng import Draws
from polydream.core.scene import PLACES, Scene
from polydream.core.specs import Space, Spec
from polydream.tasks.world import make as world
from tests.fixtures import DISCRETE, agent, batch, tiny

ROOMS = world("fourrooms").spec


def rgb(text: str) -> list[int]:
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def pixels(image: torch.Tensor) -> set[tuple[int, ...]]:
    assert image.dtype == torch.uint8 and image.shape[-1] == 3
    return {tuple(p) for p in image.reshape(-1, 3).unique(dim=0).tolist()}


# ---------------------------------------------------------------------------------------------------- places


def test_places_are_what_tasks_call_so() -> None:
    x, y = torch.tensor([3, 0]), torch.tensor([1, 10])
    told = {"x": x, "y": y, "goal_x": y, "goal_y": x}
    seen, goal = Plane.of(ROOMS, told), Plane.of(ROOMS, told, "goal_")
    assert seen is not None and goal is not None
    assert seen.at.tolist() == [[3, 1], [0, 10]] and goal.at.tolist() == [[1, 3], [10, 0]]
    assert seen.cells == (11, 11)
    reach = Spec(obs={"achieved_goal": Space(shape=(3,)), "desired_goal": Space(shape=(3,))}, action=DISCRETE.action)
    both = {"achieved_goal": torch.tensor([[1.0, 2.0, 9.0]]), "desired_goal": torch.tensor([[3.0, 4.0, 9.0]])}
    at, aim = Plane.of(reach, both), Plane.of(reach, both, "goal_")
    assert at is not None and aim is not None and at.cells is None
    assert at.at.tolist() == [[1, 2]] and aim.at.tolist() == [[3, 4]] and aim.names == ("desired_goal[0]", "desired_goal[1]")
    point = Spec(obs={"x": Space(), "y": Space(shape=(1,))}, action=DISCRETE.action)
    lone = Plane.of(point, {"x": torch.tensor([0.5]), "y": torch.tensor([[0.25]])})
    assert lone is not None and lone.at.tolist() == [[0.5, 0.25]] and lone.cells is None
    assert Plane.of(DISCRETE, {"vector": torch.zeros(1, 4)}) is None


def test_principal_components_lie_along_the_spread() -> None:
    along = torch.linspace(-2, 2, 9)
    latent = torch.stack([torch.full_like(along, 7.0), 3 * along, 4 * along], -1)
    at = Plane.principal(latent).at
    np.testing.assert_allclose(np.abs(at[:, 0]), 5 * along.abs(), atol=1e-5)
    np.testing.assert_allclose(at[:, 1], 0, atol=1e-5)
    assert Plane.principal(torch.rand(4, 1)).at.shape == (4, 2)


# ---------------------------------------------------------------------------------------------------- drawing


def test_a_field_shows_the_mean_of_each_cell() -> None:
    plane = Plane(np.array([[0, 0], [0, 0], [1, 0]]), ("x", "y"), (2, 1))
    one = field(plane, torch.tensor([0.0, 4.0, 3.0]), "value")
    same = field(plane, torch.tensor([1.0, 3.0, 3.0]), "value")
    other = field(plane, torch.tensor([1.0, 4.0, 3.0]), "value")
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert field(Plane(np.random.default_rng(0).random((5, 2)), ("a", "b")), torch.rand(5), "value").ndim == 3


def test_a_table_is_blue_where_positive_and_red_where_negative() -> None:
    def tint(value: float) -> torch.Tensor:
        """Red less blue of the squares, whose colour is the commonest of the left half but for white and the number's."""
        image = table(torch.full((1, 2), value), ["r"], ["a", "b"], "cosine", (-1.0, 1.0))
        colours, counts = image[:, : image.shape[1] // 2].reshape(-1, 3).unique(dim=0, return_counts=True)
        counts[colours.float().std(1) == 0] = 0
        found = colours[counts.argmax()].int()
        return found[0] - found[2]

    assert tint(0.8) < 0 < tint(-0.8)


def test_frames_tell_reached_from_missed_by_colour_and_by_shape() -> None:
    images = [torch.full((32, 32, 3), 9, dtype=torch.uint8)] * 3
    assert pixels(frames(images[:1], [True])) == {(9, 9, 9), (255, 255, 255), tuple(rgb(HIT))}
    assert pixels(frames(images[:1], [False])) == {(9, 9, 9), (255, 255, 255), tuple(rgb(MISS))}
    whole, broken = (int((frames(images[:1], [hit]) == torch.tensor(rgb(c))).all(-1).sum()) for hit, c in ((True, HIT), (False, MISS)))
    assert broken < whole
    two = frames(images, [True, False, True], columns=2)
    assert two.shape[0] == two.shape[1] >= 512, "a second row is filled up"


def test_a_saved_picture_tells_its_caption(tmp_path: Path) -> None:
    image = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(2, 3, 3)
    path = save(tmp_path / "new" / "one-000000007.png", Picture(image, "Größe: 3 × 2."))
    with Image.open(path) as found:
        assert found.info["Description"] == "Größe: 3 × 2."
        np.testing.assert_array_equal(np.asarray(found), image.numpy())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="must be uint8"):
        save(path, Picture(image.float(), ""))


# ---------------------------------------------------------------------------------------------------- asking an agent


def one(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    return {"one": Picture(torch.zeros(1, 1, 3, dtype=torch.uint8), f"{scene.replayed.batch_size[0]} rows")}


def two(agent: Any, scene: Scene, draws: Draws) -> Pictures:
    return {"two": Picture(torch.ones(1, 1, 3, dtype=torch.uint8), type(agent).__name__)}


class One(Dreamer):
    exhibits = (one,)


class Two(Dreamer):
    exhibits = (two,)


class Both(One, Two):
    """A combination, as `--variant one+two` makes it."""


def test_the_pictures_of_every_part_are_drawn() -> None:
    scene = Scene(batch(DISCRETE), lambda: world("chain"))
    assert drawn(agent(DISCRETE), scene, Draws(0)) == {}
    found = drawn(Both(DISCRETE, tiny()), scene, Draws(0))
    assert {k: p.caption for k, p in found.items()} == {"one": "3 rows", "two": "Both"}


def test_episodes_are_whole_and_the_same_again() -> None:
    player = agent(ROOMS)
    scene = Scene(batch(ROOMS), lambda: world("fourrooms"), seed=3)
    episodes = scene.play(player, PLACES + 1, longest=100)
    assert len(episodes) == PLACES + 1
    for steps, states in episodes:
        assert steps.batch_size == states.batch_size and len(steps) <= 51
        assert bool(steps["is_first"][0]) and not steps["is_first"][1:].any()
        assert bool(steps["is_last"][-1]) and not steps["is_last"][:-1].any()
        moves = states["action"]["action"][:-1].argmax(-1)
        walked = [Plane.of(ROOMS, steps["obs"]).at[t : t + 2] for t in range(len(steps) - 1)]  # type: ignore[union-attr]
        still = [bool((pair[0] == pair[1]).all()) for pair in walked]
        assert all(stays for move, stays in zip(moves.tolist(), still, strict=True) if move == 0), "the states hold what was done"
    starts = {tuple(Plane.of(ROOMS, e.steps["obs"]).at[0]) for e in episodes}  # type: ignore[union-attr]
    assert len(starts) > 1
    again = scene.play(player, PLACES + 1, longest=100)
    assert all(torch.equal(a.steps["obs", "x"], b.steps["obs", "x"]) for a, b in zip(episodes, again, strict=True))
    assert {len(e.steps) for e in scene.play(player, 2, longest=3)} == {3}, "broken off"


def test_of_several_tasks_each_has_its_turn() -> None:
    from polydream.tasks.suites import make

    scene = Scene(batch(DISCRETE), lambda: make("world-grid4"))
    task = make("world-grid4")
    player = agent(task.spec)
    assert {int(e.steps["task"][0]) for e in scene.play(player, 4, longest=5)} == {0, 1, 2, 3}
