"""`ensemble.kind=worlds`: every member is a single agent, learns alone, dreams alone; who acts; what they disagree about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core import registry
from polydream.core.agent import Dreamer
from polydream.core.config import ConfigError
from polydream.core.nets import Conv, Linear, initialize
from polydream.core.outputs import Categorical, Normal, Squared
from polydream.core.rng import Draws
from polydream.core.specs import Spec
from polydream.eval.contract import check_variant
from polydream.variants import crowd
from polydream.variants.crowd import Crowd, Groups
from polydream.variants.ensemble import Ensemble, EnsembleConfig
from polydream.variants.mixtures import Mixture, together
from polydream.variants.thompson import Thompson
from tests.fixtures import DISCRETE, IMAGE, VECTOR, batch, tiny

E = 3
ROWS, STEPS = 6, 7


def make(spec: Spec = VECTOR, **ensemble: Any) -> Ensemble:
    """Members whose heads say something from the start."""
    cfg = tiny()
    cfg = replace(cfg, reward=replace(cfg.reward, outscale=1.0), optim=replace(cfg.optim, lr=1e-3, warmup=0))
    cfg = replace(cfg, critic=replace(cfg.critic, head=replace(cfg.critic.head, outscale=1.0)))
    fields = {name: getattr(cfg, name) for name in type(cfg).__dataclass_fields__}
    return Ensemble(spec, Ensemble.Config(**fields, ensemble=EnsembleConfig(**{"kind": "worlds", "members": E, **ensemble})), 0)


def steps(spec: Spec = VECTOR, members: int = E, seed: int = 0) -> TensorDict:
    """Replayed steps (ROWS, STEPS) with latents of all members; every row is of another stream."""
    data, cfg, generator = batch(spec, rows=ROWS, steps=STEPS, seed=seed), tiny().rssm, torch.Generator().manual_seed(seed)
    deter = torch.rand(ROWS, STEPS, members * cfg.deter, generator=generator) - 0.5
    stoch = torch.randint(0, cfg.classes, (ROWS, STEPS, members * cfg.stoch), generator=generator).to(torch.uint8)
    data["latent"] = TensorDict({"deter": deter, "stoch": stoch}, [ROWS, STEPS])
    data["stepid"] = torch.stack(torch.meshgrid(torch.arange(ROWS), torch.arange(STEPS), indexing="ij"), -1)
    return data


def alone(agent: Ensemble, member: int) -> Dreamer:
    """The member as a single agent."""
    cfg = agent.cfg
    single = Dreamer(VECTOR, tiny(reward=cfg.reward, critic=cfg.critic, optim=cfg.optim), 0)
    tensors = agent.state_dict()
    for name, value in single.state_dict().items():
        home, _, rest = name.partition(".critic." if ".critic." in name else ".slow." if ".slow." in name else ".policy.")
        if rest:
            home += name[len(home) : -len(rest)]
        elif name.startswith("nets."):
            home, rest = ".".join(name.split(".")[:2]) + ".", name.split(".", 2)[2]
        source = name if not member or not rest else f"{home}others.{member - 1}.{rest}"
        if source in tensors:
            value.copy_(tensors[source])
    return single


def cut(data: TensorDict, member: int) -> TensorDict:
    """The batch as the member alone would find it in its replay."""
    cfg, data = tiny().rssm, data.clone()
    parts = {k: data["latent", k].unflatten(-1, (E, -1))[..., member, :] for k in ("deter", "stoch")}
    assert parts["deter"].shape[-1] == cfg.deter
    return data.set("latent", TensorDict(parts, data.batch_size))


class Member(Draws):
    """Noise as one member meets it: its own for posteriors."""

    def __init__(self, member: int) -> None:
        super().__init__(0)
        self.member = member

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        return super().uniform(f"{stream}/{self.member}" if stream == "posterior" and self.member else stream, *shape)


def losses(agent: Dreamer, data: TensorDict, draws: Draws | None = None) -> tuple[dict[str, Tensor], TensorDict]:
    state, data, previous = agent.replay_context(data, 1)
    found, post, _ = agent.losses(data, state, previous, draws or Draws(0))
    return found, post


def of_one(agent: Ensemble, member: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all dreams and episodes to one member."""
    context = Thompson.context

    def given(self: Ensemble, *arguments: Any) -> TensorDict:
        found = context(self, *arguments)
        return found.set("member", torch.full_like(found["member"], member))

    monkeypatch.setattr(Thompson, "context", given)


def moved(agent: Ensemble) -> set[int]:
    """Members any of whose parameters has a gradient that is not zero."""
    found = set()
    for name, parameter in agent.named_parameters():
        if parameter.grad is not None and bool(parameter.grad.any()):
            _, _, rest = name.partition("others.")
            found.add(int(rest.split(".")[0]) + 1 if rest else 0)
    return found


# ---------------------------------------------------------------------------------------------------- single agents


def test_one_member_is_the_base_agent_to_the_bit() -> None:
    ours, theirs = make(members=1), Dreamer(VECTOR, tiny(), 0)
    theirs = Dreamer(VECTOR, tiny(reward=ours.cfg.reward, critic=ours.cfg.critic, optim=ours.cfg.optim), 0)
    first, second = ours.optimizer(), theirs.optimizer()
    for step in range(3):
        one, _ = ours.update(steps(members=1, seed=step), first, Draws(0, step))
        two, _ = theirs.update(steps(members=1, seed=step), second, Draws(0, step))
        assert all(torch.equal(one[k], v) for k, v in two.items())
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items())
    assert ours.report(steps(members=1).exclude("stepid", "latent"), Draws(0))[0]["uncertainty"] == 0, "alone there is no dispute"


@pytest.mark.parametrize("member", range(E))
def test_every_member_is_a_single_agent(member: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients of one among three are those of that agent alone, given the same dreams."""
    agent, data = make(), steps()
    of_one(agent, member, monkeypatch)
    single = alone(agent, member)
    ours, post = losses(agent, data)
    theirs, state = losses(single, cut(data, member), Member(member))
    d = agent.cfg.rssm.deter
    torch.testing.assert_close(post["deter"][..., member * d : (member + 1) * d], state["deter"], rtol=0, atol=1e-6)
    dreamt = ("policy", "value", "repval")
    for name in dreamt:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    # Scales count on every member having its share of the dreams; here one has all.
    agent.total({k: v / E if k in dreamt else v for k, v in ours.items()})[0].backward()
    single.total(theirs)[0].backward()
    wanted = {n: p.grad for n, p in single.named_parameters() if p.grad is not None}
    copy = alone(agent, member)
    for parameter in agent.parameters():
        parameter.data.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    found = dict(alone(agent, member).named_parameters())
    assert wanted.keys() == {n for n, p in copy.named_parameters() if p.requires_grad}
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name].detach(), grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_first_members_start_is_a_single_agents_and_the_others_differ() -> None:
    agent, single = make(), Dreamer(VECTOR, tiny(), 0)
    for name in ("nets.rssm.prior_out.weight", "nets.encoder.mlp.0.linear.weight", "behaviors.main.policy.mlp.0.linear.weight"):
        assert torch.equal(agent.state_dict()[name], single.state_dict()[name])
        home, rest = (
            name.split(".mlp" if ".mlp" in name else ".prior_out")[0],
            name[name.index(".mlp" if ".mlp" in name else ".prior_out") :],
        )
        others = [agent.state_dict()[f"{home}.others.{k}{rest}"] for k in range(E - 1)]
        assert float((others[0] - others[1]).abs().max()) > 1e-3 < float((others[0] - single.state_dict()[name]).abs().max())


# ---------------------------------------------------------------------------------------------------- gradient scopes


def test_a_members_dream_moves_that_member_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for member in range(E):
        agent = make()
        with monkeypatch.context() as patch:
            of_one(agent, member, patch)
            found, _ = losses(agent, steps())
        (found["policy"].mean() + found["value"].mean() + found["repval"].mean()).backward()
        assert moved(agent) == {member}


def test_what_a_member_sees_moves_that_member_only() -> None:
    agent, data = make(), steps()
    state, cut_, previous = agent.replay_context(data, 1)
    post = agent.rssm.observe(agent.encode(cut_), previous, cut_["is_first"], state, Draws(0))
    only = torch.zeros(*post.batch_size, E, dtype=torch.bool)
    only[..., 1] = True
    post["kept"] = only
    found = agent.rssm.kl(post)[0] | agent.model_losses(cut_, post)
    sum(v.mean() for v in found.values()).backward()
    assert moved(agent) == {1}


def test_a_member_whose_sample_is_empty_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(bootstrap=0.5)

    def masks(stepid: Tensor, members: int, share: float) -> Tensor:
        found = torch.ones(*stepid.shape[:-1], members, dtype=torch.bool)
        found[..., 1] = False
        return found

    monkeypatch.setattr("polydream.variants.thompson.kept", masks)
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    metrics, _ = agent.update(steps(), agent.optimizer(), Draws(0))
    assert moved(agent) == {0, 2} and metrics["opt/skipped"] == 0
    changed = {k for k, v in agent.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("others.0." in k for k in changed) and any("others.1." in k for k in changed)


def test_steps_outside_of_its_sample_teach_a_member_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rewards in a row that member 2 does not learn from leave its gradients as they are, and move the others'."""
    grads = []
    for shift in (0.0, 5.0):
        agent, data = make(bootstrap=0.5), steps()
        monkeypatch.setattr(
            "polydream.variants.thompson.kept",
            lambda s, e, p: torch.arange(ROWS).ne(4)[:, None, None].logical_or(torch.arange(e).ne(2)).expand(*s.shape[:-1], e),
        )
        of_one(agent, 2, monkeypatch)
        data["reward"][4] += shift
        agent.total(losses(agent, data)[0])[0].backward()
        grads.append({n: p.grad.clone() for n, p in agent.named_parameters() if p.grad is not None})
        monkeypatch.undo()
    same = {n for n, g in grads[0].items() if torch.equal(g, grads[1][n])}
    assert {n for n in grads[0] if "others.1." in n} <= same
    assert "nets.reward.out.weight" not in same


def test_a_step_is_in_a_members_sample_for_good_and_with_its_neighbours() -> None:
    agent, data = make(bootstrap=0.5), steps()
    kept = agent.prepare(data, Draws(0))["kept"]
    assert kept.shape == (ROWS, STEPS, E) and torch.equal(kept, agent.prepare(data, Draws(9))["kept"])
    assert bool((kept == kept[:, :1]).all()), "steps 0 ... 63 of a stream go together"
    data["stepid"][..., 1] += 61
    later = agent.prepare(data, Draws(0))["kept"]
    assert torch.equal(later[:, :3], kept[:, :3]) and bool((later[:, 3:] == later[:, 3:4]).all())
    assert not torch.equal(later[:, 3], kept[:, 3]) and 0.2 < float(kept.float().mean()) < 0.8


# ---------------------------------------------------------------------------------------------------- whose dream, whose episode


def test_dreams_are_shared_out_evenly_and_kept_to_the_end() -> None:
    agent, counts = make(), torch.zeros(ROWS, E)
    for seed in range(60):
        post = losses(agent, steps(), Draws(seed))[1] if seed < 2 else agent.context(steps()[:, 1:], steps()[:, 1:], Draws(seed))
        member = post["member"]
        assert bool((member == member[:, :1]).all()) and torch.bincount(member[:, 0]).tolist() == [2, 2, 2]
        counts[torch.arange(ROWS), member[:, 0]] += 1
    assert float(counts.min()) >= 8, "20 expected; every sequence comes to every member"
    start = losses(agent, steps())[1].exclude("logits").detach().reshape(-1)
    dream = agent.imagine(start, Draws(0))
    assert bool((dream["member"] == start["member"][:, None]).all()) and dream["deter"].shape[-1] == agent.cfg.rssm.deter


def acting(agent: Ensemble, rows: int, collecting: bool) -> TensorDict:
    data = batch(agent.spec, rows=rows, steps=2)[:, 0]
    return data.select("obs", "is_first", *(["is_last"] if collecting else []))


def test_a_collected_episode_is_one_members() -> None:
    agent, data = make(DISCRETE), acting(make(DISCRETE), 600, True)
    _, state = agent.policy(data, agent.initial(600), Draws(0))
    assert torch.bincount(state["member"]).min() > 150
    again = data.copy().set("is_first", torch.arange(600) < 300)
    _, later = agent.policy(again, state, Draws(0, 1))
    assert torch.equal(later["member"][300:], state["member"][300:]) and not torch.equal(later["member"][:300], state["member"][:300])
    with torch.no_grad():
        for parameter in agent.main.policy.others[0].parameters():
            parameter.add_(3.0)
    changed = (agent.policy(data, agent.initial(600), Draws(0))[1]["action", "action"] != state["action", "action"]).any(-1)
    assert bool(changed.any()) and bool((state["member"][changed] == 1).all()), "the others act as before"


def test_evaluation_follows_the_pilot_or_the_mixture() -> None:
    agents = [make(DISCRETE, pilot=k) for k in (0, 1, 2, -1)]
    for agent in agents:
        initialize(agent.main.policy, 1)
        agent.eval()
    data, mode = acting(agents[0], 5, False), {"action": 0.0}
    acted = [a.policy(data, a.initial(5), Draws(0, modes=mode))[1] for a in agents]
    assert [int(s["member"][0]) for s in acted] == [0, 1, 2, 0] and ["mixture" in s for s in acted] == [False, False, False, True]
    agent, state = agents[3], acted[3]
    probs = []
    for member in range(E):
        one = state.exclude("mixture").set("member", torch.full((5,), member))
        probs.append(agent.main.policy(agent.view(one).detach())["action"].log_probs.exp())
    mean = torch.stack(probs).mean(0)
    assert torch.equal(state["action", "action"].argmax(-1), mean.argmax(-1))
    mixed = agent.main.policy(agent.view(state).detach())["action"]
    onehot = torch.eye(3)[None].expand(5, 3, 3).transpose(0, 1)
    for k in range(3):
        torch.testing.assert_close(mixed.logp(onehot[k]).exp(), mean[:, k])


def test_a_mixture_draws_each_members_action_as_often() -> None:
    each = Categorical(torch.tensor([[[9.0, 0, 0]], [[0, 9.0, 0]], [[0, 9.0, 0]]]).expand(3, 3000, 3))
    seen = Mixture(each, lambda draws: torch.arange(3000) % 3).sample(Draws(0), "action").mean(0)
    torch.testing.assert_close(seen, torch.tensor([1 / 3, 2 / 3, 0]), rtol=0, atol=1e-3)
    wide = Normal(torch.tensor([[[0.0]], [[3.0]]]), torch.ones(2, 1, 1))
    assert Mixture(wide, lambda draws: torch.zeros(1, dtype=torch.long)).sample(Draws(0, modes={"action": 0.0}), "action").tolist() == [
        [1.5]
    ]
    assert Mixture(wide, lambda draws: torch.zeros(1, dtype=torch.long)).pred().tolist() == [[1.5]]


def test_members_have_a_scale_of_returns_each() -> None:
    objective = make().main.terms()["extrinsic"]
    value = Squared(torch.zeros(6, 9), 0)
    value.ids = torch.arange(6)[:, None].expand(-1, 9) // 2  # type: ignore[attr-defined]
    returns = torch.randn(6, 8).repeat(1, 3) * torch.tensor([1.0, 1, 1000, 1000, 1, 1])[:, None]
    for _ in range(3):
        _, scale = objective.spread(returns, value)
    assert float(scale[2]) > 20 and scale[[0, 1, 4, 5]].tolist() == [[1.0]] * 4


# ---------------------------------------------------------------------------------------------------- batching


@pytest.mark.parametrize("few", [0, 10**6])
def test_rows_are_answered_by_their_own_member(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "FEW", few)
    nets = [Linear(3, 2) for _ in range(4)]
    for k, net in enumerate(nets):
        initialize(net, k)
    member, x = torch.tensor([2, 0, 2, 2, 3]), torch.randn(5, 7, 3, requires_grad=True)
    (found,) = Crowd(nets).by_row(lambda net, x: (net(x),), member, x)
    torch.testing.assert_close(found, torch.stack([nets[m](x[i]) for i, m in enumerate(member.tolist())]))
    found[1].sum().backward()
    assert [n.weight.grad is not None and bool(n.weight.grad.any()) for n in nets] == [True, False, False, False]
    assert x.grad is not None and x.grad.flatten(1).any(-1).tolist() == [False, True, False, False, False]


def test_convolutions_are_asked_one_by_one_and_say_the_same() -> None:
    nets = [Conv(3, 4, 3) for _ in range(3)]
    for k, net in enumerate(nets):
        initialize(net, k)
    several, x = Crowd(nets), torch.randn(3, 2, 3, 8, 8)
    assert several.convolutional
    one_by_one = several(lambda net, x: net(x), x)
    torch.testing.assert_close(one_by_one, torch.stack([net(x[k]) for k, net in enumerate(nets)]))
    several.convolutional = False
    torch.testing.assert_close(several(lambda net, x: net(x), x), one_by_one, rtol=1e-4, atol=1e-5)


def test_groups_hold_every_row_once_at_its_members() -> None:
    groups = Groups.of(torch.tensor([1, 1, 0, 1, 2]), 4)
    assert groups.row.tolist() == [[2, 0, 0], [0, 1, 3], [4, 0, 0], [0, 0, 0]] and groups.place.tolist() == [3, 4, 0, 5, 6]
    assert groups.back(torch.tensor([[2, -1, -1], [0, 1, 3], [4, -1, -1], [-1] * 3])).tolist() == [0, 1, 2, 3, 4]


def test_stacks_are_made_anew_only_after_a_parameter_changed() -> None:
    nets = [Linear(3, 2) for _ in range(2)]
    for k, net in enumerate(nets):
        initialize(net, k)
    both, x = Crowd(nets), torch.randn(5, 3)
    with torch.no_grad():
        before = both(lambda net, x: net(x), x, shared=[0])
        kept = both._kept[1]["net.weight"]
        assert torch.equal(both(lambda net, x: net(x), x, shared=[0]), before) and both._kept[1]["net.weight"] is kept
        nets[1].weight.add_(1.0)
        after = both(lambda net, x: net(x), x, shared=[0])
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])


def test_together_is_the_mean_over_members_that_learn() -> None:
    each = Squared(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 0)
    both = together(each, torch.tensor([[True, True], [True, False]]))
    assert both.pred().tolist() == [2.0, 4.0]
    assert both.loss(torch.zeros(2)).tolist() == [(1 + 9) / 2, 4 / 2]


# ---------------------------------------------------------------------------------------------------- as a variant


@pytest.mark.parametrize("spec", [DISCRETE, IMAGE], ids=["classes", "images"])
def test_other_spaces_train_and_report(spec: Spec) -> None:
    agent, optimizer = make(spec), None
    optimizer = agent.optimizer()
    for step in range(2):
        metrics, latents = agent.update(steps(spec, seed=step), optimizer, Draws(0, step))
    assert metrics["opt/skipped"] == 0 and latents["stoch"].shape == (ROWS, STEPS - 1, E * 4, 4)
    report, pictures = agent.report(steps(spec).exclude("stepid", "latent"), Draws(0))
    assert report["uncertainty"] > 0 < report["uncertainty/reward"] and list(pictures) == (["image"] if spec is IMAGE else [])


def test_uncertainty_is_what_members_say_of_reward_and_value() -> None:
    agent = make()
    post = losses(agent, steps())[1]
    said = agent.disputes(post)
    d, s = agent.cfg.rssm.deter, agent.cfg.rssm.stoch
    values = []
    for k in range(E):
        latent = torch.cat([post["deter"][..., k * d : (k + 1) * d], post["stoch"][..., k * s : (k + 1) * s, :].flatten(-2)], -1)
        values.append(alone(agent, k).main.terms()["extrinsic"].critic(latent).pred())
    torch.testing.assert_close(said["value"], torch.stack(values).std(0, correction=0), rtol=1e-4, atol=1e-4)
    assert said["reward"].shape == (ROWS, STEPS - 1) and bool((said["reward"] > 0).all())


def test_what_does_not_go_with_worlds_is_named() -> None:
    with pytest.raises(ConfigError, match="ensemble.use=pessimism needs what members say of one latent"):
        EnsembleConfig(kind="worlds", use="pessimism")
    with pytest.raises(ConfigError, match="ensemble.pilot must be one of the 3 members"):
        EnsembleConfig(kind="worlds", members=3, pilot=3)
    cls = registry.variant("goal+ensemble")
    with pytest.raises(ConfigError, match="ensemble.kind=worlds has latents for each member, and Goal one for all: choose heads or priors"):
        cls(registry.task("world/fourrooms").spec, cls.Config(ensemble=EnsembleConfig(kind="worlds")))
    agent = make()
    cfg = replace(agent.cfg, critic=replace(agent.cfg.critic, valnorm=replace(agent.cfg.critic.valnorm, impl="meanstd")))
    with pytest.raises(ConfigError, match="critic.valnorm.impl=meanstd one for all: choose none"):
        Ensemble(VECTOR, cfg)


@pytest.mark.parametrize("bootstrap", [1.0, 0.6])
def test_the_contract_is_kept(bootstrap: float) -> None:
    class Spared(Ensemble):
        promises = replace(Ensemble.promises, exempt={**Ensemble.promises.exempt, "knobs": "those of other kinds change nothing"})

    assert check_variant(Spared, settings={"ensemble.kind": "worlds", "ensemble.bootstrap": bootstrap}) == []
