"""Whole recorded agents: losses, gradients, optimizer steps, acting."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core.agent import Config, Dreamer
from polydream.core.behavior import ActorConfig, CriticConfig
from polydream.core.codec import CodecConfig, joined, model_actions
from polydream.core.heads import HeadConfig, PolicyConfig
from polydream.core.knobs import Scales
from polydream.core.optim import OptimConfig
from polydream.core.rssm import RSSMConfig
from polydream.core.specs import Spec
from tests.conformance.golden import Case, mode_draws, near, near_grad, space
from tests.conformance.weights import MODULES, layout, load, qualified

NAMES = {"rew": "reward", "con": "cont", "dyn": "dyn", "rep": "rep", "policy": "policy", "value": "value", "repval": "repval"}


def our_loss(name: str) -> str:
    """Our name of a recorded loss; all others are reconstructions."""
    return NAMES.get(name, f"rec/{name}")


def config(meta: dict[str, Any]) -> Config:
    """Our configuration of a recorded agent."""
    c = meta["agent_config"]

    def head(name: str, dist: str) -> HeadConfig:
        return HeadConfig(
            dist=dist, layers=c[f"{name}.layers"], units=c[f"{name}.units"], bins=c.get(f"{name}.bins", 255), outscale=c[f"{name}.outscale"]
        )  # type: ignore[arg-type]

    def codec(name: str) -> CodecConfig:
        keys = ("depth", "kernel", "layers", "units", "outer")
        return CodecConfig(**{k: c[f"{name}.simple.{k}"] for k in keys}, mults=tuple(c[f"{name}.simple.mults"]))

    r = {k.removeprefix("dyn.rssm."): v for k, v in c.items() if k.startswith("dyn.rssm.")}
    same = ("deter", "hidden", "stoch", "classes", "blocks", "unimix", "free_nats", "absolute")
    rssm = RSSMConfig(**{k: r[k] for k in same}, cell_layers=r["dynlayers"], prior_layers=r["imglayers"], post_layers=r["obslayers"])
    policy = PolicyConfig(layers=c["policy.layers"], units=c["policy.units"], outscale=c["policy.outscale"], unimix=0.0)
    critic = CriticConfig(
        head=head("value", "symexp_twohot"),
        horizon=c["horizon"],
        contdisc=c["contdisc"],
        lam=c["imag_loss.lam"],
        slow_weight=c["imag_loss.slowreg"],
        slow_rate=c["slowvalue.rate"],
        slow_every=c["slowvalue.every"],
    )
    s = {k.removeprefix("loss_scales."): v for k, v in c.items() if k.startswith("loss_scales.")}
    scales = Scales(rec=s["rec"], reward=s["rew"], cont=s["con"], **{k: s[k] for k in ("dyn", "rep", "policy", "value", "repval")})
    opt = {k: c[f"opt.{k}"] for k in ("lr", "agc", "eps", "beta1", "beta2", "warmup", "schedule", "anneal")}
    return Config(
        dream=c["imag_length"],
        starts=c["imag_last"],
        reward_grad=c["reward_grad"],
        repval_grad=c["repval_grad"],
        encoder=codec("enc"),
        decoder=codec("dec"),
        rssm=rssm,
        reward=head("rewhead", "symexp_twohot"),
        cont=head("conhead", "binary"),
        actor=ActorConfig(policy=policy, entropy=c["imag_loss.actent"]),
        critic=critic,
        scales=scales,
        optim=OptimConfig(**opt, decay=c["opt.wd"]),
    )


class Recorded:
    """A recorded agent rebuilt as ours, with its data."""

    def __init__(self, case: Case) -> None:
        self.case, meta = case, case.meta
        spaces = {k: space(v) for k, v in meta["spaces"].items()}
        # Observations keep the order of the recorded data, which fixes the order of image channels.
        obs = [k for k in (n.split("/")[1] for n in case.arrays if n.startswith("data_0/")) if k in spaces and k not in meta["act_keys"]]
        self.spec = Spec(obs={k: spaces[k] for k in obs}, action={k: spaces[k] for k in meta["act_keys"]})
        self.agent = Dreamer(self.spec, config(meta))
        load(self.agent, case.under("param/"), whole_agent=True)
        self.context = meta["replay_context"]

    def batch(self, index: int) -> TensorDict:
        data = self.case.under(f"data_{index}/")
        shape = data["reward"].shape
        keys = {k: data[k] for k in ("reward", "is_first", "is_last", "is_terminal")}
        obs = {k: data[k] for k in self.spec.obs}
        action = {k: data[k] for k in self.spec.action}
        latent = {"deter": data["dyn/deter"], "stoch": data["dyn/stoch"]}
        return TensorDict({"obs": obs, "action": action, "latent": latent, **keys}, shape)

    def cut(self, index: int, carry: TensorDict) -> tuple[TensorDict, TensorDict, Tensor]:
        """State, batch and previous actions; rows that continue an earlier piece start from the carried latents."""
        state, data, previous = self.agent.replay_context(self.batch(index), self.context)
        goes_on = self.case[f"data_{index}/consec"][:, 0] > 0
        state = torch.where(goes_on, carry.select("deter", "stoch"), state)
        return state, data, previous

    def carry(self, prefix: str = "") -> TensorDict:
        """A recorded carry, by default the one of a batch before the first."""
        deter, stoch = self.case[f"{prefix}carry_deter"], self.case[f"{prefix}carry_stoch"]
        action = TensorDict(self.case.under(f"{prefix}carry_prevact/"), deter.shape[:1])
        return TensorDict({"deter": deter, "stoch": stoch, "action": model_actions(self.spec.action, action)}, deter.shape[:1])


def check_agent(case: Case) -> None:
    """Everything recorded of one agent."""
    check_losses(case)
    check_gradient_scopes(case)
    check_steps(case)
    check_policy(case)


def check_losses(case: Case) -> None:
    """Context, tokens, latents, every loss, metrics, normaliser and all gradients of the total."""
    recorded = Recorded(case)
    agent = recorded.agent
    for name in ("first", "second"):
        getattr(agent.main.objectives["extrinsic"].retnorm, name).copy_(
            case[f"norm_before/retnorm/{'lo' if name == 'first' else 'hi'}/value"]
        )
    state, data, previous = recorded.cut(0, recorded.carry())
    near(state["deter"], case["ctx/carry_deter"], 1e-6, 1e-6, "context deter")
    near(state["stoch"], case["ctx/carry_stoch"], 1e-6, 1e-6, "context stoch")
    near(data["reward"], case["ctx/reward"], 0, 0, "reward")
    near(agent.encode(data), case["tokens"], 1e-3, 1e-4, "tokens")
    losses, post, metrics = agent.losses(data, state, previous, mode_draws())
    near(post["deter"], case["repfeat/deter"], 1e-3, 1e-4, "deter")
    near(post["stoch"], case["repfeat/stoch"], 1e-3, 1e-4, "stoch")
    near(post["logits"], case["repfeat/logit"], 1e-3, 1e-4, "posterior logits")
    for name, theirs in case.under("loss/").items():
        ours = losses[our_loss(name)]
        if name in ("policy", "value"):
            # Recorded as (B, K'): the mean over the dream of each start.
            ours = ours.mean(1).reshape(theirs.shape)
        near(ours, theirs, 1e-3, 1e-4, f"loss {name}")
    total, means = agent.total(losses)
    near(total, case["loss_total"], 1e-3, 1e-4, "total")
    check_metrics(case.under("metric/"), metrics | means)
    norm = agent.main.objectives["extrinsic"].retnorm
    near(norm.first, case["norm_after/retnorm/lo/value"], 1e-3, 1e-5, "retnorm low")
    near(norm.second, case["norm_after/retnorm/hi/value"], 1e-3, 1e-5, "retnorm high")
    total.backward()
    parameters = dict(agent.named_parameters())
    recorded_grads = case.under("grads/grad/")
    assert len(recorded_grads) == sum(p.requires_grad for p in parameters.values()), "every trainable parameter has a recorded gradient"
    for name, theirs in recorded_grads.items():
        near_grad(parameters[qualified(name)].grad, layout(name, theirs), 5e-3, f"gradient of {name}")


def check_metrics(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Every recorded metric of a batch that we also compute; names differ only for losses."""
    for name, value in theirs.items():
        key = f"loss/{our_loss(name.removeprefix('loss/'))}" if name.startswith("loss/") else name
        near(ours[key], value, 1e-3, 1e-4, f"metric {name}")


def check_gradient_scopes(case: Case) -> None:
    """Which loss reaches which module, and how strongly: the zeros encode the stop-gradients."""
    recorded = Recorded(case)
    state, data, previous = recorded.cut(0, recorded.carry())
    losses, _, _ = recorded.agent.losses(data, state, previous, mode_draws())
    for row, name in enumerate(case.meta["loss_keys"]):
        recorded.agent.zero_grad(set_to_none=True)
        losses[our_loss(name)].mean().backward(retain_graph=True)
        for column, module in enumerate(case.meta["modules"]):
            grads = [p.grad for p in recorded.agent.get_submodule(MODULES[module]).parameters() if p.grad is not None]
            norm = torch.stack([g.norm() for g in grads]).norm() if grads else torch.zeros(())
            theirs = case["gradnorm_matrix"][row, column]
            near(norm, theirs, 5e-3, 0.0 if theirs == 0 else 1e-6, f"gradient of {name} in {module}")


def check_steps(case: Case) -> None:
    """Consecutive training steps: metrics, latents for the replay, carry, normaliser, slow critic, parameters."""
    recorded = Recorded(case)
    agent, carry = recorded.agent, recorded.carry()
    optimizer = agent.optimizer()
    start = {k: p.detach().clone() for k, p in agent.named_parameters()}
    for t in range(case.meta["steps"]):
        state, data, previous = recorded.cut(t, carry)
        losses, post, metrics = agent.losses(data, state, previous, mode_draws())
        total, means = agent.total(losses)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        metrics |= means | optimizer.step() | {"opt/loss": total.detach()}
        agent.updates += 1
        for objective in agent.objectives():
            objective.follow(int(agent.updates))
        carry = post[:, -1].select("deter", "stoch").detach()
        carry["action"] = TensorDict({k: data["action", k][:, -1] for k in recorded.spec.action}, carry.batch_size)
        carry["action"] = model_actions(recorded.spec.action, carry["action"])
        check_step(case, recorded, t, metrics, post, carry)
        if t == 0:
            check_first_update(case, agent, start)
    for name, theirs in case.under(f"after_norm_{case.meta['steps']}/").items():
        moved = (dict(agent.named_parameters())[qualified(name)] - start[qualified(name)]).norm()
        near(moved, theirs, 1e-3, 1e-6, f"distance moved by {name}")


def check_step(case: Case, recorded: Recorded, t: int, metrics: dict[str, Tensor], post: TensorDict, carry: TensorDict) -> None:
    """What one training step returned."""
    prefix = f"train_{t}/"
    near(post["deter"], case[f"{prefix}replay/dyn/deter"], 1e-3, 1e-3, f"step {t} deter")
    near(post["stoch"], case[f"{prefix}replay/dyn/stoch"], 1e-3, 1e-3, f"step {t} stoch")
    theirs = recorded.carry(prefix)
    for key in ("deter", "stoch"):
        near(carry[key], theirs[key], 1e-3, 1e-3, f"step {t} carry {key}")
    near(*(joined(recorded.agent.spec.action, c["action"]) for c in (carry, theirs)), 1e-5, 1e-6, f"step {t} carry action")
    batch_metrics = {k: v for k, v in case.under(f"{prefix}metric/").items() if not k.startswith("opt/")}
    check_metrics(batch_metrics, metrics)
    for key in ("loss", "grad_norm", "update_rms", "param_rms"):
        near(metrics[f"opt/{key}"], case[f"{prefix}metric/opt/{key}"], 1e-3, 1e-6, f"step {t} opt/{key}")
    norm = recorded.agent.main.objectives["extrinsic"].retnorm
    for part, ours in {"lo": norm.first, "hi": norm.second}.items():
        if (key := f"{prefix}state/retnorm/{part}/value") in case:  # not recorded for every step
            near(ours, case[key], 1e-3, 1e-5, f"step {t} retnorm {part}")


def check_first_update(case: Case, agent: Dreamer, start: dict[str, Tensor]) -> None:
    """Parameters after one step, where the gradient is well above float noise: the first LaProp step is +-lr per element."""
    grads = {qualified(k): layout(k, v) for k, v in case.under("grads/grad/").items()}
    parameters = dict(agent.named_parameters())
    for name, theirs in case.under("after1/").items():
        key = qualified(name)
        ours, theirs = parameters[key].detach(), layout(name, theirs)
        if key in grads:
            clear = grads[key].abs() > 1e-5 * grads[key].abs().max()
            ours, theirs = ours[clear], theirs[clear]
        near(ours, theirs, 1e-4, 1e-5, f"{name} after one step")


def check_policy(case: Case) -> None:
    """Two acting steps from the initial state: actions and latents."""
    recorded = Recorded(case)
    batch = recorded.batch(0)
    state = recorded.agent.initial(batch.shape[0])
    for t in range(2):
        data = batch[:, t].select("obs").set("is_first", case[f"policy_{t}/is_first"])
        action, state = recorded.agent.policy(data, state, mode_draws())
        for key in recorded.spec.action:
            near(action[key], case[f"policy_{t}/act/{key}"], 1e-3, 1e-4, f"action {t} {key}")
        near(state["deter"], case[f"policy_{t}/out/dyn/deter"], 1e-3, 1e-4, f"acting deter {t}")
        near(state["stoch"], case[f"policy_{t}/out/dyn/stoch"], 1e-3, 1e-4, f"acting stoch {t}")
