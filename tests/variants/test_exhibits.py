"""The pictures that our variants draw of themselves: that they show what is so, and leave the agent as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polydream.core import registry
from polydream.core.config import override
from polydream.core.pictures import Plane, drawn
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.scene import Scene
from polydream.core.specs import Spec
from polydream.tasks.suites import make as suite
from polydream.tasks.world import make as world
from polydream.variants.conflicts import gradient_cosines
from tests.fixtures import batch

ROOMS = world("fourrooms").spec
PICTURED = world("fourrooms", obs="pixels", seen=False).spec
GRID = suite("world-grid4").spec


def agent(variant: str, spec: Spec, **settings: Any) -> Any:
    cfg = resolve({"variant": variant, "preset": "smoke"}).agent
    for path, value in settings.items():
        cfg = override(cfg, path.replace("__", "."), value)
    return registry.variant(variant)(spec, cfg, 0)


def scene(made: Any, make: Any, rows: int = 4, steps: int = 12) -> Scene:
    spec = make().spec
    data = batch(spec, rows, steps, made.cfg)
    cells = torch.randint(0, 11, (2, rows, steps), generator=torch.Generator().manual_seed(0))
    for key, cell in zip(("x", "y"), cells, strict=True):
        if key in spec.obs:
            data["obs", key] = cell.int() if spec.obs[key].classes == 11 else data["obs", key]
    if spec.tasks:
        data["task"] = (torch.arange(rows * steps).reshape(rows, steps) % len(spec.tasks)).int()
    return Scene(data, make)


@pytest.mark.parametrize(
    ("variant", "task", "names"),
    [
        ("base", "fourrooms", set()),
        ("goal", "fourrooms", {"goals"}),
        ("ensemble", "fourrooms", {"disagreement"}),
        ("hierarchical", "fourrooms", {"codes", "timeline", "subgoals"}),
        ("hierarchical", "chain", {"codes", "timeline"}),
        ("goal", "chain", set()),
        ("ensemble", "dots", {"disagreement"}),
    ],
)
def test_what_each_variant_shows(variant: str, task: str, names: set[str]) -> None:
    made = agent(variant, world(task).spec)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    found = drawn(made, scene(made, lambda: world(task)), Draws(0))
    assert found.keys() == names
    assert all(p.image.dtype == torch.uint8 and p.image.shape[-1] == 3 and p.caption.endswith(".") for p in found.values())
    assert all(torch.equal(before[k], v) for k, v in made.state_dict().items()) and all(p.grad is None for p in made.parameters())


def test_goals_are_counted_as_the_task_counts_them() -> None:
    made = agent("goal", ROOMS)
    place = scene(made, lambda: world("fourrooms"))
    reached = sum(float(e.steps["reward"].sum()) for e in place.play(made, 24))
    assert 0 < reached < 24, "both kinds are there"
    caption = drawn(made, place, Draws(0))["goals"].caption
    assert caption.startswith(f"{reached:.0f} of 24 commanded goals were reached")
    assert drawn(agent("goal", ROOMS, goal__weight=0.0), place, Draws(0)) == {}, "a policy that sees no goal"


def test_goals_that_are_images_are_shown_as_frames() -> None:
    made = agent("goal", PICTURED)
    found = drawn(made, scene(made, lambda: world("fourrooms", obs="pixels", seen=False, limit=5)), Draws(0))
    height, width = found["goals"].image.shape[:2]
    assert height / width == 3 / 8, "24 square frames, 8 in a row"


def test_the_map_of_disagreement_is_of_what_was_measured() -> None:
    made = agent("ensemble", ROOMS)
    place = scene(made, lambda: world("fourrooms"))
    known = ~place.replayed["is_first"]
    known[:, :4] = False
    mean = made.measure(place.replayed, Draws(0))[known].mean()
    assert f"Mean {mean:.3g} of {int(known.sum())} steps" in drawn(made, place, Draws(0))["disagreement"].caption


def test_subgoals_that_are_images_are_shown_above_what_was_reached() -> None:
    made = agent("hierarchical", world("fourrooms", obs="pixels").spec)
    found = drawn(made, scene(made, lambda: world("fourrooms", obs="pixels", limit=12)), Draws(0))
    height, width = found["subgoals"].image.shape[:2]
    assert width / height == pytest.approx(3 / 2), "12 steps of 5: three subgoals over three frames"


# ---------------------------------------------------------------------------------------------------- tasks


def test_gradients_of_tasks_are_compared() -> None:
    shared = {"multitask__reads": (), "multitask__heads": "shared", "multitask__returns": "shared"}
    made = agent("multitask", GRID, **shared)
    row = scene(made, lambda: suite("world-grid4"), rows=1).replayed
    twice = torch.cat([row, row])
    twice["task"] = torch.tensor([[1], [3]]).expand(-1, twice.shape[1]).int()
    still = Draws(0, modes={"posterior": 0.0})
    cosines, present = gradient_cosines(made, twice, still)
    assert present == [1, 3]
    torch.testing.assert_close(cosines, torch.ones(2, 2), atol=1e-4, rtol=0)  # the same steps pull the same way
    mixed, present = gradient_cosines(made, scene(made, lambda: suite("world-grid4")).replayed, Draws(0))
    assert present == [0, 1, 2, 3]
    torch.testing.assert_close(mixed, mixed.T)
    torch.testing.assert_close(mixed.diagonal(), torch.ones(4))
    assert float(mixed.min()) < 0.999


def test_tasks_are_shown_where_there_are_several() -> None:
    made = agent("multitask", GRID)
    assert drawn(made, scene(made, lambda: suite("world-grid4")), Draws(0)).keys() == {"conflict", "tasks"}
    assert Plane.principal(made.nets["tasks"](torch.arange(4)).detach()).at.shape == (4, 2)
    one = agent("multitask", replace(GRID, tasks=dict(list(GRID.tasks.items())[:1])))
    assert drawn(one, scene(made, lambda: suite("world-grid4")), Draws(0)) == {}
