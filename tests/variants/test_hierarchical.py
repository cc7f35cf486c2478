"""The variant `hierarchical`: who holds which subgoal when, what it pays, and which loss reaches whom."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core import registry
from polydream.core.agent import Dreamer
from polydream.core.behavior import Behavior
from polydream.core.codec import joined
from polydream.core.config import ConfigError, override
from polydream.core.nets import initialize
from polydream.core.outputs import Categorical, Normal
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from polydream.eval.contract import check_variant
from polydream.variants.hierarchical import Hierarchical
from polydream.variants.segments import cut, held, manager_reward, manager_view, worker_view
from polydream.variants.steering import Steer
from polydream.variants.subgoals import Subgoals, closeness
from tests.fixtures import DISCRETE, IMAGE, VECTOR, batch, tiny

Cfg = Hierarchical.Config


def make(spec: Spec = DISCRETE, seed: int = 0, **settings: Any) -> Hierarchical:
    """A tiny agent that dreams 8 steps and holds subgoals for 4, with settings by path (`hierarchy__task` for hierarchy.task)."""
    base = tiny()
    cfg: Any = replace(Cfg(), **{f.name: getattr(base, f.name) for f in fields(base)})
    for path, value in {"dream": 8, "hierarchy__hold": 4, "hierarchy__units": 16, **settings}.items():
        cfg = override(cfg, path.replace("__", "."), value)
    return Hierarchical(spec, cfg, seed)


def losses(agent: Hierarchical, data: TensorDict) -> dict[str, Tensor]:
    state, cut_, previous = agent.replay_context(data, 1)
    return agent.losses(cut_, state, previous, Draws(0))[0]


def dreamed(agent: Hierarchical, rows: int = 6) -> TensorDict:
    """A dream (rows, H + 1) from made-up states."""
    data = batch(agent.spec, rows, 2, agent.cfg)
    state, steps, previous = agent.replay_context(data, 1)
    with torch.no_grad():
        post = agent.rssm.observe(agent.encode(steps), previous, steps["is_first"], state, Draws(0))
        return agent.imagine(post.exclude("logits").update(agent.context(steps, post, Draws(0)))[:, 0], Draws(1))


def moved(agent: Hierarchical, *parts: str) -> set[str]:
    """The parts that a gradient has reached, out of the beginnings of parameters' names."""
    named = {n for n, p in agent.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert named
    unknown = {n for n in named if not n.startswith(parts)}
    return {p for p in parts if any(n.startswith(p) for n in named)} | unknown


# ---------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("task", ["world/fourrooms", "world/dots"])
def test_the_variant_keeps_its_promises(task: str) -> None:
    assert check_variant("hierarchical", task=task) == []


def test_it_is_registered_and_learns_with_actions_of_every_kind() -> None:
    assert registry.variant("hierarchical") is Hierarchical
    for spec in (VECTOR, DISCRETE):
        for grad in ("reinforce", "dynamics"):
            agent = make(spec, actor__grad=grad, hierarchy__task=0.5, critic__contdisc=grad == "reinforce")
            metrics, _ = agent.update(batch(spec), agent.optimizer(), Draws(0))
            assert all(bool(torch.isfinite(v).all()) for v in metrics.values())


def together(name: str, spec: Spec = DISCRETE, **settings: Any) -> Any:
    """A tiny agent of a combination that dreams 8 steps and holds subgoals for 4, with settings by path."""
    cls, cfg = registry.variant(name), tiny()
    made: Any = replace(cls.Config(), **{f.name: getattr(cfg, f.name) for f in fields(cfg)})
    for path, value in {"dream": 8, "hierarchy__hold": 4, "hierarchy__units": 16, **settings}.items():
        made = override(made, path.replace("__", "."), value)
    return cls(spec, made, 0)


def test_whoever_takes_the_workers_place_is_refused() -> None:
    class Flat(Hierarchical):
        def build_behaviors(self) -> dict[str, Behavior]:
            return super().build_behaviors() | {"main": Dreamer.build_behaviors(self)["main"]}

    with pytest.raises(ConfigError, match="Flat: hierarchical acts by its worker"):
        Flat(DISCRETE, make().cfg)


def test_beside_an_ensemble_the_manager_is_paid_for_what_members_disagree_about() -> None:
    agent = together("ensemble+hierarchical")
    dream = dreamed(agent)
    rewards = agent.rewards(dream)
    assert torch.equal(rewards["novelty"], agent.uncertainty(dream)) and "disagreement" not in rewards
    assert set(agent.behaviors) == {"main", "manager"} and set(agent.main.terms()) == {"closeness"}, "nobody explores but the manager"
    metrics, _ = agent.update(batch(DISCRETE), agent.optimizer(), Draws(0))
    assert {"loss/disagreement", "loss/manager/value/novelty"} <= metrics.keys() and bool(torch.isfinite(metrics["opt/loss"]))
    plain = together("ensemble+hierarchical", ensemble__use="measure")
    dream = dreamed(plain)
    assert torch.equal(plain.rewards(dream)["novelty"][:, 1:], plain.subgoals.novelty(dream["deter"][:, 1:]))
    for knob, value in {"intrinsic": 2.0, "extrinsic": 1.0, "episodes": 1.0, "until": 1, "dreams": 1.0}.items():
        with pytest.raises(ConfigError, match=f"ensemble.{knob}.* here the manager explores"):
            together("ensemble+hierarchical", **{f"ensemble__{knob}": value})


def test_beside_a_pessimistic_ensemble_the_manager_pays_the_charge() -> None:
    agent, free = (together("ensemble+hierarchical", ensemble__use="pessimism", ensemble__pessimism=p) for p in (2.0, 0.0))
    dream = dreamed(agent)
    charge = free.rewards(dream)["extrinsic"] - agent.rewards(dream)["extrinsic"]
    torch.testing.assert_close(charge, 2 * agent.uncertainty(dream), rtol=1e-4, atol=1e-5)


GOALS = Spec(obs={"x": Space(shape=(2,)), "goal_x": Space(shape=(2,))}, action={"action": Space(dtype="int32", classes=3)})


def test_beside_goals_the_manager_pursues_what_was_commanded() -> None:
    agent = together("goal+hierarchical", GOALS)
    assert {k: set(b.terms()) for k, b in agent.behaviors.items()} == {"main": {"closeness"}, "manager": {"goal", "novelty"}}
    assert {"manager/value/goal", "value/closeness"} <= agent.scales().keys() and "manager/value" not in agent.scales()
    assert agent.scales()["reward"] == 0 and together("goal+hierarchical", GOALS, goal__extrinsic=0.5).scales()["reward"] == 1
    own = agent.behaviors["manager"].terms()["goal"]
    assert own.rate == pytest.approx(((1 - 1 / 33) / (1 - 1 / 333)) ** 4), "33 steps are 33 steps, whoever decides"
    start = agent.initial(2).update(agent.context(batch(GOALS, 2)[:, 0], agent.initial(2), Draws(0)))
    other = start.clone()
    other["goal"] = other["goal"] + 1
    manager = agent.behaviors["manager"].policy
    for layer in manager.outs["code"].values():
        torch.nn.init.normal_(layer.weight)
    one, two = (manager(agent.view(s.exclude("subgoal")))["code"].log_probs for s in (start, other))
    assert not torch.allclose(one, two), "it reads the goal"
    metrics, _ = agent.update(batch(GOALS), agent.optimizer(), Draws(0))
    assert bool(torch.isfinite(metrics["opt/loss"])) and "manager/rew/goal" in metrics
    with pytest.raises(ConfigError, match="need critic.contdisc"):
        together("goal+hierarchical", GOALS, critic__contdisc=False)


def test_arriving_within_a_segment_pays_once() -> None:
    """A goal met at steps 2 and 3 of the first segment and, a step later than alive for certain, in the second."""
    reward, cont = torch.tensor([[9.0, 0, 1, 1, 0, 0, 0, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1, 0.5, 1, 1, 1]])
    assert manager_reward(reward, cont, 4, once=True).tolist() == [[0, 1, 0.5]]
    assert manager_reward(reward, cont, 4).tolist() == [[0, 0.5, 0.125]]
    agent = together("goal+hierarchical", GOALS)
    dream = hand_made().set("cont", cont)
    paid = agent.behaviors["manager"].excerpt(dream, {"goal": reward, "novelty": reward})[1]
    assert paid["goal"].tolist() == [[0, 1, 0.5]] and paid["novelty"].tolist() == [[0, 0.5, 0.125]]
    stays = together("goal+hierarchical", GOALS, goal__stay=True)
    assert stays.behaviors["manager"].excerpt(dream, {"goal": reward})[1]["goal"].tolist() == [[0, 0.5, 0.125]]


# ---------------------------------------------------------------------------------------------------- subgoals in time


def test_hold_must_divide_the_dream() -> None:
    assert [held(h, 0) for h in (16, 15, 12, 5, 7, 1, 26)] == [8, 5, 6, 5, 7, 1, 2]
    assert held(16, 16) == 16
    with pytest.raises(ConfigError, match=r"hierarchy.hold=8 does not divide dream=15: the nearest that does is 5"):
        held(15, 8)
    with pytest.raises(ConfigError, match="hierarchy.hold=3"):
        make(hierarchy__hold=3)


def test_subgoals_are_held_k_steps_and_begin_anew_with_every_episode() -> None:
    """Three environments whose episodes begin at odd places: ceil(length / K) subgoals in each episode, each for K steps."""
    agent, steps = make(), 23
    begins = [[0, 5, 6, 17], [0, 8, 9], [0]]
    data = batch(DISCRETE, 3, steps)
    first = torch.zeros(3, steps, dtype=torch.bool)
    for row, places in enumerate(begins):
        first[row, places] = True
    data["is_first"] = first
    state, seen = agent.initial(3), []
    for t in range(steps):
        _, state = agent.policy(data[:, t], state, Draws(0, t))
        seen.append(state.select("code", "subgoal", "clock").clone())
    lived: TensorDict = torch.stack(seen, 1)
    for row, places in enumerate(begins):
        for start, end in zip(places, [*places[1:], steps], strict=True):
            goals, codes = lived["subgoal"][row, start:end], lived["code"][row, start:end]
            assert lived["clock"][row, start:end].tolist() == [(i + 1) % 4 for i in range(end - start)]
            for i in range(end - start):
                assert torch.equal(goals[i], goals[i - i % 4]) and torch.equal(codes[i], codes[i - i % 4])
            assert len({tuple(g.tolist()) for g in goals}) == math.ceil((end - start) / 4), "codes drawn anew differ here"
            if start:
                assert not torch.equal(goals[0], lived["subgoal"][row, start - 1]), "the last episode's subgoal is gone"


def test_a_dream_asks_the_manager_only_where_a_choice_is_due_and_is_as_one_that_looks_at_the_clock() -> None:
    """Acting looks at every row's clock, a dream of replayed states knows: same states, same noise, the same to the bit."""
    agent, asked = make(actor__policy__outscale=1.0), []
    agent.behaviors["manager"].policy.register_forward_hook(lambda *_: asked.append(1))
    data = batch(DISCRETE, 6, 2)
    state, steps, previous = agent.replay_context(data, 1)
    with torch.no_grad():
        post = agent.rssm.observe(agent.encode(steps), previous, steps["is_first"], state, Draws(0)).exclude("logits")
        known = agent.imagine(post.clone().update(agent.context(steps, post, Draws(0))).reshape(-1), Draws(1))
        assert len(asked) == 3, "of nine states those at 0, 4 and 8"
        first = post[:, 0]
        looked = agent.imagine(first.clone().update(agent.context(steps[:, 0], first, Draws(0))), Draws(1))
        assert len(asked) == 3 + 9 and "clock" in looked and "clock" not in known
        for key in ("code", "subgoal", "deter", "stoch", "cont"):
            assert torch.equal(known[key], looked[key]), key
        assert torch.equal(known["action", "action"], looked["action", "action"])
        assert torch.equal(agent.rewards(known)["closeness"], agent.rewards(looked)["closeness"]), "scored once a segment or once a step"
        # By hand, as the world does it: act, step, act, step.
        walked, draws = first.clone().update(agent.context(steps[:, 0], first, Draws(0))), Draws(1)
        for t in range(9):
            walked = agent.act(walked, draws)
            assert torch.equal(walked["subgoal"], known["subgoal"][:, t]) and torch.equal(walked["code"], known["code"][:, t])
            assert torch.equal(walked["action", "action"], known["action", "action"][:, t])
            walked = walked.update(agent.rssm.step(walked, joined(agent.spec.action, walked["action"]), draws))


def test_a_dream_from_amid_a_segment_ends_that_segment_first() -> None:
    agent = make()
    data = batch(DISCRETE, 3, 2)
    state, steps, previous = agent.replay_context(data, 1)
    with torch.no_grad():
        post = agent.rssm.observe(agent.encode(steps), previous, steps["is_first"], state, Draws(0)).exclude("logits")[:, 0]
        start = post.update(agent.context(steps[:, 0], post, Draws(0)))
        start["clock"] = torch.tensor([0, 1, 3])
        goals = agent.imagine(start, Draws(1))["subgoal"]
    changes = [[t for t in range(1, 9) if not torch.equal(row[t], row[t - 1])] for row in goals]
    assert changes == [[4, 8], [3, 7], [1, 5]]


def test_codes_are_one_of_each_group_and_subgoals_what_they_decode_to() -> None:
    agent = make()
    dream = dreamed(agent)
    code = dream["code"].unflatten(-1, (8, 8))
    assert torch.equal(code.sum(-1), torch.ones(6, 9, 8)) and bool((code.max(-1).values == 1).all())
    assert torch.allclose(dream["subgoal"], agent.subgoals.decode(dream["code"]), atol=1e-6)
    assert torch.equal(dream["subgoal"][:, 0:1].expand(-1, 4, -1), dream["subgoal"][:, 0:4])
    assert torch.equal(dream["subgoal"][:, 4:5].expand(-1, 4, -1), dream["subgoal"][:, 4:8])
    assert not torch.equal(dream["subgoal"][:, 3], dream["subgoal"][:, 4])


# ---------------------------------------------------------------------------------------------------- what is paid


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_max_cosine_sees_magnitudes(share: float) -> None:
    goal = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(closeness(goal, share * goal), torch.full((100,), min(share, 1 / share)), atol=1e-5)
    other = torch.randn(100, 32, generator=torch.Generator().manual_seed(1))
    assert float(closeness(goal, other).abs().max()) <= 1 + 1e-5
    assert torch.equal(closeness(goal, other), closeness(other, goal))
    assert torch.equal(closeness(torch.zeros(1, 4), torch.zeros(1, 4)), torch.zeros(1))


def test_the_kth_reward_is_scored_against_the_goal_in_force() -> None:
    """States lie on one axis, subgoals are the first 1 and the second 2: arriving at s_4 was done under the first."""
    agent = make()
    dream = dreamed(agent, 1)
    unit = torch.nn.functional.one_hot(torch.tensor(0), 32).float()
    dream["deter"] = torch.ones(1, 9, 1) * unit
    dream["subgoal"] = torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 2, 4])[None, :, None] * unit
    paid = agent.rewards(dream)["closeness"]
    assert paid[0, 1:].tolist() == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5])
    _, own = agent.main.excerpt(dream, {"closeness": paid})
    assert own["closeness"][:, 1:].tolist() == [[1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]]


def test_novelty_is_the_error_of_the_likeliest_code() -> None:
    agent = make()
    dream = dreamed(agent)
    told = agent.subgoals.again(dream["deter"])
    assert torch.allclose(agent.rewards(dream)["novelty"][:, 1:], (told - dream["deter"]).square().mean(-1)[:, 1:], atol=1e-6)


def test_levels_learn_from_what_an_advantage_has_beyond_its_mean() -> None:
    agent = make(hierarchy__novelty=0.5)
    manager: Any = agent.behaviors["manager"]
    told = {"extrinsic": torch.tensor([[1.0, 3.0]]), "novelty": torch.tensor([[10.0, 14.0]])}
    assert manager.combine(told).tolist() == [[-2.0, 2.0]], "(1 - 2) + 0.5 (10 - 12)"
    advantage = torch.tensor([[1.0, 2.0]], requires_grad=True)
    agent.main.combine({"closeness": advantage}).sum().backward()
    assert advantage.grad is not None and advantage.grad.tolist() == [[1.0, 1.0]], "through the dynamics the mean carries no gradient"


@pytest.mark.parametrize("contdisc", [True, False])
def test_closeness_has_a_horizon_of_its_own(contdisc: bool) -> None:
    """One step, then nothing but the value 1: discounted by 1 - 1 / 5, which `cont` holds at the task's rate or not at all."""
    agent = make(hierarchy__horizon=5, critic__horizon=10, critic__contdisc=contdisc)
    near = agent.main.terms()["closeness"]
    cont = torch.full((1, 2), 0.9 if contdisc else 1.0)
    returns, _ = near.returns(torch.zeros(1, 2), cont, torch.ones(1, 2), torch.ones(1, 2))
    assert returns.tolist() == [[pytest.approx(0.8)]]


@pytest.mark.parametrize("contdisc", [True, False])
def test_the_worker_does_not_fear_the_end_of_the_task(contdisc: bool) -> None:
    """Closeness of 1 at each of two steps, the task over after the first: the worker's return is as if it went on, the task's is not."""
    agent = make(hierarchy__horizon=5, hierarchy__task=1.0, critic__horizon=10, critic__contdisc=contdisc, critic__lam=1.0)
    terms, going = agent.main.terms(), 0.9 if contdisc else 1.0
    reward, value = torch.ones(1, 3), torch.full((1, 3), 2.0)
    for cont in (torch.tensor([[going, 0.0, going]]), torch.full((1, 3), going)):
        returns, _ = terms["closeness"].returns(reward, cont, value, value)
        torch.testing.assert_close(returns, torch.tensor([[1 + 0.8 * (1 + 0.8 * 2), 1 + 0.8 * 2]]))
    ended, _ = terms["extrinsic"].returns(reward, torch.tensor([[going, 0.0, going]]), value, value)
    assert ended[0, 0] == 1, "what the task pays ends with it"
    assert terms["closeness"].weights(torch.tensor([[going, 0.0, going]]))[0, 2] == 0, "what would come after it is not learned from"


def test_the_managers_scale_has_a_floor_of_its_own() -> None:
    terms: Any = make(hierarchy__floor=0.25).behaviors["manager"].terms()
    assert float(terms["extrinsic"].retnorm.stats()[1]) == 0.25


# ---------------------------------------------------------------------------------------------------- views


def hand_made() -> TensorDict:
    """One dream of 8 steps with K = 4: every state is its own number, subgoals 10, 20 and, at the end, 30."""
    number = torch.arange(9.0)[None]
    subgoal = torch.tensor([10.0] * 4 + [20.0] * 4 + [30.0])[None, :, None]
    code = torch.tensor([1.0] * 4 + [2.0] * 4 + [3.0])[None, :, None]
    cont = torch.tensor([[1.0, 0.5, 1, 1, 0.8, 1, 0.5, 1, 0.25]])
    action = TensorDict({"action": 100 + number[..., None]}, [1, 9])
    return TensorDict({"deter": number[..., None], "subgoal": subgoal, "code": code, "cont": cont, "action": action}, [1, 9])


def test_the_worker_sees_segments_that_bootstrap_with_the_old_goal() -> None:
    seen = worker_view(hand_made(), 4)
    assert seen["deter"][..., 0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert seen["subgoal"][..., 0].tolist() == [[10] * 5, [20] * 5]
    assert seen["action", "action"][..., 0].tolist() == [[100, 101, 102, 103, 104], [104, 105, 106, 107, 108]]
    assert torch.allclose(seen["cont"], torch.tensor([[1, 0.5, 1, 1, 0.8], [0.4, 1, 0.5, 1, 0.25]]))
    assert cut(torch.arange(9)[None], 4).tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_the_manager_sees_its_decisions() -> None:
    dream = hand_made()
    seen = manager_view(dream, 4)
    assert seen["deter"][..., 0].tolist() == [[0, 4, 8]]
    assert seen["action", "code"][..., 0].tolist() == [[1, 2, 3]] and list(seen["action"].keys()) == ["code"]
    assert "subgoal" not in seen
    assert torch.allclose(seen["cont"], torch.tensor([[1, 0.5 * 0.8, 0.5 * 0.25]]))
    reward = torch.tensor([[99.0, 1, 2, 3, 4, 5, 6, 7, 8]])
    wanted = [0, (1 + 0.5 * 2 + 0.5 * 3 + 0.5 * 4) / 4, (5 + 6 + 0.5 * 7 + 0.5 * 8) / 4]
    assert manager_reward(reward, dream["cont"], 4)[0].tolist() == pytest.approx(wanted)


def test_views_discount_where_cont_does_not() -> None:
    """With rate g, the return of one decision is that of its four steps, the discount of the last being the critic's own."""
    dream, rate = hand_made(), 0.9
    dream["cont"] = torch.ones(1, 9)
    assert torch.allclose(manager_view(dream, 4, rate)["cont"], torch.tensor([[1, 0.9**3, 0.9**3]]))
    assert manager_reward(torch.ones(1, 9), dream["cont"], 4, rate)[0, 1:].tolist() == pytest.approx([(1 + 0.9 + 0.9**2 + 0.9**3) / 4] * 2)
    assert worker_view(dream, 4, rate)["cont"].tolist() == [[1.0] * 5, [pytest.approx(0.9**4), 1, 1, 1, 1]]


def test_means_do_not_depend_on_k() -> None:
    ones = torch.ones(2, 17)
    assert all(bool((manager_reward(ones, ones, k)[:, 1:] == 1).all()) for k in (1, 2, 4, 8, 16))


def test_a_level_of_one_step_is_the_flat_dream() -> None:
    dream, reward = hand_made(), torch.arange(9.0)[None]
    assert torch.equal(manager_reward(reward, dream["cont"], 1)[:, 1:], reward[:, 1:])
    assert torch.equal(manager_view(dream, 1)["cont"], dream["cont"])
    assert torch.equal(worker_view(dream, 8)["cont"], dream["cont"])


# ---------------------------------------------------------------------------------------------------- who learns from what


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("subgoals",), {"nets.subgoals."}),
        (("manager/policy",), {"behaviors.manager.policy."}),
        (("manager/value", "manager/value/novelty"), {"behaviors.manager.objectives.extrinsic.", "behaviors.manager.objectives.novelty."}),
        (("policy",), {"behaviors.main.policy."}),
        (("value/closeness",), {"behaviors.main.objectives."}),
    ],
)
@pytest.mark.parametrize(("spec", "grad"), [(DISCRETE, "reinforce"), (VECTOR, "dynamics")], ids=["score", "dynamics"])
def test_losses_reach_only_their_own(names: tuple[str, ...], parts: set[str], spec: Spec, grad: str) -> None:
    agent = make(spec, actor__grad=grad, critic__head__outscale=1.0, reward__outscale=1.0)
    found = losses(agent, batch(spec))
    torch.stack([found[n].mean() for n in names]).sum().backward()
    assert moved(agent, *parts) == parts


def test_subgoals_carry_no_gradient() -> None:
    agent = make(VECTOR, actor__grad="dynamics")
    data = batch(VECTOR)
    state, steps, previous = agent.replay_context(data, 1)
    post = agent.rssm.observe(agent.encode(steps), previous, steps["is_first"], state, Draws(0)).detach()
    start = post.exclude("logits").update(agent.context(steps, post, Draws(0))).reshape(-1)
    dream = agent.imagine(start, Draws(1))
    paid = agent.rewards(dream)["closeness"]
    assert not dream["subgoal"].requires_grad and not dream["code"].requires_grad
    paid.sum().backward()
    reached = {n for n, p in agent.named_parameters() if p.grad is not None}
    assert any(n.startswith("behaviors.main.policy") for n in reached), "through the dynamics the actions answer for closeness"
    assert not any(n.startswith(("nets.subgoals", "behaviors.manager")) for n in reached)


def test_the_manager_does_not_see_the_old_subgoal_nor_the_worker_another() -> None:
    agent = make()
    state = agent.initial(2).update(agent.context(TensorDict({}, [2]), agent.initial(2), Draws(0)))
    other = state.clone()
    other["subgoal"] = other["subgoal"] + 1
    same = [agent.renew(s, Draws(0)) for s in (state, other)]
    assert torch.equal(same[0]["subgoal"], same[1]["subgoal"]), "due: what was there before makes no difference"
    state["clock"], other["clock"] = state["clock"] + 1, other["clock"] + 1
    kept = [agent.renew(s, Draws(0)) for s in (state, other)]
    assert torch.equal(kept[0]["subgoal"], state["subgoal"]) and torch.equal(kept[1]["subgoal"], other["subgoal"])
    assert not torch.equal(agent.view(kept[0]), agent.view(kept[1]))


# ---------------------------------------------------------------------------------------------------- controllers


def test_a_weight_is_turned_until_its_measure_is_near_the_target() -> None:
    bonus, charge = Steer(0.5, 0.01, 0.1, raises=True), Steer(10.0, 0.01, 0.1, raises=False)
    assert float(bonus(torch.tensor([0.2, 0.4]))) == pytest.approx(0.011)
    assert float(bonus(torch.tensor(0.54))) == float(bonus(torch.tensor(0.46))) == pytest.approx(0.011), "within a tenth it rests"
    assert float(bonus(torch.tensor(0.9))) == pytest.approx(0.01)
    assert float(charge(torch.tensor(14.0))) == pytest.approx(0.011)
    assert float(charge(torch.tensor(5.0))) == pytest.approx(0.01)
    assert float(charge(torch.tensor(99.0), update=False)) == pytest.approx(0.01)
    for _ in range(200):
        bonus(torch.tensor(0.0))
        charge(torch.tensor(0.0))
    assert float(bonus.weight) == 1.0 and float(charge.weight) == pytest.approx(1e-5)


def test_randomness_runs_from_0_to_1() -> None:
    worker: Any = make(VECTOR).main
    low, high = worker.policy.cfg.min_std, worker.policy.cfg.max_std
    for std, wanted in ((low, 0.0), (high, 1.0), ((low * high) ** 0.5, 0.5)):
        assert float(worker.randomness({"a": Normal(torch.zeros(1, 2), torch.full((1, 2), std))})) == pytest.approx(wanted, abs=1e-6)
    assert float(worker.randomness({"a": Categorical(torch.zeros(1, 8, 8), 1)})) == pytest.approx(1.0)
    sure = Categorical(torch.tensor([[[0.0, -1e9], [0.0, 0.0]]]), 1)
    assert float(worker.randomness({"a": sure})) == pytest.approx(0.5)


def test_entropy_without_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="continuous=normal"):
        make(VECTOR, actor__policy__continuous="normal")
    make(DISCRETE, actor__policy__continuous="normal")


def test_entropy_is_steered_where_it_was_asked_to_be() -> None:
    def after(target: float) -> float:
        agent = make(hierarchy__manager_entropy=target, hierarchy__worker_entropy=target)
        optimizer = agent.optimizer()
        for step in range(3):
            metrics, _ = agent.update(batch(DISCRETE), optimizer, Draws(0, step))
        assert float(metrics["temperature"]) == pytest.approx(float(metrics["manager/temperature"]))
        return float(metrics["temperature"])

    assert after(0.1) == pytest.approx(3e-4 / 1.1**3) and after(1.5) == pytest.approx(3e-4 * 1.1**3)


# ---------------------------------------------------------------------------------------------------- the code


def test_the_kl_is_that_to_the_uniform_code() -> None:
    made = Subgoals(4, groups=2, codes=4, units=8, layers=1, share=0.5, speed=0.1)
    initialize(made, 0)  # weights are whatever lay in memory until then, and 0 times that may be no number
    torch.nn.init.zeros_(made.encoder[1].weight)
    torch.nn.init.zeros_(made.encoder[1].bias)
    torch.nn.init.zeros_(made.decoder[1].weight)
    torch.nn.init.zeros_(made.decoder[1].bias)
    state = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    noise = torch.tensor([[0.5, 0.5]])
    assert made.capacity == pytest.approx(2 * math.log(4))
    assert made.loss(state, noise, update=False).item() == pytest.approx(5.0, abs=1e-5), "a uniform code costs no nats"
    made.encoder[1].bias.data = torch.tensor([50.0, 0, 0, 0] * 2)
    assert made.loss(state, noise, update=False).item() == pytest.approx(5.0 + 0.01 * made.capacity, abs=1e-4)
    assert made.novelty(state).item() == pytest.approx(5.0 / 4)


def test_the_code_sees_states_in_their_own_units_whatever_their_size() -> None:
    """A decoder that tells nothing costs 1, the whole variance; moved and scaled states cost the same; looking changes nothing."""
    noise, states = torch.rand(8, 8), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))

    def cost(x: Tensor) -> tuple[float, Subgoals]:
        made = Subgoals(4, groups=8, codes=8, units=8, layers=1, share=0.0, speed=0.1)
        initialize(made, 0)
        made.beta.weight.zero_()
        made.beta.bounds = (0.0, 0.0)
        return float(made.loss(x, noise).mean().detach()), made

    plain, made = cost(states)
    assert torch.allclose(made.center, states.mean(0), atol=1e-6)
    assert float(made.spread) == pytest.approx(float((states - states.mean(0)).square().sum(-1).mean()))
    assert cost(0.01 * states + 5)[0] == pytest.approx(plain, rel=1e-3)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.loss(states + 3, noise, update=False)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    torch.nn.init.zeros_(made.decoder[1].weight)
    torch.nn.init.zeros_(made.decoder[1].bias)
    assert float(made.loss(states, noise, update=False).mean()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(made.novelty(states), (made.again(states) - states).square().mean(-1), atol=1e-6)


def test_a_code_learns_to_tell_states_at_its_target_of_nats() -> None:
    """Held-out R^2 >= 0.9, KL within 30 % of its target, at least 3 of 8 classes in use in every group: no collapse."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 64, generator=generator)
    states = torch.tanh((torch.rand(3000, 4, generator=generator) * 2 - 1) @ mix)
    made = Subgoals(64, groups=8, codes=8, units=64, layers=2, share=0.6, speed=0.1)
    initialize(made, 0)
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    settle = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 1500)
    for _ in range(1500):
        rows = states[torch.randint(0, 2500, (128,), generator=generator)]
        optimizer.zero_grad()
        made.loss(rows, torch.rand(128, 8, generator=generator)).mean().backward()
        optimizer.step()
        settle.step()
    held_out = states[2500:]
    with torch.no_grad():
        q, told = made.encode(held_out), made.again(held_out)
        rest, whole = (told - held_out).square().sum(), (held_out - held_out.mean(0)).square().sum()
        kl = float((made.capacity - q.entropy()).mean())
        use = q.log_probs.exp().mean(0)
        perplexity = (-(use * use.log()).sum(-1)).exp()
    assert float(1 - rest / whole) >= 0.9
    assert kl == pytest.approx(0.6 * made.capacity, rel=0.3)
    assert float(perplexity.min()) >= 3


# ---------------------------------------------------------------------------------------------------- looking into it


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_report_shows_subgoals_beside_what_was_reached(precision: Any) -> None:
    agent = make(IMAGE)
    agent.accelerate(precision)
    data = batch(IMAGE, 2, 6)
    metrics, pictures = agent.report(data, Draws(0))
    assert {f"subgoals/{k}" for k in ("r2", "kl", "perplexity", "closeness", "reached")} <= metrics.keys()
    film = pictures["subgoal/image"]
    assert film["truth"].shape == film["model"].shape == (2, 3 + 8, 64, 64, 3)
    assert torch.equal(film["truth"][:, :3], data["obs", "image"][:, :3].float() / 255), "three of six steps are seen"
    assert torch.equal(film["truth"][:, 3], film["truth"][:, 6]) and not torch.equal(film["truth"][:, 6], film["truth"][:, 7])
    assert set(make(DISCRETE).report(batch(DISCRETE), Draws(0))[1]) == set()
