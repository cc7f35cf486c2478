"""Variants that append to what heads read, together: whose feature is where, whose mask and goal is whose, and the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polydream.core import registry
from polydream.core.agent import Dreamer
from polydream.core.config import ConfigError
from polydream.core.presets import sized
from polydream.core.promises import Promises
from polydream.core.rng import Draws
from polydream.core.specs import Member, Space, Spec
from polydream.eval.contract import check_variant
from polydream.variants.padding import TaskPolicy
from tests.fixtures import batch

X, PAIR = Space(shape=(2,)), {"action": Space(shape=(2,))}
GOALS = {"x": X, "goal_x": X}
SPEC = Spec(
    obs=GOALS,
    action=PAIR,
    extras={"task": Space(dtype="int32", classes=3)},
    tasks={
        "both": Member(obs=GOALS, action=PAIR),
        "one": Member(obs=GOALS, action={"action": Space(shape=(1,))}),
        "none": Member(obs=GOALS, action=PAIR),
    },
)
"""Three tasks, the second with one action less."""

COMBINATIONS = ["goal+multitask", "goal+ensemble", "multitask+ensemble", "goal+multitask+ensemble", "goal+goexplore+multitask+ensemble"]
COMBINATIONS += ["goal+hierarchical", "ensemble+hierarchical", "hierarchical+multitask", "goal+hierarchical+multitask"]


def make(name: str, settings: dict[str, Any] | None = None) -> Any:
    """A tiny agent of a combination. settings: knobs of its parts by group."""
    cls = registry.variant(name)
    cfg = sized(cls.Config(), 16)
    cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4)
    cfg = replace(cfg, actor=replace(cfg.actor, policy=replace(cfg.actor.policy, outscale=1.0)))
    for group, knobs in (settings or {}).items():
        cfg = replace(cfg, **{group: replace(getattr(cfg, group), **knobs)})
    return cls(SPEC, cfg, 0)


def steps(seed: int = 0) -> TensorDict:
    """Replayed steps (6, 7), two rows of each task."""
    data = batch(SPEC, rows=6, seed=seed)
    data["task"] = torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int32)[:, None].expand(-1, 7).clone()
    return data


def posterior(agent: Dreamer, data: TensorDict) -> TensorDict:
    state, cut, previous = agent.replay_context(data, 1)
    return agent.losses(cut, state, previous, Draws(0))[1]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_updates_and_acts_as_it_dreams(name: str) -> None:
    agent = make(name)
    optimizer = agent.optimizer()
    for step in range(2):
        metrics, _ = agent.update(steps(step), optimizer, Draws(0, step))
        assert metrics["opt/skipped"] == 0
    post = posterior(agent, steps())
    assert agent.view(post).shape == (6, 6, agent.view_width)
    acted = agent.policy(steps()[:, 0], agent.initial(6), Draws(0))[1]
    dream = agent.imagine(acted, Draws(1)).detach()
    torch.testing.assert_close(agent.view(acted), agent.view(dream)[:, 0])
    one, other = (agent.main.policy(agent.view(s).detach())["action"] for s in (acted, dream))
    torch.testing.assert_close(one.pred(), other.pred()[:, 0])
    torch.testing.assert_close(one.entropy(), other.entropy()[:, 0])


@pytest.mark.parametrize("name", [n for n in COMBINATIONS if "multitask" in n])
def test_every_task_keeps_its_actions_to_itself(name: str) -> None:
    """The policy finds the task's number wherever other parts have put features around it."""
    agent = make(name)
    post = posterior(agent, steps())
    policies = [m for m in agent.main.policy.modules() if isinstance(m, TaskPolicy)]
    assert len(policies) == (2 if "ensemble" in name else 1)
    for policy in policies:
        assert torch.equal(policy.mark.read(agent.view(post))[1], post["task"])
    dream = agent.imagine(post.exclude("logits").detach().reshape(-1), Draws(0))
    second = dream["action", "action"][..., 1]
    assert bool((second[dream["task"] == 1] == 0).all()) and bool((second[dream["task"] != 1] != 0).all())


@pytest.mark.parametrize("name", ["goal+multitask", "goal+multitask+ensemble"])
def test_a_dream_pursues_what_was_achieved_in_its_own_task(name: str) -> None:
    agent, data = make(name, {"goal": {"commanded": 0.0}}), steps()
    data["obs", "x"] = data["task"].float()[..., None] * 10 + torch.rand(6, 7, 2)
    for seed in range(20):
        goal = agent._relabel(data, Draws(0, seed), False)["x"]
        assert torch.equal((goal[..., 0] / 10).floor().int(), data["task"])


def test_the_tasks_own_reward_beside_goals_keeps_the_scales_of_its_tasks() -> None:
    agent = make("goal+multitask", {"goal": {"extrinsic": 0.5}})
    terms = agent.main.terms()
    assert [type(o).__name__ for o in terms.values()] == ["GoalObjective", "TaskObjective"]
    assert terms["extrinsic"].weight == 0.5 and terms["extrinsic"].replay is None, "replay pursued another goal"


def test_whoever_does_not_know_of_tasks_meets_no_large_number() -> None:
    agent = make("goal+multitask")
    post = posterior(agent, steps())
    place = agent.mark.place
    torch.testing.assert_close(agent.view(post)[..., place], post["task"] / 3)
    assert place == agent.rssm.latent_width + agent.cfg.multitask.embedding


def test_prior_heads_do_not_take_the_place_of_dynamics_that_hear_the_task() -> None:
    told = {"reads": ("encoder", "dynamics", "heads", "behavior")}
    with pytest.raises(ConfigError, match="ensemble.kind=priors brings dynamics of its own.*ToldRSSM.*choose heads"):
        make("multitask+ensemble", {"multitask": told, "ensemble": {"kind": "priors"}})
    agent = make("multitask+ensemble", {"multitask": told, "ensemble": {"target": "tokens"}})
    assert agent.update(steps(), agent.optimizer(), Draws(0))[0]["opt/skipped"] == 0


def managed(settings: dict[str, Any] | None = None) -> Any:
    """A hierarchy over three tasks, two subgoals a dream."""
    return make("hierarchical+multitask", {"hierarchy": {"hold": 2, "units": 16}, **(settings or {})})


def test_every_task_has_a_manager_of_its_own_and_all_share_the_worker() -> None:
    agent, data = managed(), steps()
    post = posterior(agent, data)
    manager, worker = agent.behaviors["manager"].policy, agent.main.policy
    assert len(manager) == 3 and not isinstance(worker, torch.nn.ModuleList)
    seen = agent.view(post.exclude("subgoal")).detach()
    told = manager(seen)["code"].log_probs
    for task in range(3):
        own = post["task"] == task
        bare = manager.mark.read(seen)[0]
        torch.testing.assert_close(told[own], manager[task](bare)["code"].log_probs[own])
    with torch.no_grad():
        torch.testing.assert_close(manager(seen)["code"].log_probs, told)


def test_a_manager_whose_task_is_absent_is_left_where_it_is() -> None:
    agent = managed({"patience": {"trust": 0.0}})
    optimizer = agent.optimizer()
    agent.update(steps(), optimizer, Draws(0))  # moments are there from now on
    before = [{k: v.clone() for k, v in p.state_dict().items()} for p in agent.behaviors["manager"].policy]
    data = steps()
    data["task"] = torch.zeros_like(data["task"])
    agent.update(data, optimizer, Draws(0, 1))
    same = [
        all(torch.equal(v, old[k]) for k, v in p.state_dict().items())
        for p, old in zip(agent.behaviors["manager"].policy, before, strict=True)
    ]
    assert same == [False, True, True]


def test_a_manager_measures_each_task_on_the_scale_of_its_own_returns() -> None:
    agent = managed()
    terms = agent.behaviors["manager"].terms()
    assert [type(o).__name__ for o in terms.values()] == ["TaskObjective", "TaskNovelty"]
    usual = managed({"multitask": {"returns": "shared"}}).behaviors["manager"].terms()
    shared = usual["extrinsic"]
    assert type(usual["novelty"]).__name__ == "Novelty"
    assert not shared.scales and terms["extrinsic"].scales, "the second task's mask needs the number, so it is a TaskObjective still"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("goal+multitask", "suite/world-grid4"),
        ("goal+ensemble", "world/fourrooms"),
        ("multitask+ensemble", "suite/world-grid4"),
        ("hierarchical+multitask", "suite/world-grid4"),
        ("ensemble+hierarchical", "world/fourrooms"),
        ("goal+hierarchical", "world/fourrooms"),
    ],
)
def test_the_contract_is_kept(name: str, task: str) -> None:
    """All of it but the knobs, which `polydream check-variant` turns, in half a minute for each."""
    cls = registry.variant(name)
    spared = type(cls.__name__, (cls,), {"promises": Promises(exempt={"knobs": "takes long", "parts": "has one base class here"})})
    assert check_variant(spared, task=task) == []
