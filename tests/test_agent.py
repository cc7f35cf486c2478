"""The base agent: scopes, neutrality, acting equals training, every option changes something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polydream.core.agent import Config, Dreamer
from polydream.core.config import ConfigError, leaves, override
from polydream.core.knobs import Scales
from polydream.core.launch import make_agent
from polydream.core.normalizer import NormConfig
from polydream.core.presets import resolve
from polydream.core.profiles import PROFILES
from polydream.core.rng import Draws
from polydream.core.specs import Spec
from tests.fixtures import DISCRETE, IMAGE, VECTOR, agent, batch, tiny


def losses(dreamer: Dreamer, data: TensorDict, draws: Draws | None = None) -> dict[str, torch.Tensor]:
    state, cut, previous = dreamer.replay_context(data, 1)
    return dreamer.losses(cut, state, previous, draws or Draws(0))[0]


@pytest.mark.parametrize("spec", [VECTOR, DISCRETE, IMAGE], ids=["vector", "discrete", "image"])
def test_updates_lower_the_loss_on_one_batch(spec: Spec) -> None:
    dreamer = agent(spec, optim=replace(tiny().optim, lr=3e-3, warmup=0))
    optimizer, data = dreamer.optimizer(), batch(spec)
    history = [float(dreamer.update(data, optimizer, Draws(0, 0))[0]["opt/loss"]) for _ in range(30)]
    assert history[-1] < 0.9 * history[0]
    assert int(dreamer.updates) == 30


def test_a_policy_that_sleeps_stands_still_to_the_bit_and_then_moves() -> None:
    dreamer = agent(optim=replace(tiny().optim, warmup=0))
    optimizer = dreamer.optimizer()
    policy, critic = dreamer.main.policy, dreamer.main.terms()["extrinsic"].critic
    start = [p.detach().clone() for p in policy.parameters()]
    for step in range(3):
        dreamer.main.awake = step == 2
        before = [p.detach().clone() for p in critic.parameters()]
        metrics, _ = dreamer.update(batch(VECTOR, seed=step), optimizer, Draws(0, step))
        assert ("asleep" in metrics) == (step < 2) == (float(metrics["grad_norm/actor"]) == 0.0)
        moved = [not torch.equal(a, b) for a, b in zip(start, policy.parameters(), strict=True)]
        assert any(moved) == (step == 2) and (step < 2) == all(p not in optimizer.state for p in policy.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True)), "the critic does not sleep"


def test_an_update_is_a_function_of_weights_batch_and_draws() -> None:
    results = []
    for _ in range(2):
        dreamer = agent(optim=replace(tiny().optim, warmup=0))
        optimizer = dreamer.optimizer()
        for step in range(3):
            torch.randn(17)  # the global generator plays no part
            _, latents = dreamer.update(batch(VECTOR, seed=step), optimizer, Draws(5, step))
        results.append((latents, {k: v.clone() for k, v in dreamer.state_dict().items()}))
    assert all(torch.equal(results[0][0][k], results[1][0][k]) for k in ("deter", "stoch"))
    assert all(torch.equal(v, results[1][1][k]) for k, v in results[0][1].items())


def test_acting_step_by_step_equals_training_at_once() -> None:
    dreamer = agent(DISCRETE)
    data = batch(DISCRETE, rows=3, steps=7)
    modes = {"posterior": 0.0, "action": 0.0}
    previous = torch.zeros(3, 7, 3)
    state, acted = dreamer.initial(3), []
    for t in range(7):
        step = data[:, t].select("obs", "is_first")
        _, state = dreamer.policy(step, state, Draws(0, modes=modes))
        acted.append(state.select("deter", "stoch"))
        if t < 6:
            previous[:, t + 1] = state["action", "action"]
    whole = dreamer.rssm.observe(dreamer.encode(data), previous, data["is_first"], dreamer.rssm.initial(3), Draws(0, modes=modes))
    together = torch.stack(acted, 1)
    for key in ("deter", "stoch"):
        torch.testing.assert_close(together[key], whole[key], rtol=1e-5, atol=1e-5)


def test_final_methods_cannot_be_overridden() -> None:
    for name in ("update", "losses", "rollout", "policy"):
        with pytest.raises(TypeError, match=f"Mine.{name} is the core's own"):
            type("Mine", (Dreamer,), {name: lambda self: None})


def test_losses_and_scales_must_agree() -> None:
    class Forgetful(Dreamer):
        def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, torch.Tensor]:
            return super().model_losses(batch, post) | {"extra": torch.zeros(batch.batch_size)}

    dreamer = Forgetful(VECTOR, tiny())
    with pytest.raises(ValueError, match=r"losses without a scale: \['extra'\]"):
        dreamer.total(losses(dreamer, batch(VECTOR)))


def test_a_component_with_zero_weight_leaves_the_base_losses_bit_equal() -> None:
    class Noisy(Dreamer):
        def build(self) -> dict[str, torch.nn.Module]:
            from polydream.core.nets import MLP

            return {"probe": MLP(3, 4, 2)} | super().build()

        def scales(self) -> dict[str, float]:
            return super().scales() | {"probe": 0.0}

        def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, torch.Tensor]:
            noise = Draws(1, 0).normal("probe", *batch.batch_size, 3)
            return super().model_losses(batch, post) | {"probe": self.nets["probe"](noise).square().sum(-1)}

    plain, noisy = Dreamer(VECTOR, tiny(), 3), Noisy(VECTOR, tiny(), 3)
    first, second = plain.optimizer(), noisy.optimizer()
    for step in range(3):
        data = batch(VECTOR, seed=step)
        ours, _ = plain.update(data, first, Draws(0, step))
        theirs, _ = noisy.update(data, second, Draws(0, step))
        assert all(torch.equal(ours[k], theirs[k]) for k in ours if k.startswith("loss/"))


def test_context_travels_and_is_renewed_where_an_episode_begins() -> None:
    class Tagged(Dreamer):
        def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
            return super().context(data, state, draws).set("tag", data["obs", "height"].clone())

    dreamer = Tagged(VECTOR, tiny())
    state = dreamer.initial(2)
    tags = []
    for t, first in enumerate([[True, True], [False, False], [False, True]]):
        obs = {"pos": torch.zeros(2, 3), "height": torch.tensor([10.0 + t, 20.0 + t])}
        _, state = dreamer.policy(TensorDict({"obs": obs, "is_first": torch.tensor(first)}, [2]), state, Draws(0, t))
        tags.append(state["tag"].tolist())
    assert tags == [[10.0, 20.0], [10.0, 20.0], [10.0, 22.0]]
    start = TensorDict({"deter": torch.zeros(4, 32), "stoch": torch.zeros(4, 4, 4), "tag": torch.arange(4.0)}, [4])
    dream = dreamer.imagine(start, Draws(0))
    assert dream.batch_size == (4, 5) and bool((dream["tag"] == torch.arange(4.0)[:, None]).all())


def test_dream_rewards_belong_to_the_arriving_state() -> None:
    """Hand-made rewards: the return of a start begins with the reward at index 1, and index 0 is never read."""
    dreamer = agent(critic=replace(tiny().critic, contdisc=False, horizon=10_000_000, lam=1.0))
    objective = dreamer.main.objectives["extrinsic"]
    reward = torch.tensor([[100.0, 1.0, 2.0, 3.0, 4.0]])
    ret, base = objective.returns(reward, torch.ones(1, 5), torch.zeros(1, 5), torch.zeros(1, 5))
    torch.testing.assert_close(ret, torch.tensor([[10.0, 9.0, 7.0, 4.0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize("spec", [VECTOR, DISCRETE, IMAGE], ids=["vector", "discrete", "image"])
def test_profiles_train(name: str, spec: Spec) -> None:
    cfg = PROFILES[name](tiny())
    if name == "seed":
        cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4))
    dreamer = Dreamer(spec, cfg)
    optimizer = dreamer.optimizer()
    before = {k: p.clone() for k, p in dreamer.named_parameters()}
    for step in range(2):
        metrics, _ = dreamer.update(batch(spec, cfg=cfg), optimizer, Draws(0, step), context=0)
    assert all(torch.isfinite(v).all() for v in metrics.values())
    still = [k for k, p in dreamer.named_parameters() if p.requires_grad and torch.equal(p, before[k]) and p.grad is None]
    assert not still, f"no gradient reaches {still}"
    assert float(metrics["grad_norm/actor"]) > 0, "the actor must learn, through the dynamics as well"


def test_gradient_through_the_dynamics_moves_only_the_policy() -> None:
    cfg = replace(tiny(), actor=replace(tiny().actor, grad="dynamics"), scales=Scales(repval=0.0))
    dreamer = Dreamer(VECTOR, cfg)
    # A reward head that starts at zero passes no gradient on.
    torch.nn.init.normal_(dreamer.reward.out.weight)
    torch.nn.init.normal_(dreamer.main.objectives["extrinsic"].critic.out.weight)
    losses(dreamer, batch(VECTOR))["policy"].mean().backward()
    touched = {n for n, p in dreamer.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert touched and all(n.startswith("behaviors.main.policy") for n in touched)
    assert all(p.requires_grad for p in dreamer.nets.parameters()), "frozen only while dreaming"


@pytest.mark.parametrize("target", ["online", "slow"])
def test_gradient_through_the_dynamics_passes_through_the_bootstrapping_critic(target: str) -> None:
    critic = replace(tiny().critic, target=target, lam=0.0)
    dreamer = Dreamer(VECTOR, replace(tiny(), actor=replace(tiny().actor, grad="dynamics", entropy=0.0), critic=critic))
    # Rewards and endings that nothing can change: only values are left to learn from.
    for head in (dreamer.reward.out, dreamer.cont.out):
        torch.nn.init.zeros_(head.weight)
    objective = dreamer.main.objectives["extrinsic"]
    for net in (objective.critic, objective.slow):
        torch.nn.init.zeros_(net.out.weight)
    torch.nn.init.normal_(objective.bootstrap.out.weight)
    losses(dreamer, batch(VECTOR))["policy"].mean().backward()
    assert sum(float(p.grad.abs().sum()) for p in dreamer.main.policy.parameters() if p.grad is not None) > 0


CHANGES: dict[str, Any] = {
    "dynamics": "gru", "dream": 3, "starts": 2, "reward_grad": False, "repval_grad": False,
    "encoder.depth": 4, "encoder.mults": (1, 2, 2, 4), "encoder.kernel": 3, "encoder.down": "stride", "encoder.outer": True,
    "encoder.layers": 2, "encoder.units": 8, "encoder.symlog": False, "encoder.norm": "layer", "encoder.act": "relu",
    "decoder.depth": 4, "decoder.mults": (1, 2, 2, 4), "decoder.kernel": 3, "decoder.down": "stride", "decoder.outer": True,
    "decoder.layers": 2, "decoder.units": 8, "decoder.symlog": False, "decoder.norm": "layer", "decoder.act": "relu",
    "rssm.deter": 64, "rssm.hidden": 8, "rssm.stoch": 8, "rssm.classes": 8, "rssm.blocks": 4, "rssm.cell_layers": 2,
    "rssm.prior_layers": 1, "rssm.post_layers": 2, "rssm.unimix": 0.2, "rssm.free_nats": 3.0, "rssm.absolute": True,
    "rssm.norm": "layer", "rssm.act": "relu",
    "reward.dist": "symlog_mse", "reward.layers": 2, "reward.units": 8, "reward.bins": 41, "reward.outscale": 1.0,
    "reward.norm": "layer", "reward.act": "relu",
    "cont.layers": 2, "cont.units": 8, "cont.outscale": 0.5, "cont.norm": "layer", "cont.act": "relu", "cont.dist": "mse",
    "actor.policy.layers": 2, "actor.policy.units": 8, "actor.policy.continuous": "tanh_normal", "actor.policy.min_std": 0.3,
    "actor.policy.max_std": 0.7, "actor.policy.unimix": 0.5, "actor.policy.outscale": 1.0, "actor.policy.norm": "layer",
    "actor.policy.act": "relu", "actor.grad": "dynamics", "actor.objective": "symlog_return", "actor.entropy": 0.1,
    "actor.advnorm.impl": "meanstd",
    "critic.head.dist": "symlog_mse", "critic.head.layers": 2, "critic.head.units": 8, "critic.head.bins": 41,
    "critic.head.outscale": 1.0, "critic.head.norm": "layer", "critic.head.act": "relu", "critic.target": "slow",
    "critic.slow_rate": 0.5, "critic.slow_every": 2, "critic.slow_weight": 0.0, "critic.lam": 0.5, "critic.horizon": 10,
    "critic.contdisc": False, "critic.retnorm.impl": "meanstd", "critic.retnorm.rate": 0.5, "critic.retnorm.limit": 1e9,
    "critic.retnorm.low": 20.0, "critic.retnorm.high": 80.0, "critic.retnorm.debias": True, "critic.valnorm.impl": "meanstd",
    "scales.rec": 2.0, "scales.reward": 2.0, "scales.cont": 2.0, "scales.dyn": 2.0, "scales.rep": 2.0, "scales.policy": 2.0,
    "scales.value": 2.0, "scales.repval": 0.0,
    "optim.kind": "adam", "optim.groups": "split", "optim.lr": 1e-2, "optim.agc": 1e-4, "optim.clip": 1e-3,
    "optim.eps": 1.0, "optim.beta1": 0.5, "optim.beta2": 0.5, "optim.nesterov": True, "optim.decay": 0.1, "optim.warmup": 7,
    "optim.schedule": "linear",
}  # fmt: skip
"""Every knob of the base agent, and a value that must change what three updates do."""

ELSEWHERE = {
    # covered by their own tests, or only active beside another knob (below)
    "augment", "rssm.checkpoint", "optim.anneal", "optim.lr_model", "optim.lr_actor", "optim.lr_critic", "optim.clip_model",
    "optim.clip_actor", "optim.clip_critic",
}  # fmt: skip
INACTIVE = ("actor.advnorm.", "critic.valnorm.", "cont.bins")
BESIDE = {
    "optim.lr_model": 1e-2,
    "optim.lr_actor": 1e-2,
    "optim.lr_critic": 1e-2,
    "optim.clip_model": 1e-3,
    "optim.clip_actor": 1e-5,
    "optim.clip_critic": 1e-4,
}


def outcome(cfg: Config, spec: Spec) -> list[float]:
    dreamer = Dreamer(spec, cfg)
    optimizer = dreamer.optimizer()
    data = batch(spec, rows=2, steps=5, cfg=cfg)
    for step in range(3):
        metrics, _ = dreamer.update(data, optimizer, Draws(0, step))
    return [float(metrics["opt/loss"]), *(float(p.detach().double().sum()) for p in dreamer.parameters())]


def base(**changes: Any) -> Config:
    """Starts where every knob matters: rewards not at zero, returns above the normaliser's floor, no warm-up."""
    cfg = tiny()
    head = replace(cfg.critic.head, outscale=1e-3)
    critic = replace(cfg.critic, head=head, retnorm=NormConfig(limit=1e-3))
    return replace(
        cfg, reward=replace(cfg.reward, outscale=1e-3), critic=critic, optim=replace(cfg.optim, lr=1e-3, warmup=0, anneal=5), **changes
    )


def test_every_knob_is_covered() -> None:
    missing = [k for k in leaves(Config()) if k not in CHANGES and k not in ELSEWHERE and not k.startswith(INACTIVE)]
    assert not missing, f"knobs without a test that turns them: {missing}"


@pytest.mark.parametrize("knob", sorted(CHANGES))
def test_turning_a_knob_changes_something(knob: str) -> None:
    picture = knob.startswith(("encoder.", "decoder.")) and knob.split(".")[1] in ("depth", "mults", "kernel", "down", "outer")
    spec = IMAGE if picture else DISCRETE if knob == "actor.policy.unimix" else VECTOR
    assert outcome(override(base(), knob, CHANGES[knob]), spec) != outcome(base(), spec)


@pytest.mark.parametrize("knob", sorted(BESIDE))
def test_split_groups_have_their_own_rates_and_clips(knob: str) -> None:
    split = override(override(base(), "optim.groups", "split"), "optim.kind", "laprop" if "lr" in knob else "adam")
    # Adam ignores the scale of gradients unless its epsilon is of their size.
    split = split if "lr" in knob else override(split, "optim.eps", 1e-3)
    assert outcome(override(split, knob, BESIDE[knob]), VECTOR) != outcome(split, VECTOR)


def test_image_shift_moves_whole_sequences() -> None:
    dreamer = agent(IMAGE, augment="shift")
    data = batch(IMAGE, rows=4, steps=3)
    data["obs", "image"][:] = torch.arange(64, dtype=torch.uint8)[None, None, :, None, None]
    shifted = dreamer.prepare(data, Draws(0))["obs", "image"]
    moves = (shifted[:, :, 32, 32, 0].int() - 32).tolist()
    assert all(len(set(row)) == 1 for row in moves), "one shift for a whole sequence"
    assert len({row[0] for row in moves}) > 1 and all(abs(row[0]) <= 4 for row in moves)
    assert bool((data["obs", "image"][:, :, 32] == 32).all()), "the batch itself is left alone"


def test_hidden_observations_never_reach_the_model() -> None:
    spec = replace(VECTOR, hidden=frozenset({"height"}))
    dreamer = Dreamer(spec, tiny())
    data = batch(VECTOR)
    other = data.clone()
    other["obs", "height"] += 5
    assert "rec/height" not in dreamer.scales()
    one, two = losses(dreamer, data), losses(dreamer, other)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_one_start_is_refused_where_replayed_values_are_learned() -> None:
    """With one step of each sequence there is no return, and the mean of no losses is no number."""
    with pytest.raises(ConfigError, match="agent.starts must be 0, which means all, or at least 2.*got 1"):
        make_agent(resolve({}, {"agent.starts": "1"}), VECTOR)
    make_agent(resolve({}, {"agent.starts": "1", "agent.scales.repval": "0"}), VECTOR)
