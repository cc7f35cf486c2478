"""Recorded parts: formulas, layers, encoder, decoder, recurrent core, heads, losses of behaviors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polydream.core import maths
from polydream.core.agent import Config, Dreamer
from polydream.core.behavior import ActorConfig, Behavior, CriticConfig, Objective
from polydream.core.codec import CodecConfig, Decoder, Encoder, flat
from polydream.core.heads import Head, HeadConfig, Policy, PolicyConfig
from polydream.core.nets import MLP, BlockLinear, Conv, LayerNorm, Linear, RMSNorm, activation
from polydream.core.normalizer import Normalizer, NormConfig
from polydream.core.optim import OptimConfig, Optimizer, clip_adaptive, learning_rate
from polydream.core.outputs import Categorical, Distribution, Normal, Squared, TwoHot
from polydream.core.presets import SIZES
from polydream.core.rssm import RSSM, RSSMConfig
from polydream.core.specs import Space, Spec
from tests.conformance.golden import Case, mode_draws, near, near_grad, space
from tests.conformance.weights import layout, load, ours, qualified


def check_symlog(case: Case) -> None:
    x = case["x"].requires_grad_()
    y = maths.symlog(x)
    near(y, case["symlog"], 1e-5, 1e-7, "symlog")
    y.sum().backward()
    near(x.grad, case["grad_symlog"], 1e-5, 1e-7, "gradient of symlog")  # type: ignore[arg-type]
    near(maths.symexp(case["y"]), case["symexp"], 1e-4, 1e-7, "symexp")
    near(maths.symexp(maths.symlog(case["x"])), case["symexp_of_symlog"], 1e-4, 1e-6, "round trip")


def check_twohot(case: Case) -> None:
    bins = maths.symexp_bins(case.meta["nbins"])
    near(bins, case["bins"], 1e-5, 1e-7, "bins")
    bins = case["bins"]
    logits = case["logits"].requires_grad_()
    out = TwoHot(logits, bins)
    probs = torch.softmax(logits, -1)
    near(probs, case["probs"], 1e-4, 1e-7, "probs")
    error = (out.pred() - case["pred"]).abs().max()
    assert error <= 1e-6 * (probs * bins).abs().max(), f"prediction off by {error}"
    if case.meta["uniform_logits"]:
        assert bool((out.pred() == 0).all()), "uniform probabilities must predict exactly 0"
    loss = out.loss(case["target"])
    near(loss, case["loss"], 1e-3, 1e-4, "loss")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    near_grad(grad, case["grad_loss_logits"], 1e-3, "gradient of the loss")
    near((probs - grad).detach(), case["target_dist"], 1e-3, 1e-3, "two-hot weights")
    (grad,) = torch.autograd.grad(maths.symlog(TwoHot(logits, bins).pred()).sum(), logits)
    near_grad(grad, case["grad_symlog_pred_logits"], 1e-3, "gradient of the prediction")


def check_lambda_return(case: Case) -> None:
    live = (1 - case["term"].float()) * case.meta["disc"]
    carry = (1 - case["last"].float()) * case.meta["lam"]
    near(maths.lambda_return(case["rew"], case["boot"], live, carry), case["ret"], 2e-4, 2e-5, "returns")


def check_categorical(case: Case) -> None:
    unimix, free = case.meta["unimix"], case.meta["free_nats"]
    post, prior = case["post_logits"].requires_grad_(), case["prior_logits"].requires_grad_()
    out = Categorical(post, 1, unimix)
    tol = (1e-3, 1e-4)
    near(out.log_probs.exp(), case["probs"], *tol, "probs")
    near(out.log_probs, torch.log_softmax(case["mixed_logits"], -1), *tol, "mixed logits")
    logq = maths.mixed_log_probs(prior, unimix)
    near(maths.categorical_entropy(out.log_probs), case["entropy_group"], *tol, "entropy by group")
    near(out.entropy(), case["entropy"], *tol, "entropy")
    near(maths.categorical_kl(out.log_probs, logq), case["kl_group"], *tol, "kl by group")
    near(maths.categorical_kl(out.log_probs, logq).sum(-1), case["kl"], *tol, "kl")
    index = case["sample_index"]
    onehot = nn.functional.one_hot(index, post.shape[-1]).float()
    near((onehot * out.log_probs).sum(-1), case["logp_group"], *tol, "logp by group")
    near(out.logp(onehot), case["logp"], *tol, "logp")
    near(nn.functional.one_hot(out.pred(), post.shape[-1]).float(), case["pred_onehot"], 0, 0, "mode")
    value = maths.straight_through(onehot, out.log_probs.exp())
    near(value, case["straight_through_value"], 1e-5, 1e-6, "straight-through value")
    (grad,) = torch.autograd.grad((value * case["straight_through_weight"]).sum(), post, retain_graph=True)
    near(grad, case["straight_through_grad"], *tol, "straight-through gradient")
    (grad,) = torch.autograd.grad(out.entropy().sum(), post, retain_graph=True)
    near(grad, case["grad_entropy"], *tol, "gradient of the entropy")
    check_kl(case, post, prior, unimix, free)


def check_kl(case: Case, post: Tensor, prior: Tensor, unimix: float, free: float) -> None:
    """The clipped divergences as the recurrent core computes them."""
    groups, classes = post.shape[-2:]
    rssm = RSSM("gru", 1, 1, RSSMConfig(deter=8, hidden=8, stoch=groups, classes=classes, unimix=unimix, free_nats=free))
    rssm.prior_logits = lambda deter: prior  # type: ignore[method-assign]
    losses, _ = rssm.kl(TensorDict({"logits": post, "deter": torch.zeros(*post.shape[:-2], 8)}, post.shape[:-2]))
    for name in ("dyn", "rep"):
        near(losses[name], case[name], 1e-3, 1e-4, name)
        grads = torch.autograd.grad(losses[name].sum(), [post, prior], allow_unused=True, retain_graph=True)
        for side, grad in zip(("post", "prior"), grads, strict=True):
            theirs = case[f"grad_{name}_{side}"]
            grad = torch.zeros_like(theirs) if grad is None else grad
            near(grad, theirs, 1e-3, 1e-4, f"gradient of {name} in {side}")
            assert bool((grad[theirs == 0] == 0).all()), f"{name} must not move {side} where it is clipped or held"


def check_normalize(case: Case) -> None:
    c = case.meta["config"]
    norm = Normalizer(
        NormConfig(
            impl=c["impl"], rate=c["rate"], limit=c["limit"], low=c.get("perclo", 5.0), high=c.get("perchi", 95.0), debias=c["debias"]
        )
    )
    offset, scale = norm.stats()
    near(offset, case["offset_before"], 1e-3, 1e-3, "offset before")
    near(scale, case["scale_before"], 1e-3, 1e-3, "scale before")
    buffers = {"lo": norm.first, "hi": norm.second, "mean": norm.first, "sqrs": norm.second, "corr": norm.total}
    for t, x in enumerate(case["x"]):
        offset, scale = norm(x)
        near(offset, case["offset"][t], 1e-3, 1e-3, f"offset {t}")
        near(scale, case["scale"][t], 1e-3, 1e-3, f"scale {t}")
        for column, name in enumerate(case.meta["state_names"]):
            near(buffers[name.split("/")[1]], case["state"][t, column], 1e-3, 1e-3, name)


def check_layers(case: Case) -> None:
    m = case.meta
    layers: dict[str, nn.Module] = {
        "linear": Linear(m["din"], m["dout"]),
        "linear_tuple": Linear(m["din"], 6),
        "blocklinear": BlockLinear(m["din"], m["dout"], m["blocks"]),
        "rmsnorm": RMSNorm(m["din"]),
        "layernorm": LayerNorm(m["din"]),
        "mlp2": MLP(m["din"], m["dout"], 2),
    }
    for name, layer in layers.items():
        recorded = case.under(f"{name}/param/")
        names = {k: _layer_name(k) for k in recorded}
        parameters = dict(layer.named_parameters())
        assert set(names.values()) == set(parameters), name
        for k, v in recorded.items():
            parameters[names[k]].data.copy_(layout(k, v))
        x = case["x"].requires_grad_()
        out = layer(x)
        near(out.reshape(case[f"{name}/out"].shape), case[f"{name}/out"], 1e-4, 1e-4, name)
        (out.reshape(case[f"{name}/cotangent"].shape) * case[f"{name}/cotangent"]).sum().backward()
        near_grad(x.grad, case[f"{name}/grad_x"], 1e-4, f"{name} input gradient")
        for k, v in case.under(f"{name}/grad_param/").items():
            near_grad(parameters[names[k]].grad, layout(k, v), 1e-4, f"{name} gradient of {k}")
    for name in ("silu", "gelu", "relu", "mish", "tanh", "elu"):
        near(activation(name)(case["x"]), case[f"act_{name}"], 1e-4, 1e-4, name)


def _layer_name(recorded: str) -> str:
    if recorded.startswith("mlp/"):
        return ours(f"x/{recorded}").removeprefix("mlp.")
    return {"kernel": "weight", "bias": "bias", "scale": "scale", "shift": "shift"}[recorded.split("/")[-1]]


def check_conv(case: Case) -> None:
    m = case.meta
    kernel = case["param/conv/kernel"]
    conv = Conv(kernel.shape[2], kernel.shape[3], m["kernel"], 1 if m["transp"] else m["stride"], up="zeros" if m["transp"] else "no")
    conv.weight.data.copy_(layout("conv/kernel", kernel))
    conv.bias.data.copy_(case["param/conv/bias"])  # type: ignore[union-attr]
    x = case["x"].permute(0, 3, 1, 2).requires_grad_()
    out = conv(x)
    near(out.permute(0, 2, 3, 1), case["out"], 1e-4, 1e-4, "out")
    (out.permute(0, 2, 3, 1) * case["cotangent"]).sum().backward()
    near_grad(x.grad.permute(0, 2, 3, 1), case["grad_x"], 1e-4, "input gradient")  # type: ignore[union-attr]
    near_grad(conv.weight.grad, layout("conv/kernel", case["grad_param/conv/kernel"]), 1e-4, "kernel gradient")
    near_grad(conv.bias.grad, case["grad_param/conv/bias"], 1e-4, "bias gradient")  # type: ignore[union-attr]


def check_dictconcat(case: Case) -> None:
    spaces = {k: space({**v, "discrete": v["classes"] is not None}) for k, v in case.meta["spaces"].items()}
    values = case.under("obs/")
    near(flat(spaces, values, squash=True), case["out_symlog"], 1e-5, 1e-6, "squashed")
    near(flat(spaces, values, squash=False), case["out_plain"], 1e-5, 1e-6, "plain")


def _codec(case: Case) -> tuple[dict[str, Space], CodecConfig]:
    c = case.meta["config"]
    spaces = {k: space(case.meta["spaces"][k]) for k in case.meta["key_order"]}
    keys = {k: c[k] for k in ("depth", "kernel", "layers", "units", "outer")}
    return spaces, CodecConfig(**keys, mults=tuple(c["mults"]), down="stride" if c["strided"] else "pool", symlog=c.get("symlog", True))


def check_encoder(case: Case) -> None:
    spaces, cfg = _codec(case)
    encoder = Encoder(spaces, cfg)
    load(encoder, case.under("param/"))
    tokens = encoder({k: case[f"obs/{k}"] for k in spaces})
    near(tokens, case["tokens"], 1e-3, 1e-4, "tokens")
    assert encoder.width == tokens.shape[-1]
    (tokens * case["cotangent"]).mean().backward()
    _check_norms(encoder, case)


def check_decoder(case: Case) -> None:
    spaces, cfg = _codec(case)
    deter, stoch = case["feat_deter"].requires_grad_(), case["feat_stoch"].requires_grad_()
    decoder = Decoder(spaces, deter.shape[-1], stoch.shape[-1] * stoch.shape[-2], cfg)
    load(decoder, case.under("param/"))
    outputs = decoder(deter, stoch)
    total = torch.zeros(())
    for key, out in outputs.items():
        pred = out.mean if isinstance(out, Squared) else out.pred()
        near(pred, case[f"pred/{key}"], 1e-3, 1e-4, f"prediction of {key}")
        loss = out.loss(case[f"target/{key}"])
        near(loss, case[f"loss/{key}"], 1e-3, 1e-3, f"loss of {key}")
        total = total + loss.mean()
    total.backward()
    near_grad(deter.grad, case["grad_feat_deter"], 1e-3, "deter gradient")
    near_grad(stoch.grad, case["grad_feat_stoch"], 1e-3, "stoch gradient")
    _check_norms(decoder, case)


def _check_norms(module: nn.Module, case: Case, rtol: float = 1e-3) -> None:
    parameters = dict(module.named_parameters())
    for name, theirs in case.under("grad_norm/").items():
        near(parameters[ours(name)].grad.norm(), theirs, rtol, 1e-6, f"gradient norm of {name}")  # type: ignore[union-attr]


def check_rssm(case: Case) -> None:
    c = case.meta["config"]
    same = ("deter", "hidden", "stoch", "classes", "blocks", "unimix", "free_nats", "absolute")
    cfg = RSSMConfig(**{k: c[k] for k in same}, cell_layers=c["dynlayers"], prior_layers=c["imglayers"], post_layers=c["obslayers"])
    spaces = {k: space(v) for k, v in case.meta["act_space"].items()}
    tokens = case["tokens"].requires_grad_()
    rssm = RSSM("block_gru", sum(s.width for s in spaces.values()), tokens.shape[-1], cfg)
    load(rssm, case.under("param/"))
    action = flat(spaces, case.under("act/"), squash=False)
    near(action, case["act_embed"], 1e-6, 1e-6, "action")
    state = TensorDict({"deter": case["carry_deter"], "stoch": case["carry_stoch"]}, tokens.shape[:1])
    core = rssm.step(state, case["act_embed"][:, 0], mode_draws())["deter"]
    near(core, case["core_deter"], 2e-4, 2e-5, "recurrent core")
    post = rssm.observe(tokens, action, case["reset"], state, mode_draws())
    tol = (2e-4, 2e-5)
    near(post["deter"], case["deter"], *tol, "deter")
    near(post["stoch"], case["stoch"], *tol, "stoch")
    near(post["logits"], case["post_logit"], *tol, "posterior logits")
    near(rssm.prior_logits(post["deter"]), case["prior_logit"], *tol, "prior logits")
    losses, entropies = rssm.kl(post)
    for name in ("dyn", "rep"):
        near(losses[name], case[name], *tol, name)
        near(entropies[f"{name}_ent"].mean(), case[f"{name}_ent"], *tol, f"{name} entropy")
    _check_dream(case, rssm, spaces, post[:, -1].select("deter", "stoch"))
    ripple = torch.cos(torch.arange(cfg.deter, dtype=torch.float32))
    (losses["dyn"].mean() + 0.1 * losses["rep"].mean() + 0.01 * (post["deter"] * ripple).mean()).backward()
    near_grad(tokens.grad, case["grad_tokens"], 2e-3, "token gradient")
    _check_norms(rssm, case, 2e-3)


def _check_dream(case: Case, rssm: RSSM, spaces: dict[str, Space], state: TensorDict) -> None:
    """Prior steps under recorded actions, from the last posterior state."""
    actions = flat(spaces, case.under("imag_act/"), squash=False)
    for t in range(actions.shape[1]):
        state = rssm.step(state, actions[:, t], mode_draws())
        near(state["deter"], case["imag_deter"][:, t], 2e-4, 2e-5, f"dreamed deter {t}")
        near(state["stoch"], case["imag_stoch"][:, t], 2e-4, 2e-5, f"dreamed stoch {t}")
        near(rssm.prior_logits(state["deter"]), case["imag_logit"][:, t], 2e-4, 2e-5, f"dreamed logits {t}")


def check_heads(case: Case) -> None:
    x = case["x"]
    for name, h in case.meta["heads"].items():
        if isinstance(h["output"], dict) or h["output"] in ("onehot", "normal_logstd"):
            _check_policy_head(case, name, h, x)
        else:
            dist = h["output"]
            head = Head(x.shape[-1], HeadConfig(dist=dist, layers=h["layers"], units=h["units"], bins=h.get("bins", 255)))
            load(head, case.under(f"param/{name}/") and {f"{name}/{k}": v for k, v in case.under(f"param/{name}/").items()})
            out = head(x)
            pred = out.pred() if dist != "binary" else (out.pred() > 0.5).float()
            near(pred, case[f"{name}/pred"].float(), 1e-3, 1e-4, f"{name} prediction")
            near(out.loss(case[f"event/{name}"]), case[f"{name}/loss"], 1e-3, 1e-4, f"{name} loss")
            if dist == "binary":
                near(out.pred(), case[f"{name}/prob1"], 1e-3, 1e-4, "probability")


def _check_policy_head(case: Case, name: str, h: dict[str, Any], x: Tensor) -> None:
    """Policies, and the two outputs that only the recorded library offers as plain heads."""
    kinds = h["output"] if isinstance(h["output"], dict) else {"action": h["output"]}
    recorded = case.under(f"param/{name}/")
    spaces = {k: _event_space(case, f"event/{name}" if f"event/{name}" in case else f"event/{name}.{k}", kind) for k, kind in kinds.items()}
    cfg = PolicyConfig(
        layers=h["layers"],
        units=h["units"],
        unimix=h.get("unimix", 0.0) if h["output"] == "onehot" else 0.0,
        continuous="normal" if h["output"] == "normal_logstd" else "bounded_normal",
    )
    policy = Policy(x.shape[-1], spaces, cfg)
    if not isinstance(h["output"], dict):
        recorded = {k.replace("head/", "head/action/"): v for k, v in recorded.items()}
    load(policy, {f"{name}/{k}": v for k, v in recorded.items()})
    for key, dist in policy(x).items():
        prefix = name if not isinstance(h["output"], dict) else f"{name}.{key}"
        _check_distribution(case, prefix, dist, spaces[key])


def _event_space(case: Case, event: str, kind: str) -> Space:
    value = case[event]
    if kind == "onehot":
        return Space(dtype="int32", classes=value.shape[-1])
    if kind == "categorical":
        prefix = event.removeprefix("event/")
        return Space(shape=tuple(value.shape[2:]), dtype="int32", classes=case[f"{prefix}/logits"].shape[-1])
    return Space(shape=tuple(value.shape[2:]))


def _check_distribution(case: Case, prefix: str, dist: Distribution, sp: Space) -> None:
    event = case[f"event/{prefix}"]
    tol = (1e-3, 1e-4)
    if isinstance(dist, Normal):
        near(dist.mean, case[f"{prefix}/mean"], *tol, f"{prefix} mean")
        near(dist.std, case[f"{prefix}/std"], *tol, f"{prefix} std")
        near(dist.pred(), case[f"{prefix}/pred"], *tol, f"{prefix} prediction")
        value = event
    elif event.dtype.is_floating_point:
        value = event
        near(nn.functional.one_hot(dist.pred(), sp.classes).float(), case[f"{prefix}/pred"], 0, 0, f"{prefix} mode")
    else:
        value = flat({"a": sp}, {"a": event}, squash=False)
        near(dist.pred(), case[f"{prefix}/pred"], 0, 0, f"{prefix} mode")
        near(dist.log_probs, torch.log_softmax(case[f"{prefix}/logits"], -1), *tol, f"{prefix} logits")  # type: ignore[attr-defined]
    logp, entropy = dist.logp(value), dist.entropy()
    # One recorded case sums over a batch axis as if it belonged to the event.
    if logp.ndim > case[f"{prefix}/logp"].ndim:
        logp, entropy = logp.sum(-1), entropy.sum(-1)
    near(logp, case[f"{prefix}/logp"], *tol, f"{prefix} logp")
    near(entropy, case[f"{prefix}/entropy"], *tol, f"{prefix} entropy")


def _norm_config(c: dict[str, Any]) -> NormConfig:
    names = {"impl": "impl", "rate": "rate", "limit": "limit", "perclo": "low", "perchi": "high", "debias": "debias"}
    # The recorded mean-and-deviation normalisers correct their start by default.
    return NormConfig(**({"debias": c["impl"] == "meanstd"} | {names[k]: v for k, v in c.items()}))


def _set_norms(norms: dict[str, Normalizer], state: dict[str, Tensor]) -> None:
    places = {"lo": "first", "hi": "second", "mean": "first", "sqrs": "second", "corr": "total"}
    for key, value in state.items():
        name, part, _ = key.split("/")
        getattr(norms[name], places[part]).copy_(value)


def check_imag_loss(case: Case) -> None:
    k = case.meta["kwargs"]
    cfg = CriticConfig(
        target="slow" if k["slowtar"] else "online",
        slow_weight=k["slowreg"],
        lam=k["lam"],
        horizon=k["horizon"],
        contdisc=k["contdisc"],
        retnorm=_norm_config(case.meta["retnorm"]),
        valnorm=_norm_config(case.meta["valnorm"]),
    )
    raw = {k2: v.requires_grad_() for k2, v in case.under("policy/").items()}
    keys = sorted({k2.split("/")[0] for k2 in raw})
    spaces = {
        key: Space(dtype="int32", classes=raw[f"{key}/logits"].shape[-1]) if f"{key}/logits" in raw else Space(shape=(2,)) for key in keys
    }
    objective = Objective(4, cfg)
    actor = ActorConfig(entropy=k["actent"], advnorm=_norm_config(case.meta["advnorm"]))
    behavior = Behavior(Policy(4, spaces, PolicyConfig()), {"extrinsic": objective}, actor)
    cut = {
        key: (
            Categorical(raw[f"{key}/logits"][:, :-1])
            if f"{key}/logits" in raw
            else Normal(raw[f"{key}/mean"][:, :-1], raw[f"{key}/std"][:, :-1])
        )
        for key in keys
    }
    behavior.policy.forward = lambda features: cut  # type: ignore[method-assign, assignment]
    norms = {"retnorm": objective.retnorm, "valnorm": objective.valnorm, "advnorm": behavior.advnorm}
    _set_norms(norms, case.under("state_before/"))
    logits, slow = case["val_logits"].requires_grad_(), case["slow_logits"].requires_grad_()
    rew, con = case["rew"].requires_grad_(), case["con"].requires_grad_()
    judged = objective.judge(TwoHot(logits, case["bins"]), TwoHot(slow, case["bins"]), rew.detach(), con.detach())
    weight = objective.weights(con)
    action = TensorDict({key: flat({key: spaces[key]}, {key: case[f"act/{key}"]}, squash=False) for key in keys}, rew.shape)
    policy_loss, extra = behavior.policy_loss(torch.zeros(*rew.shape, 4), action, judged.advantage, weight)
    value_loss = weight[:, :-1] * judged.loss
    tol = (5e-3, 5e-3)
    returns = case["ret"]
    assert bool(((judged.returns - returns).abs() <= 5e-3 * (1 + returns.abs())).all()), "returns"
    near(policy_loss, case["loss/policy"], *tol, "policy loss")
    near(value_loss, case["loss/value"], *tol, "value loss")
    for name, theirs in case.under("metric/").items():
        near((judged.metrics | extra)[name], theirs, *tol, f"metric {name}")
    (policy_loss.mean() + value_loss.mean()).backward()
    near_grad(logits.grad, case["grad_val_logits"], 5e-3, "value gradient")
    for name, leaf in raw.items():
        near_grad(leaf.grad, case[f"grad_policy/{name}"], 5e-3, f"policy gradient {name}")
    assert slow.grad is None and rew.grad is None and con.grad is None
    after = {n.rsplit("/", 1)[0]: v for n, v in case.under("state_after/").items()}
    for key, value in after.items():
        name, part = key.split("/")[:2]
        near(
            getattr(norms[name], {"lo": "first", "hi": "second", "mean": "first", "sqrs": "second", "corr": "total"}[part]),
            value,
            5e-3,
            5e-3,
            key,
        )


def check_repl_loss(case: Case) -> None:
    k = case.meta["kwargs"]
    cfg = CriticConfig(slow_weight=k["slowreg"], lam=k["lam"], horizon=k["horizon"], valnorm=_norm_config(case.meta["valnorm"]))
    logits = case["val_logits"].requires_grad_()
    objective = Objective(4, cfg)
    value, slow = TwoHot(logits, case["bins"]), TwoHot(case["slow_logits"], case["bins"])
    loss, ret = objective.judge_replay(value, slow, case["rew"], case["boot"], case["last"], case["term"])
    near(ret, case["ret"], 2e-3, 2e-3, "returns")
    near(loss, case["loss"], 2e-3, 2e-3, "loss")
    loss.mean().backward()
    near_grad(logits.grad, case["grad_val_logits"], 2e-3, "value gradient")
    near(value.pred(), case["val"], 2e-3, 2e-3, "value")
    near(slow.pred(), case["slowval"], 2e-3, 2e-3, "slow value")


def _optim_config(c: dict[str, Any]) -> OptimConfig:
    keys = {k: c[k] for k in ("lr", "agc", "eps", "beta1", "beta2", "warmup", "schedule", "anneal")}
    return OptimConfig(**keys, nesterov=c.get("nesterov", False), decay=c["wd"])


def check_optimizer(case: Case) -> None:
    cfg = _optim_config(case.meta["config"])
    start = case.under("param_0/")
    params = {k: nn.Parameter(v.clone()) for k, v in start.items()}
    clipped = clip_adaptive([case[f"grad_0/{k}"] for k in params], [p.detach() for p in params.values()], cfg.agc)
    for (name, theirs), grad in zip(((k, case[f"agc_0/{k}"]) for k in params), clipped, strict=True):
        near(grad, theirs, 1e-3, 1e-12, f"clipped gradient of {name}")
    optimizer = Optimizer([{"params": list(params.values()), "name": "all"}], cfg)
    for t in range(case.meta["steps"]):
        before = {k: p.detach().clone() for k, p in params.items()}
        for name, p in params.items():
            near(p, case[f"param_{t}/{name}"], 1e-3, 1e-6, f"{name} before step {t}")
            p.data.copy_(case[f"param_{t}/{name}"])
            p.grad = case[f"grad_{t}/{name}"].clone()
        optimizer.step()
        for name, p in params.items():
            moved, theirs = p.detach() - case[f"param_{t}/{name}"], case[f"update_{t}/{name}"]
            # The difference of two parameters carries their rounding.
            near(moved, theirs, 1e-3, 2e-7 * float(before[name].abs().max().clamp(min=1e-6)), f"update {t} of {name}")


def check_lr_schedule(case: Case) -> None:
    cfg = _optim_config(case.meta["config"])
    rates = np.array([learning_rate(cfg, cfg.lr, int(step)) for step in case["step"]])
    near(torch.from_numpy(rates), case["lr"], 1e-5, 1e-12, "rate")


def check_init(case: Case) -> None:
    m = case.meta
    spaces = {
        side: {
            k: space({"dtype": v[0], "shape": v[1], "classes": v[2] if len(v) > 2 else None, "discrete": False}) for k, v in m[side].items()
        }
        for side in ("obs", "act")
    }
    agent = Dreamer(Spec(obs=spaces["obs"], action=spaces["act"]), SIZES[m["size"]](Config()))
    parameters = {k: p for k, p in agent.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in parameters.values()) == m["params_total"]
    recorded = [str(n) for n in case.arrays["names"]]
    assert {qualified(n) for n in recorded} == set(parameters)
    for row, name in enumerate(recorded):
        p = parameters[qualified(name)]
        shape = tuple(int(s) for s in case["shapes"][row][: int(case["ndim"][row])])
        assert p.shape == layout(name, torch.empty(shape)).shape, name
        expected = float(case["expected_std"][row])
        if name.endswith("/kernel") and expected == 0:
            assert bool((p == 0).all()), name
        elif name.endswith("/kernel") and p.numel() >= 4096:
            near(p.std(), expected, 0.05, 0.0, f"deviation of {name}")
        elif name.endswith("/kernel"):
            # Few numbers: three standard errors of a deviation.
            near(p.std(), expected, max(0.05, 3 / np.sqrt(2 * p.numel())), 0.0, f"deviation of {name}")
        else:
            assert bool((p == (1.0 if name.endswith("scale") else 0.0)).all()), name


CHECKS = {k.removeprefix("check_"): v for k, v in globals().items() if k.startswith("check_") and k != "check_kl"}
"""Topic -> check."""
