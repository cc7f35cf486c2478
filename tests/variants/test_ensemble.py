"""The variant `ensemble`: members, alignment, scopes, who dreams and who acts, stops, and the contract."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn

from polydream.core import registry
from polydream.core.agent import Config, Dreamer
from polydream.core.config import ConfigError
from polydream.core.maths import categorical_kl
from polydream.core.nets import Linear, RMSNorm, initialize
from polydream.core.optim import clip_adaptive
from polydream.core.player import Player
from polydream.core.presets import sized
from polydream.core.rng import Draws
from polydream.core.specs import Spec
from polydream.eval.contract import check_variant
from polydream.variants.disagreement import Disagreement
from polydream.variants.ensemble import Ensemble, EnsembleAgentConfig, EnsembleConfig
from polydream.variants.explorer import Novelty
from polydream.variants.members import Members, kept, spread
from polydream.variants.priors import MultiPrior, mutual_information
from tests.fixtures import DISCRETE, VECTOR, batch, tiny


def config(**ensemble: Any) -> EnsembleAgentConfig:
    cfg = sized(EnsembleAgentConfig(), 16)
    cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4)
    return replace(cfg, ensemble=EnsembleConfig(**{"units": 8, **ensemble}), optim=replace(cfg.optim, lr=1e-3, warmup=0))


def make(spec: Spec = VECTOR, **ensemble: Any) -> Ensemble:
    return Ensemble(spec, config(**ensemble), 0)


def losses(agent: Dreamer, data: TensorDict, seed: int = 0) -> dict[str, torch.Tensor]:
    state, cut, previous = agent.replay_context(data, 1)
    return agent.losses(cut, state, previous, Draws(seed))[0]


def heads(members: int = 3, inputs: int = 5, outputs: int = 2, prior: float = 1.0) -> Disagreement:
    made = Disagreement(inputs, outputs, members=members, units=8, layers=2, prior=prior)
    initialize(made, 0)
    return made


def replayed(agent: Dreamer, data: TensorDict) -> TensorDict:
    """Start states of dreams (N,), as an update makes them."""
    state, cut, previous = agent.replay_context(data, 1)
    post = agent.losses(cut, state, previous, Draws(0))[1]
    return post.exclude("logits").detach().reshape(-1)


# ---------------------------------------------------------------------------------------------------- members


def test_one_batched_pass_is_each_member_alone() -> None:
    crowd = Members(torch.nn.Sequential(Linear(3, 4), torch.nn.SiLU(), Linear(4, 2)) for _ in range(3))
    initialize(crowd, 0)
    x = torch.randn(5, 6, 3)
    torch.testing.assert_close(crowd(x), torch.stack([m(x) for m in crowd]))
    own = torch.randn(3, 6, 3)
    torch.testing.assert_close(crowd(own, shared=False), torch.stack([m(own[k]) for k, m in enumerate(crowd)]))
    crowd(x)[1].sum().backward()
    touched = [float(sum(p.grad.abs().sum() for p in m.parameters())) > 0 for m in crowd]
    assert touched == [False, True, False], "one member's output is one member's business"


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_members_differ_from_the_start_and_after_loading(prior: float) -> None:
    model, x = heads(prior=prior), torch.randn(50, 5)
    assert float(spread(model(x)).detach().min()) > 1e-3
    copy = Disagreement(5, 2, members=3, units=8, layers=2, prior=prior)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(x), model(x))


def test_clipping_and_moments_are_each_members_own() -> None:
    model = heads(prior=0.0)
    layers = [m[1].weight for m in model.learned]  # type: ignore[index]
    assert len({id(w) for w in layers}) == 3
    grads = [torch.full_like(w, 100.0 if k == 1 else 1e-9) for k, w in enumerate(layers)]
    clipped = clip_adaptive(grads, list(layers), 0.3)
    torch.testing.assert_close(clipped[1].norm(), 0.3 * layers[1].norm())
    assert torch.equal(clipped[0], grads[0]) and torch.equal(clipped[2], grads[2])


def test_spread_on_hand_made_numbers() -> None:
    values = torch.tensor([[[0.0, 1.0]], [[4.0, 1.0]]])  # deviations 2 and 0
    assert spread(values).tolist() == [1.0]
    assert spread(values[:1]).tolist() == [0.0]


def test_bootstrap_masks_are_a_share_of_the_steps_and_stay() -> None:
    stepid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(5000), indexing="ij"), -1)
    keep = kept(stepid, 5, 0.8)
    assert keep.shape == (4, 5000, 5) and torch.equal(keep, kept(stepid, 5, 0.8))
    torch.testing.assert_close(keep.float().mean((0, 1)), torch.full((5,), 0.8), rtol=0, atol=0.012)  # 4 standard errors
    pair = (keep[..., 0] & keep[..., 1]).float().mean()
    assert abs(float(pair) - 0.64) < 0.014, "members' samples are independent"
    after = (keep[:, 1:] & keep[:, :-1]).float().mean()
    assert abs(float(after) - 0.64) < 0.01, "and so are neighbouring steps"
    assert torch.equal(kept(stepid[2:3, 70:90], 5, 0.8), keep[2:3, 70:90]), "whatever batch a step comes in"
    assert bool(kept(stepid, 2, 1.0).all())


def test_a_member_learns_nothing_from_steps_outside_its_sample() -> None:
    model = heads()
    state, action, target = torch.randn(4, 3), torch.randn(4, 2), torch.randn(4, 2)
    keep = torch.tensor([[True, False, True]] * 4)
    model.loss(state, action, target, keep).mean().backward()
    touched = [float(sum(p.grad.abs().sum() for p in m.parameters())) > 0 for m in model.learned]
    assert touched == [True, False, True]


# ---------------------------------------------------------------------------------------------------- heads


def test_the_loss_of_the_heads_touches_nothing_else() -> None:
    agent = make(prior=1.0)
    losses(agent, batch(VECTOR))["disagreement"].mean().backward()
    touched = {n for n, p in agent.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert touched == {n for n, p in agent.named_parameters() if n.startswith("nets.disagreement.learned")}
    assert not any(p.requires_grad for p in agent.nets["disagreement"].fixed.parameters()), "prior functions are never trained"


def trained_heads(times: float = 1.0, **rates: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights of all members, one flat vector each, before and after three updates in which member 1 has `times` its gradient."""
    cfg = config()
    agent = Ensemble(VECTOR, replace(cfg, optim=replace(cfg.optim, groups="split", **rates)), 0)
    optimizer, members = agent.optimizer(), agent.nets["disagreement"].learned

    def flat() -> list[torch.Tensor]:
        return [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in members]

    before = flat()
    for parameter in members[1].parameters():
        parameter.register_hook(lambda gradient: gradient * times)
    for step in range(3):
        agent.update(batch(VECTOR), optimizer, Draws(0, step))
    return before, flat()


def test_heads_move_at_the_models_rate() -> None:
    """A known implementation reads the critic's settings here."""
    for rates, moves in (
        ({"lr_model": 1e-3, "lr_actor": 0.0, "lr_critic": 0.0}, True),
        ({"lr_model": 0.0, "lr_actor": 1.0, "lr_critic": 1.0}, False),
    ):
        before, after = trained_heads(**rates)
        assert [not torch.equal(b, a) for b, a in zip(before, after, strict=True)] == [moves] * len(before)


def test_one_members_enormous_gradient_holds_back_no_other() -> None:
    (_, usual), (_, disturbed) = trained_heads(), trained_heads(times=1e6)
    assert [torch.equal(u, d) for u, d in zip(usual, disturbed, strict=True)] == [k != 1 for k in range(len(usual))]


def test_heads_are_given_the_action_of_the_same_step() -> None:
    """The next latent is the action taken here: learnable from a_t, nothing but its variance from a_{t-1}."""
    generator = torch.Generator().manual_seed(0)
    action = (torch.randint(0, 2, (4096, 1), generator=generator) * 2 - 1).float()
    latent, target = torch.zeros(4096, 3), action
    errors = []
    for given in (action, action.roll(1, 0)):
        model = Disagreement(4, 1, members=2, units=8, layers=1, prior=0.0)
        initialize(model, 0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            loss = model.loss(latent, given, target).mean()
            loss.backward()
            optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[0] < 1e-3 and errors[1] > 0.9


def test_training_pairs_each_latent_with_its_own_action_and_the_next_target(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, data = make(DISCRETE, target="deter"), batch(DISCRETE)
    seen: dict[str, Any] = {}
    whole = agent.nets["disagreement"].loss

    def watch(latent: torch.Tensor, action: torch.Tensor, target: torch.Tensor, keep: Any) -> torch.Tensor:
        seen.update(latent=latent, action=action, target=target)
        return whole(latent, action, target, keep)

    monkeypatch.setattr(agent.nets["disagreement"], "loss", watch)
    state, cut, previous = agent.replay_context(data, 1)
    found, post, _ = agent.losses(cut, state, previous, Draws(0))
    assert torch.equal(seen["latent"], agent.latent(post)[:, :-1]) and torch.equal(seen["target"], post["deter"][:, 1:])
    assert torch.equal(seen["action"].argmax(-1), cut["action", "action"][:, :-1].long())
    assert found["disagreement"].shape == (3, 5)
    assert found["disagreement"][0, 2] == 0 and bool((found["disagreement"][1:] > 0).all()), "no transition crosses into a new episode"


def test_a_novel_action_pays_on_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(DISCRETE, use="explore")
    dream = agent.imagine(replayed(agent, batch(DISCRETE)), Draws(0))
    usual = agent.rewards(dream)["disagreement"]
    other = dream.clone()
    other["action", "action"][:, 2] = other["action", "action"][:, 2].roll(1, -1)
    changed = (agent.rewards(other)["disagreement"] != usual).any(0)
    assert changed.tolist() == [False, False, False, True, False]


def test_gradient_through_the_dynamics_reaches_the_explorer() -> None:
    """Inputs of the reward are not detached: a continuous explorer would learn nothing from it (trap 41)."""
    cfg = config(dreams=1.0)
    agent = Ensemble(VECTOR, replace(cfg, actor=replace(cfg.actor, grad="dynamics", entropy=0.0)), 0)
    losses(agent, batch(VECTOR))["policy"].mean().backward()
    theirs = agent.main.policy.theirs.parameters()
    assert sum(float(p.grad.abs().sum()) for p in theirs if p.grad is not None) > 0
    assert all(p.grad is None or not p.grad.any() for p in agent.nets.parameters())


# ---------------------------------------------------------------------------------------------------- prior heads


def test_mutual_information_is_between_nothing_and_the_logarithm_of_the_members() -> None:
    sure = torch.eye(4)[torch.tensor([0, 1, 2])].clamp(min=1e-30).log()[:, None, None].expand(3, 7, 2, 4)  # three opinions, two groups
    torch.testing.assert_close(mutual_information(sure), torch.full((7,), 2 * math.log(3)))
    same = torch.randn(1, 7, 2, 4).log_softmax(-1).expand(5, 7, 2, 4)
    torch.testing.assert_close(mutual_information(same), torch.zeros(7), rtol=0, atol=1e-5)
    some = mutual_information(3 * torch.randn(5, 1000, 2, 4).log_softmax(-1).log_softmax(-1))
    assert float(some.min()) > 0 and float(some.max()) < 2 * math.log(4)


def prior_core(members: int, redraw: str = "dream") -> MultiPrior:
    core = MultiPrior("block_gru", 2, 6, config().rssm, members=members, redraw=redraw)  # type: ignore[arg-type]
    initialize(core, 0)
    return core


def test_one_prior_head_is_the_plain_core_to_the_bit() -> None:
    data = batch(VECTOR)
    plain, single = (
        Dreamer(VECTOR, tiny(), 0),
        make(kind="priors", members=1, dreams=0.0),
    )
    ours, theirs = losses(single, data), losses(plain, data)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_dream_follows_its_member() -> None:
    core = prior_core(3)
    state = TensorDict(
        {"deter": torch.rand(1, 32).expand(6, 32), "stoch": torch.zeros(6, 4, 4), "member": torch.tensor([0, 1, 2, 0, 1, 2])}, [6]
    )
    action = torch.zeros(6, 2)
    greedy = core.step(state, action, Draws(0, modes={"prior": 0.0}))
    wanted = core.log_prior(greedy["deter"]).argmax(-1)
    assert torch.equal(greedy["stoch"].argmax(-1), wanted[state["member"], torch.arange(6)])
    apart = core.step(state.exclude("member"), action, Draws(0, modes={"prior": 0.0}))
    mean = core.log_prior(greedy["deter"]).exp().mean(0).argmax(-1)
    assert torch.equal(apart["stoch"].argmax(-1), mean), "without a member all heads are averaged"


def test_member_is_fixed_along_a_dream_or_drawn_at_each_step() -> None:
    for redraw in ("dream", "step"):
        agent = make(kind="priors", members=4, redraw=redraw)
        start = replayed(agent, batch(VECTOR))
        dream = agent.imagine(start, Draws(0))
        assert bool((dream["member"] == start["member"][:, None]).all()) and len(set(start["member"].tolist())) == 4
        moved = start.clone().set("member", (start["member"] + 1) % 4)
        same = torch.equal(agent.imagine(moved, Draws(0))["stoch"], dream["stoch"])
        assert same == (redraw == "step"), "a redrawn member owes nothing to the dream's own"


def test_every_prior_head_is_pulled_to_the_posterior_and_the_posterior_to_all_of_them() -> None:
    core = prior_core(3)
    core.cfg = replace(core.cfg, free_nats=0.0)
    logits, deter = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 32)
    found, _ = core.kl(TensorDict({"logits": logits, "deter": deter}, [2, 3]))
    each = [categorical_kl(core.log_probs(logits), core.log_prior(deter)[k]).sum(-1) for k in range(3)]
    torch.testing.assert_close(found["dyn"], torch.stack(each).mean(0))
    torch.testing.assert_close(found["rep"], torch.stack(each).mean(0))
    outs = [core.prior_out, *(h[1] for h in core.others)]  # type: ignore[index]
    found["dyn"].sum().backward()
    assert logits.grad is None and all(bool(layer.weight.grad.any()) for layer in outs)
    core.zero_grad()
    found["rep"].sum().backward()
    assert bool(logits.grad.any()) and all(layer.weight.grad is None for layer in outs)


def test_charge_and_reward_of_prior_heads_are_in_nats() -> None:
    agent = make(kind="priors", members=4)
    u = agent.uncertainty(agent.imagine(replayed(agent, batch(VECTOR)), Draws(0))).detach()
    assert float(u.min()) >= -1e-6 and float(u.max()) <= 4 * math.log(4)


# ---------------------------------------------------------------------------------------------------- explorer


def explorer_state(agent: Dreamer, data: TensorDict, explore: bool) -> TensorDict:
    start = replayed(agent, data)
    return start.set("explore", torch.full(start.batch_size, explore))


@pytest.mark.parametrize(("share", "learns"), [(1e-9, {"ours"}), (1.0, {"theirs"}), (0.5, {"ours", "theirs"})])
def test_every_dream_is_one_policys_and_trains_that_one_only(share: float, learns: set[str]) -> None:
    agent = make(dreams=share)
    found = losses(agent, batch(VECTOR))
    (found["policy"].mean() + found["value"].mean() + found["value/disagreement"].mean()).backward()
    moved = {n for n, p in agent.main.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {side for side in ("ours", "theirs") for n in moved if f".{side}." in n} == learns


def test_the_explorer_climbs_disagreement_and_the_task_policy_the_task() -> None:
    agent = make(intrinsic=2.0, extrinsic=0.5)
    gains = agent.main.combine({"extrinsic": torch.tensor([[3.0]]), "disagreement": torch.tensor([[5.0]])})
    assert gains.tolist() == [[[3.0]], [[11.5]]]


def test_disagreement_has_a_scale_of_its_own() -> None:
    """Rewards of 1e-4 and of 1 give the same advantages; with the floor of task returns the small ones would vanish."""
    found = []
    for size in (1e-4, 1.0):
        objective = Novelty(3, tiny().critic)
        initialize(objective, 0)
        objective.start()
        features, cont = torch.zeros(8, 5, 3), torch.full((8, 5), 0.9)
        reward = size * torch.linspace(0, 1, 40).reshape(8, 5).roll(3, 0)
        found.append(objective.judge(objective.critic(features), objective.slow(features), reward, cont).advantage)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    assert float(found[0].std()) > 0.1


@pytest.mark.parametrize("kind", ["heads", "priors", "worlds"])
def test_every_kind_learns_in_bfloat16(kind: str) -> None:
    """Dreams carry their state in it, and a recurrent cell is asked by each kind in its own way."""
    found = {}
    for precision in ("float32", "bfloat16"):
        agent = make(kind=kind, members=3)
        agent.accelerate(precision)
        data = batch(VECTOR, cfg=agent.cfg)
        if kind == "worlds":
            data["latent"] = data["latent"].apply(lambda x: x.repeat(1, 1, 3, *[1] * (x.ndim - 3)))
        found[precision] = float(losses(agent, data)["dyn"].mean())
        agent.update(data, agent.optimizer(), Draws(0))
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05)


def acting(agent: Dreamer, rows: int, collecting: bool) -> TensorDict:
    data = batch(VECTOR, rows=rows, steps=2)[:, 0]
    return data.select("obs", "is_first", *(["is_last"] if collecting else []))


def test_the_explorer_acts_in_its_share_of_collected_episodes_and_never_for_a_player() -> None:
    agent = make(episodes=0.25)
    _, state = agent.policy(acting(agent, 2000, True), agent.initial(2000), Draws(0))
    assert abs(float(state["explore"].float().mean()) - 0.25) < 0.04
    _, state = agent.policy(acting(agent, 2000, False), agent.initial(2000), Draws(0))
    assert not state["explore"].any()
    agent.eval()
    _, state = agent.policy(acting(agent, 2000, True), agent.initial(2000), Draws(0))
    assert not state["explore"].any(), "nor in evaluation mode"


def test_a_player_acts_as_if_there_were_no_explorer() -> None:
    agent = make(episodes=1.0)
    obs = {"pos": np.zeros((4, 3), np.float32), "height": np.zeros(4, np.float32)}
    before, _ = Player(agent).act(obs)
    with torch.no_grad():
        for p in agent.main.policy.theirs.parameters():
            p.add_(1.0)
    after, _ = Player(agent).act(obs)
    assert np.array_equal(before["action"], after["action"])
    data = acting(agent, 4, True)
    one, _ = agent.policy(data, agent.initial(4), Draws(0))
    with torch.no_grad():
        for p in agent.main.policy.theirs.parameters():
            p.add_(-1.0)
    two, _ = agent.policy(data, agent.initial(4), Draws(0))
    assert not torch.equal(one["action"], two["action"]), "while collecting the explorer acts"


def test_exploration_ends_on_schedule() -> None:
    agent = make(episodes=1.0, dreams=1.0, until=2)
    chosen = []
    for updates in range(4):
        agent.updates.fill_(updates)
        _, state = agent.policy(acting(agent, 5, True), agent.initial(5), Draws(0))
        chosen.append((bool(state["explore"].all()), bool(replayed(agent, batch(VECTOR))["explore"].all())))
    assert chosen == [(True, True), (True, True), (False, False), (False, False)]


# ---------------------------------------------------------------------------------------------------- pessimism and stops


def test_pessimism_takes_lambda_times_disagreement_off_the_reward() -> None:
    agent = make(use="pessimism", pessimism=3.0)
    torch.nn.init.normal_(agent.reward.out.weight)
    dream = agent.imagine(replayed(agent, batch(VECTOR)), Draws(0))
    plain = agent.reward(agent.latent(dream)).pred()
    torch.testing.assert_close(agent.rewards(dream)["extrinsic"], plain - 3.0 * agent.uncertainty(dream))


def test_a_stopped_dream_is_worth_what_the_critic_says_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubt rises along one dream of four: it ends there and its return is bootstrapped there, nothing after it counts."""
    agent = make(use="measure", stop=0.5)
    start = replayed(agent, batch(VECTOR))
    doubt = torch.tensor([[0, 1, 1, 9, 1], [0, 2, 1, 1, 1], [0, 3, 1, 1, 1], [0, 4, 1, 1, 1.0]])
    monkeypatch.setattr(agent, "uncertainty", lambda dream: doubt)
    torch.nn.init.normal_(agent.main.objectives["extrinsic"].critic.out.weight, std=0.02)
    dream = agent.imagine(start[:4], Draws(0))
    ends = dream["cont"] == 0  # above the median of 1, 2, 3, 4
    assert ends.tolist() == [[False] * 3 + [True, False], [False] * 5, [False, True] + [False] * 3, [False, True] + [False] * 3]
    objective = agent.main.objectives["extrinsic"]
    value = objective.critic(agent.view(dream)).pred()
    reward = agent.rewards(dream)["extrinsic"].detach()
    plain = agent.reward(agent.latent(dream)).pred()
    ret, _ = objective.returns(reward, dream["cont"], value.detach(), value.detach())
    torch.testing.assert_close(ret[0, 2], (plain[0, 3] + dream["trust"][0, 3] * value[0, 3]).detach())
    torch.testing.assert_close(reward[1], plain[1].detach())
    assert objective.weights(dream["cont"])[0, 3:].tolist() == [0.0, 0.0]


def test_stopping_what_is_sought_is_refused() -> None:
    with pytest.raises(ConfigError, match="ensemble.stop cuts off what ensemble.use=explore pays for"):
        EnsembleConfig(stop=0.9)


# ---------------------------------------------------------------------------------------------------- as a variant


@pytest.mark.parametrize("kind", ["heads", "priors"])
def test_updates_are_a_function_of_weights_batch_and_draws(kind: str) -> None:
    ends = []
    for _ in range(2):
        agent = make(kind=kind, bootstrap=0.7 if kind == "heads" else 1.0)
        optimizer = agent.optimizer()
        for step in range(2):
            torch.randn(3)
            agent.update(batch(VECTOR, seed=step), optimizer, Draws(1, step))
        ends.append({k: v.clone() for k, v in agent.state_dict().items()})
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


@pytest.mark.parametrize("use", ["measure", "explore"])
def test_heads_beside_the_base_agent_leave_its_losses_to_the_bit(use: str) -> None:
    data = [batch(VECTOR, seed=s) for s in range(3)]
    plain, ours = Dreamer(VECTOR, replace(tiny(), optim=config().optim), 0), make(use=use, dreams=0.0)
    first, second = plain.optimizer(), ours.optimizer()
    for step, steps in enumerate(data):
        one, _ = plain.update(steps, first, Draws(0, step))
        two, _ = ours.update(steps, second, Draws(0, step))
        assert all(torch.equal(two[k], v) for k, v in one.items() if k.startswith("loss/"))


def test_the_contract_is_kept() -> None:
    assert check_variant(Ensemble) == []


@pytest.mark.parametrize(
    "settings",
    [{"ensemble.kind": "priors"}, {"ensemble.use": "pessimism"}],
    ids=["priors", "pessimism"],
)
def test_the_contract_is_kept_in_its_other_kinds(settings: dict[str, Any]) -> None:
    found = [line for line in check_variant(Ensemble, settings=settings) if "changes nothing" not in line]
    assert found == []


def test_with_goals_it_is_the_scheme_of_lexa() -> None:
    """One policy reaches goals, the other looks for what is new; both see the goal, each has its own dreams."""
    cls = registry.variant("goal+ensemble")
    spec = registry.task("world/fourrooms").spec
    cfg = sized(cls.Config(), 16)
    cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4, ensemble=EnsembleConfig(units=8))
    agent = cls(spec, cfg, 0)
    assert set(agent.main.terms()) == {"goal", "disagreement"}
    found = losses(agent, batch(spec))
    assert found.keys() == agent.scales().keys() and {"value/goal", "value/disagreement", "disagreement", "achieved"} <= found.keys()
    with pytest.raises(ConfigError, match="charges the task's reward, but the policy climbs goal"):
        cls(spec, replace(cfg, ensemble=EnsembleConfig(use="pessimism")), 0)


def test_it_is_registered_and_its_configuration_is_the_base_agents_and_one_group() -> None:
    assert registry.variant("ensemble") is Ensemble
    assert issubclass(Ensemble.Config, Config)


def test_members_are_evaluated_together_where_their_norms_are_to_be_compiled() -> None:
    """With compile=steps the agent marks every norm; a compiled one cannot be called within the batched pass."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = Linear(3, 4), RMSNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm.silu(self.linear(x))

    members = Members(Net() for _ in range(2))
    initialize(members, 0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([net(x) for net in members])
    for net in members:
        net.norm.compiled = True
    torch.testing.assert_close(members(x), expected)
    assert all(net.norm.compiled for net in members), "others still compile them"
