"""Where parts of a combination meet: what one says of its policy, its tasks or its scale holds for what another brings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from examples.careful import Careful
from polydream.core import checkpoint, registry
from polydream.core.behavior import frozen
from polydream.core.compose import compose
from polydream.core.config import ConfigError
from polydream.core.nets import initialize
from polydream.core.outputs import Categorical, Normal
from polydream.core.presets import sized
from polydream.core.rng import Draws
from polydream.core.run import RunConfig
from polydream.core.specs import Member, Space, Spec
from polydream.core.transfer import inherit
from polydream.variants.explorer import Novelty, TaskNovelty, shared_out
from polydream.variants.multitask import MultiTask
from polydream.variants.padding import Mark, OwnCategorical, OwnNormal, owned
from polydream.variants.priors import mutual_information
from polydream.variants.segments import manager_view, worker_view
from tests.fixtures import batch
from tests.variants.test_combinations import GOALS, PAIR, SPEC
from tests.variants.test_hierarchical import hand_made

ALONE = Spec(obs=GOALS, action=PAIR)
LEVELS = {"hierarchy": {"hold": 2, "units": 16}}


def make(name: str, settings: dict[str, Any] | None = None, spec: Spec = SPEC, cls: Any = None) -> Any:
    """A tiny agent of a combination. settings: knobs of its parts by group."""
    cls = cls or registry.variant(name)
    cfg = sized(cls.Config(), 16)
    cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4)
    for group, knobs in (settings or {}).items():
        cfg = replace(cfg, **{group: replace(getattr(cfg, group), **knobs)})
    return cls(spec, cfg, 0)


def steps(spec: Spec = SPEC, seed: int = 0) -> TensorDict:
    """Replayed steps (6, 7), two rows of each task."""
    data = batch(spec, rows=6, seed=seed)
    if spec.tasks:
        data["task"] = (torch.arange(6) % len(spec.tasks)).int()[:, None].expand(-1, 7).clone()
    return data


def losses(agent: Any, data: TensorDict, step: int = 0) -> tuple[dict[str, Tensor], TensorDict]:
    state, cut, previous = agent.replay_context(data, 1)
    return agent.losses(cut, state, previous, Draws(0, step))[:2]  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------- the explorer


def test_the_explorers_share_of_sequences_is_even_and_each_has_one_owner() -> None:
    numbers = []
    for step in range(40):
        who = shared_out(Draws(0, step), (6, 7), 0.4, 0.0)
        assert (who == who[:, :1]).all()
        numbers.append(int(who[:, 0].sum()))
    assert set(numbers) == {2, 3}, "0.4 of 6"
    assert sum(numbers) / 40 == pytest.approx(2.4, abs=0.2)
    assert not shared_out(Draws(0), (6, 7), 0.0, 1.0).any() and shared_out(Draws(0), (6, 7), 1.0, 0.0).all()
    assert 0.4 < float(shared_out(Draws(0), (1000,), 0.0, 0.5).float().mean()) < 0.6


def test_values_learned_from_replay_are_of_one_policy() -> None:
    """All rewards are 0, our critic says 0 and the explorer's 100: our share of the replay must be taught 0."""
    agent, found = make("ensemble", spec=ALONE), {}
    objective = agent.main.terms()["extrinsic"]
    theirs = objective.critic.theirs
    with torch.no_grad():
        theirs.out.bias[(theirs.bins - 100).abs().argmin()] = 50.0
    objective.start()
    usual = objective.judge_replay

    def seen(*args: Any) -> tuple[Tensor, Tensor]:
        loss, found["returns"] = usual(*args)
        return loss, found["returns"]

    objective.judge_replay = seen
    data = steps(ALONE)
    for key in ("reward", "is_last", "is_terminal"):
        data[key] = torch.zeros_like(data[key])
    data["is_first"][:, 1:] = False
    ours = ~losses(agent, data, 3)[1]["explore"][:, 0]
    assert 0 < ours.sum() < 6
    assert found["returns"][ours].abs().max() < 1e-3 and found["returns"][~ours].min() > 1.0


def test_a_charge_that_replay_does_not_know_leaves_replay_out() -> None:
    agent = make("ensemble", {"ensemble": {"use": "pessimism", "pessimism": 100.0}}, ALONE)
    assert "repval" not in agent.scales() and "repval" not in losses(agent, steps(ALONE))[0]
    assert "repval" in make("ensemble", {"ensemble": {"use": "measure"}}, ALONE).scales()


def test_one_poorly_known_task_does_not_silence_what_is_new_in_others() -> None:
    agent = make("multitask+ensemble")
    novel = agent.main.terms()["disagreement"]
    assert isinstance(novel, TaskNovelty)

    def spread(scale: float) -> float:
        other = make("multitask+ensemble").main.terms()["disagreement"]
        features = torch.zeros(64, 5, agent.view_width)
        features[32:, :, agent.mark.place] = 1 / 3
        reward = 0.03 * torch.rand(64, 5, generator=torch.Generator().manual_seed(1))
        reward[:32] *= scale
        judged = other.judge(other.critic(features), other.slow(features), reward, torch.full((64, 5), 0.99))
        return float(judged.advantage[32:].std())

    assert spread(100.0) == pytest.approx(spread(1.0), rel=1e-4) and spread(1.0) > 0.1


def test_a_stopped_dream_is_paid_at_the_goals_own_discount() -> None:
    agent = make("ensemble+goal", {"ensemble": {"use": "measure", "stop": 0.5}, "goal": {"stay": True}}, ALONE)
    objective = agent.main.terms()["goal"]
    with torch.no_grad():
        objective.critic.out.bias[(objective.critic.bins - 1000).abs().argmin()] = 8.0
        objective.start()
        dream = agent.imagine(losses(agent, steps(ALONE))[1].exclude("logits").reshape(-1), Draws(0))
        paid, bare = agent.rewards(dream)["goal"], agent.arrived(dream)
        value = objective.critic(agent.view(dream)).pred()
        stopped = dream["trust"] > dream["cont"]
        assert stopped.any() and objective.rate < 1
        torch.testing.assert_close((paid - bare)[stopped], (dream["trust"] * objective.rate * value)[stopped])


def test_dreams_of_a_hierarchy_are_not_stopped() -> None:
    with pytest.raises(ConfigError, match="ensemble.stop"):
        make("ensemble+hierarchical", LEVELS | {"ensemble": {"use": "measure", "stop": 0.5}}, ALONE)


# ---------------------------------------------------------------------------------------------------- waiting


@pytest.mark.parametrize(
    ("name", "settings", "still", "moving"),
    [
        ("hierarchical+multitask", LEVELS, "manager.policy", "main.policy"),
        ("hierarchical+multitask", {"hierarchy": {**LEVELS["hierarchy"], "task": 0.5}}, "main.policy", ""),
        ("multitask+ensemble", {}, "main.policy.ours", "main.policy.theirs"),
        ("multitask+ensemble", {"ensemble": {"extrinsic": 1.0}}, "main.policy", ""),
    ],
)
def test_who_climbs_the_tasks_rewards_waits_and_nobody_else(name: str, settings: dict[str, Any], still: str, moving: str) -> None:
    agent = make(name, settings)
    optimizer, before = agent.optimizer(), {k: v.clone() for k, v in agent.state_dict().items()}
    for step in range(3):
        agent.update(steps(seed=step), optimizer, Draws(0, step))
    assert not agent.nets["trust"].over

    def moved(part: str) -> bool:
        return any(not torch.equal(v, before[k]) for k, v in agent.state_dict().items() if k.startswith(f"behaviors.{part}."))

    assert not moved(still) and (not moving or moved(moving))


# ---------------------------------------------------------------------------------------------------- entropy of what a task has


def test_randomness_counts_what_the_task_has() -> None:
    worker = make("hierarchical+multitask", LEVELS).main
    low, high = worker.policy.cfg.min_std, worker.policy.cfg.max_std
    mask = torch.tensor([[True, False], [True, True]])
    for std, wanted in ((low, 0.0), (high, 1.0)):
        own = Normal(torch.zeros(2, 2), torch.where(mask, std, 0.9))
        torch.testing.assert_close(worker.randomness({"a": OwnNormal(own, mask)}), torch.full((2,), wanted), atol=1e-6, rtol=0)
    uniform = OwnCategorical(Categorical(torch.zeros(2, 18)), torch.arange(18) < torch.tensor([[3], [18]]))
    torch.testing.assert_close(worker.randomness({"a": uniform}), torch.ones(2))
    # The first row's task has one class: nothing to choose, so that the other row's share stands in, here and beside another key.
    logits = torch.zeros(2, 4).index_fill_(1, torch.tensor([0]), 2.0)
    single = OwnCategorical(Categorical(logits), torch.arange(4) < torch.tensor([[1], [4]]))
    shares = worker.randomness({"a": single})
    assert 0.5 < float(shares[1]) < 1 and float(shares[0]) == pytest.approx(float(shares[1]))
    both = worker.randomness({"a": single, "b": OwnNormal(Normal(torch.zeros(2, 2), torch.full((2, 2), low)), mask)})
    torch.testing.assert_close(both, torch.stack([torch.zeros(()), shares[1] / 2]), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------- going, then exploring


def went(agent: Any, data: TensorDict, count: int) -> tuple[list[TensorDict], list[TensorDict]]:
    """States and actions of an agent that collects `count` steps."""
    agent.train()
    state, states, actions = agent.initial(len(data)), [], []
    for t in range(count):
        seen = data[:, t].exclude("latent", "stepid").clone()
        seen["is_first"][:] = t == 0
        action, state = agent.policy(seen, state, Draws(0, t))
        states.append(state)
        actions.append(action)
    return states, actions


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_going_takes_as_many_decisions_as_it_says(limit: int) -> None:
    states, _ = went(make("goexplore", {"go": {"share": 1.0, "limit": limit}}, ALONE), steps(ALONE), 5)
    assert [int(s["go"][0]) for s in states] == [max(limit - t, 0) for t in range(5)]


def test_who_roams_takes_actions_that_the_task_has() -> None:
    _, actions = went(make("goexplore+multitask", {"go": {"share": 1.0, "limit": 1}}), steps(), 4)
    second = torch.stack([a["action"] for a in actions[1:]])[..., 1]
    assert (second[:, [1, 4]] == 0).all() and (second[:, [0, 2, 3, 5]] != 0).all()
    few = {"action": Space(shape=(), dtype="int32", classes=2)}
    many = {"action": Space(shape=(), dtype="int32", classes=6)}
    choices = Spec(
        obs=GOALS,
        action=many,
        extras={"task": Space(dtype="int32", classes=2)},
        tasks={"few": Member(obs=GOALS, action=few), "many": Member(obs=GOALS, action=many)},
    )
    _, actions = went(make("goexplore+multitask", {"go": {"share": 1.0, "limit": 1}}, choices), steps(choices), 7)
    chosen = torch.stack([a["action"] for a in actions[1:]])
    assert set(chosen[:, ::2].flatten().tolist()) == {0, 1} and chosen[:, 1::2].max() > 1


def test_an_explorer_that_is_done_does_not_come_back() -> None:
    agent = make("ensemble+goexplore", {"go": {"share": 1.0, "limit": 1}, "ensemble": {"until": 1, "episodes": 0.0}}, ALONE)
    assert any(s["explore"].any() for s in went(agent, steps(ALONE), 4)[0])
    agent.updates.fill_(5)
    assert not any(s["explore"].any() for s in went(agent, steps(ALONE), 4)[0])


# ---------------------------------------------------------------------------------------------------- goals of some tasks


def test_tasks_without_goals_keep_their_ends() -> None:
    one = {"x": Space(shape=(2,))}
    spec = replace(SPEC, tasks={"both": SPEC.tasks["both"], "one": SPEC.tasks["one"], "none": Member(obs=one, action=PAIR)})
    agent, data = make("goal+multitask", spec=spec), steps(spec)
    data["obs", "goal_x"] = data["obs", "x"].clone()
    data["obs", "goal_x"][2::3] = data["obs", "x"][2::3] = 0.0
    data["is_terminal"][:] = data["is_last"][:] = True
    ends = agent.prepare(data, Draws(0))["is_terminal"]
    assert ends[2::3].all() and not ends[0::3].any() and not ends[1::3].any()


def test_shifted_pictures_still_show_what_was_reached() -> None:
    image = Space(shape=(32, 32, 3), dtype="uint8")
    codec = {"mults": (2, 3, 4), "depth": 8}
    cls = registry.variant("goal")
    spec = Spec(obs={"image": image, "goal_image": image}, action=PAIR)
    cfg = replace(make("goal", {"encoder": codec, "decoder": codec}, spec).cfg, augment="shift")
    data = batch(spec, rows=6)
    data["obs", "goal_image"] = data["obs", "image"].clone()
    assert data["is_terminal"].any() and not cls(spec, cfg, 0).prepare(data, Draws(0))["is_terminal"].any()


@pytest.mark.parametrize("name", ["goal+multitask", "hierarchical+multitask"])
def test_discounts_by_length_are_refused_beside_goals(name: str) -> None:
    spec = replace(SPEC, tasks={k: replace(m, limit=50) for k, m in SPEC.tasks.items()})
    with pytest.raises(ConfigError, match="multitask.discount=length"):
        make(name, (LEVELS if "hier" in name else {}) | {"multitask": {"discount": "length"}}, spec)


# ---------------------------------------------------------------------------------------------------- inheriting, and being composed


def test_managers_go_by_the_names_of_tasks(tmp_path: Path) -> None:
    donor = make("hierarchical+multitask", LEVELS)
    with torch.no_grad():
        for number, buffer in enumerate(donor.buffers()):  # no two alike
            if buffer.is_floating_point():
                buffer.fill_(number)
    named = {"none": SPEC.tasks["none"], "new": SPEC.tasks["both"], "one": SPEC.tasks["one"], "both": SPEC.tasks["both"]}
    spec = replace(SPEC, tasks=named, extras={"task": Space(dtype="int32", classes=4)})
    heir = type(donor)(spec, donor.cfg, 5)
    head = checkpoint.header(RunConfig(variant="hierarchical+multitask", task="suite/world-grid4", agent=donor.cfg), donor.spec)
    path = checkpoint.save(tmp_path, 7, {"agent": donor.state_dict()}, head)
    fresh = inherit(heir, path)
    old, now = donor.state_dict(), heir.state_dict()
    for part in ("policy.{}.mlp.0.linear.weight", "objectives.extrinsic.retnorm.{}.first", "objectives.novelty.deviation.{}.first"):
        name = f"behaviors.manager.{part}"
        assert torch.equal(now[name.format(0)], old[name.format(2)]) and not torch.equal(now[name.format(0)], old[name.format(0)])
        assert name.format(1) in fresh


@pytest.mark.parametrize("name", ["examples.careful:Careful", "safe:Careful"])
def test_several_tasks_leave_the_behavior_its_class(name: str) -> None:
    spec = replace(SPEC, extras={**SPEC.extras, "cost": Space()})
    agent = make("", spec=spec, cls=compose([("multitask", MultiTask), (name, Careful)]))
    agent.main.objectives["cost"].multiplier.fill_(3.0)
    assert float(agent.main.combine({"extrinsic": torch.zeros(1, 1), "cost": torch.ones(1, 1)})) < 0
    data = steps(spec)
    data["cost"] = torch.rand(6, 7)
    assert agent.update(data, agent.optimizer(), Draws(0))[0]["opt/skipped"] == 0


# ---------------------------------------------------------------------------------------------------- scales, slopes and weights


@pytest.mark.parametrize("kind", ["one", "several"])
def test_novelty_is_counted_in_its_own_running_deviation(kind: str) -> None:
    found = []
    for size in (1e-4, 1.0):
        cfg = sized(registry.variant("base").Config(), 16).critic
        objective: Any = Novelty(3, cfg) if kind == "one" else TaskNovelty(3, cfg, mark=Mark(2, 2), discounts=[0.9, 0.9])
        initialize(objective, 0)
        objective.start()
        features, cont = torch.zeros(64, 5, 3), torch.full((64, 5), 0.9)
        reward = size * torch.linspace(0, 1, 320).reshape(64, 5).roll(3, 0)
        found.append(objective.judge(objective.critic(features), objective.slow(features), reward, cont).returns)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert float(found[1].std()) > 0.1


def test_prior_heads_disagree_about_the_state_that_is_arrived_at() -> None:
    agent = make("ensemble", {"ensemble": {"kind": "priors", "members": 3}}, ALONE)
    dream = agent.imagine(losses(agent, steps(ALONE))[1].exclude("logits").detach().reshape(-1), Draws(0))
    torch.testing.assert_close(agent.uncertainty(dream), mutual_information(agent.rssm.log_prior(dream["deter"])))


@pytest.mark.parametrize("kind", ["distance", "cosine"])
def test_nearness_to_a_goal_has_a_slope_for_the_actor(kind: str) -> None:
    agent = make("goal", {"actor": {"grad": "dynamics", "entropy": 0.0}, "goal": {"reward": kind}}, ALONE)
    if kind == "distance":  # within reach, where the reward is not flat
        for layer in (agent.nets["distance"].even, agent.nets["distance"].directed):
            layer.weight.data.mul_(0.05)
    start = losses(agent, steps(ALONE))[1].exclude("logits").detach().reshape(-1)
    with frozen(*agent.nets.values()):
        paid = agent.rewards(agent.imagine(start, Draws(0)))["goal"]
    assert 0 < float(paid.detach().mean()) < 1
    slopes = torch.autograd.grad(paid.sum(), list(agent.main.policy.parameters()), allow_unused=True)
    assert sum(float(s.abs().sum()) for s in slopes if s is not None) > 0


def test_dreams_of_a_hierarchy_weigh_what_their_start_does() -> None:
    dream = hand_made()
    dream["cont"][0, 0] = 0.25
    assert float(manager_view(dream, 4)["cont"][0, 0]) == 0.25
    torch.testing.assert_close(worker_view(dream, 4)["cont"][:, 0], torch.tensor([0.25, 0.25 * 0.4]))


def test_classes_that_a_task_lacks_cost_and_teach_nothing() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    loss = owned(Categorical(logits, 1), mask).loss(torch.zeros(2, 3).long())
    torch.testing.assert_close(loss, -(torch.log_softmax(logits, -1)[..., 0] * mask).sum(-1))
    loss.sum().backward()
    assert logits.grad is not None and not logits.grad[1, 1].any() and logits.grad[1, 0].any()
