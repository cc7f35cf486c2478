"""Formulas of the older profiles, which no recorded value of the released implementation covers, against torch and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal as TorchNormal
from torch.distributions import TanhTransform, TransformedDistribution

from polydream.core.agent import Dreamer
from polydream.core.cells import GRU, RSSMConfig
from polydream.core.nets import initialize
from polydream.core.optim import OptimConfig, Optimizer, learning_rate
from polydream.core.outputs import Normal, TwoHot
from polydream.core.profiles import PROFILES
from polydream.core.rng import Draws
from polydream.core.specs import Spec
from tests.fixtures import DISCRETE, VECTOR, agent, batch, tiny


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_adam_and_its_clipping_are_torchs(clip: float) -> None:
    noise = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=noise)) for shape in ((3, 4), (4,))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    cfg = OptimConfig(kind="adam", agc=0.0, eps=1e-8, warmup=0)
    mine = Optimizer([{"params": ours, "lr": 1e-2, "clip": clip, "name": "all"}], cfg)
    reference = torch.optim.Adam(theirs, 1e-2, betas=(cfg.beta1, cfg.beta2), eps=1e-8)
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = (step + 1) * torch.randn(a.shape, generator=noise)
            b.grad = a.grad.clone()
        nn.utils.clip_grad_norm_(theirs, clip)
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_twohot_over_symlog_answers_in_its_own_units() -> None:
    logits = torch.full((41,), -1e9)
    logits[25] = 0.0  # the bin of 5
    assert float(TwoHot(logits, torch.linspace(-20, 20, 41), "symlog").pred()) == pytest.approx(math.expm1(5.0), rel=1e-5)


def test_a_squashed_normal_has_the_density_of_what_it_draws() -> None:
    mean, std, value = torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.8]), torch.tensor([0.4, -0.6])
    wanted = TransformedDistribution(TorchNormal(mean, std), TanhTransform()).log_prob(value).sum(-1)
    torch.testing.assert_close(Normal(mean, std, squash=True).logp(value), wanted, rtol=1e-4, atol=1e-4)


def test_the_dense_gru_updates_by_its_gate_less_one() -> None:
    cell = GRU(RSSMConfig(deter=4, hidden=3, stoch=2, classes=2), 1)
    initialize(cell, 0)
    nn.init.zeros_(cell.gates.weight)
    nn.init.zeros_(cell.gate_norm.scale)  # type: ignore[arg-type]
    state = torch.ones(1, 4)
    wanted = state * (1 - torch.sigmoid(torch.tensor(-1.0)))
    torch.testing.assert_close(cell(state, torch.zeros(1, 4), torch.zeros(1, 1)), wanted)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_rate_ends_at_a_tenth(schedule: str) -> None:
    cfg = OptimConfig(schedule=schedule, warmup=0, anneal=10, lr=1.0)  # type: ignore[arg-type]
    assert [learning_rate(cfg, 1.0, step) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_profile_v1_is_what_the_table_says() -> None:
    cfg = PROFILES["v1"](tiny())
    assert (cfg.scales.dyn, cfg.scales.rep, cfg.scales.repval, cfg.critic.contdisc) == (0.5, 0.1, 0.0, False)


@pytest.mark.parametrize(("spec", "wanted"), [(VECTOR, True), (DISCRETE, False)])
def test_auto_goes_through_the_dynamics_where_actions_are_continuous(spec: Spec, wanted: bool) -> None:
    assert agent(spec, actor=replace(tiny().actor, grad="auto")).main.through_dynamics is wanted


def test_split_groups_hold_whose_rate_it_is() -> None:
    rates = {"lr_model": 1.0, "lr_actor": 2.0, "lr_critic": 3.0, "clip_model": 4.0, "clip_actor": 5.0, "clip_critic": 6.0}
    dreamer = agent(optim=replace(tiny().optim, groups="split", **rates))  # type: ignore[arg-type]
    groups = {g["name"]: g for g in dreamer.optimizer().param_groups}
    assert {n: (g["lr"], g["clip"]) for n, g in groups.items()} == {"model": (1.0, 4.0), "actor": (2.0, 5.0), "critic": (3.0, 6.0)}
    assert set(groups["actor"]["params"]) == set(dreamer.main.policy.parameters())
    assert set(groups["critic"]["params"]) == set(dreamer.main.terms()["extrinsic"].critic.parameters())


@pytest.mark.parametrize(
    ("knob", "name", "owner"), [("reward_grad", "reward", "nets.reward."), ("repval_grad", "repval", "behaviors.main.objectives.")]
)
def test_without_a_gradient_a_loss_reaches_its_head_only(knob: str, name: str, owner: str) -> None:
    cfg = tiny(**{knob: False})
    critic = replace(cfg.critic, head=replace(cfg.critic.head, outscale=1.0))
    dreamer = Dreamer(VECTOR, replace(cfg, reward=replace(cfg.reward, outscale=1.0), critic=critic))
    state, data, previous = dreamer.replay_context(batch(VECTOR), 1)
    dreamer.losses(data, state, previous, Draws(0))[0][name].mean().backward()
    reached = {n for n, p in dreamer.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached and all(n.startswith(owner) for n in reached)


@pytest.mark.parametrize("name", list(PROFILES))
def test_every_profile_learns_in_bfloat16(name: str) -> None:
    """Losses near those of float32 from the same noise, and updates that move weights: recurrent cells meet states of two types."""
    found = {}
    for precision in ("float32", "bfloat16"):
        made = Dreamer(DISCRETE, PROFILES[name](tiny()), 0)
        made.accelerate(precision)  # type: ignore[arg-type]
        data, optimizer = batch(DISCRETE, cfg=made.cfg), made.optimizer()
        state, steps, previous = made.replay_context(data, 1)
        found[precision] = {k: float(v.detach().mean()) for k, v in made.losses(steps, state, previous, Draws(0), False)[0].items()}
        before = made.rssm.cell.gates.weight.clone()  # type: ignore[union-attr, operator]
        for number in range(2):  # the rate of the first may still be 0
            made.update(data, optimizer, Draws(0, number))
        assert not torch.equal(before, made.rssm.cell.gates.weight)  # type: ignore[arg-type, union-attr]
    for key in ("dyn", "reward", "value"):
        assert found["bfloat16"][key] == pytest.approx(found["float32"][key], rel=0.05), key
