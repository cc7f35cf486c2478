"""Subgoals that are achievements: what they are compared with, what they pay, and which tasks have none."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polydream.core import registry
from polydream.core.config import ConfigError, override
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from polydream.eval.contract import check_variant
from polydream.variants.aims import Aims
from polydream.variants.hierarchical import Hierarchical
from tests.fixtures import DISCRETE, batch, tiny

WIDE = {"achieved_goal": Space(shape=(2,)), "desired_goal": Space(shape=(2,)), "seen": Space(shape=(3,))}
PLACES = Spec(obs=WIDE, action=DISCRETE.action)
ROOMS = {"x": Space(shape=(), dtype="int32", classes=5), "y": Space(shape=(), dtype="int32", classes=4)}
CELLS = Spec(obs=ROOMS | {f"goal_{k}": s for k, s in ROOMS.items()}, action=DISCRETE.action)


def make(spec: Spec = PLACES, **settings: Any) -> Hierarchical:
    base = tiny()
    cfg: Any = replace(Hierarchical.Config(), **{f.name: getattr(base, f.name) for f in fields(base)})
    asked = {"dream": 8, "hierarchy.hold": 4, "hierarchy.units": 16, "hierarchy.subgoal": "achieved", **settings}
    for path, value in asked.items():
        cfg = override(cfg, path, value)
    return Hierarchical(spec, cfg)


def observed(agent: Hierarchical) -> tuple[TensorDict, TensorDict]:
    """Steps (4, 6) and posterior states."""
    data = batch(agent.spec, 4, 7, agent.cfg)
    state, steps, previous = agent.replay_context(data, 1)
    return steps, agent.rssm.observe(agent.encode(steps), previous, steps["is_first"], state, Draws(0))


@pytest.mark.parametrize("spec, width", [(PLACES, 2), (CELLS, 9)])
def test_a_subgoal_is_as_wide_as_what_can_be_achieved(spec: Spec, width: int) -> None:
    agent = make(spec)
    steps, post = observed(agent)
    with torch.no_grad():
        dream = agent.imagine(post.exclude("logits").update(agent.context(steps, post, Draws(0))).reshape(-1), Draws(1))
        rewards = agent.rewards(dream)
    assert dream["subgoal"].shape == (24, 9, width) and agent.aspect(post).shape == (4, 6, width)
    assert torch.allclose(dream["subgoal"], agent.subgoals.decode(dream["code"]), atol=1e-6)
    # Arriving at state t is scored against the subgoal in force at t - 1, also where the next one is due.
    gap = (dream["subgoal"][:, :-1] - agent.aspect(dream)[:, 1:]).norm(dim=-1)
    want = torch.exp(-gap / agent.subgoals.spread.sqrt())
    torch.testing.assert_close(rewards["closeness"][:, 1:], want)
    assert not rewards["closeness"][:, 0].any()


def test_nearness_by_hand() -> None:
    agent = make()
    agent.subgoals.spread.fill_(25.0)
    goal, there = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 11.0]])
    torch.testing.assert_close(agent.nearness(goal, there), torch.exp(-torch.tensor([0.0, 1.0, 2.0])))


def test_achievements_are_learned_from_latents_and_shape_none() -> None:
    agent = make()
    steps, post = observed(agent)
    losses = agent.model_losses(agent.prepare(steps, Draws(0)), post)
    truth = Aims(PLACES).vector({"achieved_goal": steps["obs", "achieved_goal"]})
    torch.testing.assert_close(losses["landmarks"], (agent.aspect(post) - truth).square().sum(-1))
    for name, owner in (("landmarks", "nets.landmarks."), ("subgoals", "nets.subgoals.")):
        agent.zero_grad()
        losses[name].mean().backward(retain_graph=True)
        reached = [n for n, p in agent.named_parameters() if p.grad is not None and bool(p.grad.any())]
        assert reached and all(n.startswith(owner) for n in reached), name


def test_a_task_without_goals_is_refused() -> None:
    with pytest.raises(ConfigError, match="hierarchy.subgoal=achieved needs .* names no goals: choose state"):
        make(DISCRETE)


def test_pictures_of_goals_are_refused() -> None:
    seen = Space(shape=(64, 64, 3), dtype="uint8")
    spec = Spec(obs={"image": seen, "goal_image": seen}, action=DISCRETE.action)
    with pytest.raises(ConfigError, match="shows it as images"):
        make(spec)


@pytest.mark.parametrize("spec", [PLACES, CELLS])
def test_a_subgoal_is_shown_as_the_observation_that_it_is(spec: Spec) -> None:
    agent = make(spec)
    steps, _ = observed(agent)
    goal = agent.marks.vector(agent.marks.achieved(steps))
    for key, shown in agent.shown(goal).items():
        torch.testing.assert_close(shown.float(), steps["obs", key].float(), rtol=1e-4, atol=1e-4)


def test_replayed_latents_are_seen_as_states_are() -> None:
    agent = make()
    _, post = observed(agent)
    kept = TensorDict({"deter": post["deter"], "stoch": post["stoch"].argmax(-1).to(torch.uint8)}, post.batch_size)
    torch.testing.assert_close(agent.replayed(kept), agent.aspect(post))


@pytest.mark.slow
def test_it_keeps_the_contract() -> None:
    assert check_variant("hierarchical", task="world/fourrooms", settings={"hierarchy.subgoal": "achieved"}) == []


@pytest.mark.slow
def test_beside_commanded_goals() -> None:
    assert registry.task("world/fourrooms").spec.goals
    assert check_variant("goal+hierarchical", task="world/fourrooms", settings={"hierarchy.subgoal": "achieved"}) == []
