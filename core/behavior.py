"""Behaviors: a policy and the objectives it is trained on, from dreams and from replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from . import maths
from .heads import Head, HeadConfig, Policy, PolicyConfig
from .normalizer import Normalizer, NormConfig
from .outputs import Categorical, Output


def _value_head() -> HeadConfig:
    return HeadConfig(layers=3, outscale=0.0)


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The value of states and how it is learned."""

    head: HeadConfig = field(default_factory=_value_head)
    target: Literal["online", "slow"] = "online"  # which critic bootstraps the returns
    slow_rate: float = 0.02  # share of the critic moved into the slow critic at each update
    slow_every: int = 1  # updates between moves
    slow_weight: float = 1.0  # pull of the critic towards the slow critic's prediction
    lam: float = 0.95  # lambda of the returns
    horizon: int = 333  # discount 1 - 1 / horizon
    contdisc: bool = True  # the discount is part of what the continue head learns, so nobody multiplies by it again
    retnorm: NormConfig = field(default_factory=NormConfig)  # scale of the returns, divides the advantage
    valnorm: NormConfig = field(default_factory=lambda: NormConfig(impl="none", limit=1e-8))  # scale the critic predicts in

    @property
    def discount(self) -> float:
        """1 - 1 / horizon."""
        return 1 - 1 / self.horizon


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """The policy and how it is learned."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    grad: Literal["reinforce", "dynamics", "auto"] = "reinforce"  # score function, back through the dream, or by kind of action
    objective: Literal["advantage", "symlog_return"] = "advantage"  # normalised advantage, or symlog of the return itself
    entropy: float = 3e-4  # weight of the policy's entropy in nats
    advnorm: NormConfig = field(default_factory=lambda: NormConfig(impl="none", limit=1e-8))  # further scale of the advantage


class Judgement(NamedTuple):
    """What an objective says of a batch of dreams. All (N, H) but `weight`."""

    loss: Tensor  # value loss, not yet weighted
    returns: Tensor
    advantage: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module):
    """A named reward with its own critic, slow critic and normalisers.

    replay: `(batch) -> (B, T) rewards` for the value loss on replayed steps, or None. None is right for every reward that is
    not the environment's.
    """

    def __init__(
        self, features: int, cfg: CriticConfig, *, weight: float = 1.0, replay: Callable[[TensorDict], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.cfg, self.weight, self.replay = cfg, weight, replay
        self.critic = Head(features, cfg.head)
        self.slow = Head(features, cfg.head)
        self.slow.requires_grad_(False)
        self.retnorm = Normalizer(cfg.retnorm)
        self.valnorm = Normalizer(cfg.valnorm)

    def start(self) -> None:
        """Make the slow critic a copy of the critic."""
        self.slow.load_state_dict(self.critic.state_dict())

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Move the slow critic towards the critic, after update number `updates` (from 1)."""
        if updates % self.cfg.slow_every == 0:
            slow, online = ([p.detach() for p in net.parameters()] for net in (self.slow, self.critic))
            torch._foreach_lerp_(slow, online, self.cfg.slow_rate)

    @torch.no_grad()
    def follow_where(self, updates: Tensor, good: Tensor) -> None:
        """As `follow`, where the host does not know the number () of the update, nor whether it was good, a bool ()."""
        slow, online = ([p.detach() for p in net.parameters()] for net in (self.slow, self.critic))
        way = torch._foreach_sub(online, slow)
        torch._foreach_mul_(way, self.cfg.slow_rate * (good & (updates % self.cfg.slow_every == 0)))
        torch._foreach_add_(slow, way)

    @property
    def bootstrap(self) -> Head:
        """The critic whose values continue the returns."""
        return self.slow if self.cfg.target == "slow" else self.critic

    def returns(self, reward: Tensor, cont: Tensor, value: Tensor, slow: Tensor) -> tuple[Tensor, Tensor]:
        """Lambda-returns (N, H) of a dream and the values (N, H + 1) that bootstrap them and serve as baseline."""
        target = slow if self.cfg.target == "slow" else value
        return self._accumulate(reward, target, self.going(cont), self.cfg.lam), target

    def going(self, cont: Tensor) -> Tensor:
        """What follows a state counts by so much, given the continuation of dreams (*): discounted once, here or there."""
        return cont if self.cfg.contdisc else cont * self.cfg.discount

    def weights(self, cont: Tensor) -> Tensor:
        """Probability (N, H + 1), discounted, that the dream is still alive at each state, without gradient."""
        disc = 1.0 if self.cfg.contdisc else self.cfg.discount
        return torch.cumprod(disc * cont.detach(), 1) / disc

    def spread(self, returns: Tensor, value: Output, update: bool = True) -> tuple[Tensor, Tensor]:
        """Offset and scale of returns (N, H), broadcastable to them; the scale divides the advantage. value: what the critic said."""
        return self.retnorm(returns, update)

    def discount(self, value: Output) -> Tensor | float:
        """Discount of replayed steps (B, T), broadcastable to them. value: what the critic said of them."""
        return self.cfg.discount

    def raw(self, said: Tensor, value: Output) -> Tensor:
        """What a critic said (*) as returns, in the reward's units. value: the output (*) it is of, or one on the same states."""
        offset, scale = self.valnorm.stats()
        return said * scale + offset

    def target(self, returns: Tensor, value: Output, update: bool = True) -> Tensor:
        """Returns (N, H) as a critic should say them: the reverse of `raw`, after taking them in. value: (N, H + 1)."""
        offset, scale = self.valnorm(returns, update)
        return (returns - offset) / scale

    def judge(
        self, value: Output, slow: Output, reward: Tensor, cont: Tensor, update: bool = True, through: Tensor | None = None
    ) -> Judgement:
        """Value loss, returns and advantages of dreams (N, H + 1).

        through: values (N, H + 1) of the bootstrapping critic with a gradient into the dreamed states, where the actor learns
            through the dynamics.
        """
        with torch.no_grad():
            own = self.raw(value.pred(), value)
        slow_said = slow.pred().detach()
        slow_pred = self.raw(slow_said, value)
        if through is None:
            ret, base = self.returns(reward, cont, own, slow_pred)
        else:
            ret, base = self.returns(reward, cont, *[self.raw(through, value)] * 2)
        low, spread = self.spread(ret, value, update)
        advantage = (ret - base[:, :-1]) / spread
        target = self.target(ret, value, update)
        loss = self._fit(value, target, slow_said)
        scaled = (ret.detach() - low) / spread
        metrics = {
            "adv": advantage.mean(),
            "adv_std": advantage.std(correction=0),
            "adv_mag": advantage.abs().mean(),
            "rew": reward.mean(),
            "con": cont.mean(),
            "ret": scaled.mean(),
            "val": own.mean(),
            "tar": target.mean(),
            "weight": self.weights(cont).mean(),
            "slowval": slow_pred.mean(),
            "ret_min": scaled.min(),
            "ret_max": scaled.max(),
            "ret_rate": (scaled.abs() >= 1).float().mean(),
            "ret_scale": spread.mean(),
        }
        return Judgement(loss, ret, advantage, {k: v.detach() for k, v in metrics.items()})

    def judge_replay(
        self, value: Output, slow: Output, reward: Tensor, boot: Tensor, is_last: Tensor, is_terminal: Tensor, update: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Value loss and returns on replayed steps, each (B, T - 1): rewards as received, bootstrapped by dreamed returns `boot` (B, T)."""
        live = (~is_terminal).float() * self.discount(value)
        carry = (~is_last).float() * self.cfg.lam
        ret = self._accumulate(reward, boot.detach(), live, carry)
        loss = self._fit(value, self.target(ret, value, update), slow.pred().detach())
        return (~is_last[:, :-1]).float() * loss, ret

    def _accumulate(self, reward: Tensor, boot: Tensor, live: Tensor, lam: Tensor | float) -> Tensor:
        # A loop of small operations: on a GPU one kernel instead of sixty.
        fast = reward.is_cuda and self.critic.compiled and self.training
        return (_compiled_return() if fast else maths.lambda_return)(reward, boot, live, lam)

    def _fit(self, value: Output, target: Tensor, slow: Tensor) -> Tensor:
        # The last state has no return. It gets a loss against zero that is cut off again, so the critic runs once over all states.
        padded = torch.cat([target, torch.zeros_like(target[:, -1:])], 1)
        if not self.cfg.slow_weight:
            return value.loss(padded)[:, :-1]
        fit, pull = value.loss(torch.stack([padded, slow]))
        return (fit + self.cfg.slow_weight * pull)[:, :-1]


@cache
def _compiled_return() -> Callable[..., Tensor]:
    return torch.compile(maths.lambda_return, dynamic=False)


class Behavior(nn.Module):
    """One policy and the objectives it is trained on, by the name of their reward.

    awake: whether the policy learns. While it does not, it gets no gradient and the optimizer leaves it where it is.
    """

    awake = True

    def __init__(self, policy: Policy, objectives: Mapping[str, Objective], cfg: ActorConfig) -> None:
        super().__init__()
        self.policy, self.cfg = policy, cfg
        self.objectives = nn.ModuleDict(dict(objectives))
        self.advnorm = Normalizer(cfg.advnorm)
        discrete = {s.discrete for s in policy.action.values()}
        if cfg.grad == "auto" and len(discrete) > 1:
            raise ValueError("actor.grad=auto chooses by the kind of action; this task has both kinds: say reinforce or dynamics")
        self.through_dynamics = cfg.grad == "dynamics" or (cfg.grad == "auto" and discrete == {False})

    def terms(self) -> dict[str, Objective]:
        """The objectives by name."""
        return dict(self.objectives.items())  # type: ignore[arg-type]

    def excerpt(self, dream: TensorDict, rewards: Mapping[str, Tensor]) -> tuple[TensorDict, Mapping[str, Tensor]]:
        """What of the dreams (N, H + 1) this behavior is trained on, with its rewards: all. For behaviors on another scale of time."""
        return dream, rewards

    def temperature(self, dists: Mapping[str, Output], update: bool = True) -> Tensor | float:
        """Weight of the policy's entropy in nats, given what the policy says of the dreams. update=False leaves controllers alone."""
        return self.cfg.entropy

    def combine(self, advantages: Mapping[str, Tensor]) -> Tensor:
        """One advantage (N, H) out of those of all objectives: their weighted sum."""
        total = [o.weight * advantages[name] for name, o in self.terms().items()]
        return torch.stack(total).sum(0) if len(total) > 1 else total[0]

    def rest(self, loss: Tensor, features: Tensor) -> Tensor:
        """The policy's loss (N, H) while it is not awake, features (N, H + 1, F): teaches nothing."""
        return loss.detach()

    def policy_loss(
        self, features: Tensor, action: TensorDict, gain: Tensor, weight: Tensor, update: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (N, H) that makes gainful actions likelier, and metrics.

        features (N, H + 1, F) and actions of the dream in model form, gain (N, H): the combined advantage, or the return.
        """
        dists = self.policy(features.detach()[:, :-1])
        entropies = {k: d.entropy() for k, d in dists.items()}
        if self.cfg.objective == "advantage":
            offset, scale = self.advnorm(gain, update)
            gain = (gain - offset) / scale
        else:
            gain = maths.symlog(gain)
        if not self.through_dynamics:
            gain = gain.detach() * sum(d.logp(action[k].detach()[:, :-1]) for k, d in dists.items())
        loss = weight[:, :-1] * -(gain + self.temperature(dists, update) * sum(entropies.values()))
        metrics: dict[str, Tensor] = {f"ent/{k}": e.mean().detach() for k, e in entropies.items()}
        # How random a discrete policy is, from 0 to 1.
        metrics |= {f"rand/{k}": metrics[f"ent/{k}"] / d.max_entropy() for k, d in dists.items() if isinstance(d, Categorical)}
        return loss, metrics


def actor_critic(
    behavior: Behavior, features: Tensor, action: TensorDict, rewards: Mapping[str, Tensor], cont: Tensor, update: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Train one behavior on dreams: (losses (N, H) by name, returns (N, H) by objective, metrics).

    features (N, H + 1, F), action (N, H + 1) in model form, rewards by objective (N, H + 1) for arriving at each state,
    cont (N, H + 1). Losses are named policy and value/<objective>, the environment's own reward just value.
    """
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    returns, advantages = {}, {}
    weight: Tensor | None = None
    still = features.detach()
    for name, objective in behavior.terms().items():
        through = None
        if behavior.through_dynamics:
            with frozen(objective):
                through = objective.bootstrap(features).pred()
        judged = objective.judge(objective.critic(still), objective.slow(still), rewards[name], cont, update, through)
        weight = objective.weights(cont)
        losses[label("value", name)] = weight[:, :-1] * judged.loss
        returns[name], advantages[name] = judged.returns, judged.advantage
        metrics |= {label(k, name): v for k, v in judged.metrics.items()}
    assert weight is not None, "a behavior needs an objective"
    gain = behavior.combine(advantages if behavior.cfg.objective == "advantage" else returns)
    losses["policy"], extra = behavior.policy_loss(features, action, gain, weight, update)
    if not behavior.awake:
        losses["policy"], extra["asleep"] = behavior.rest(losses["policy"], features), weight.new_ones(())
    return losses, {k: v.detach() for k, v in returns.items()}, metrics | extra


def replay_value(
    behavior: Behavior, features: Tensor, batch: TensorDict, returns: Mapping[str, Tensor], update: bool = True
) -> dict[str, Tensor]:
    """Losses (B, T - 1) of the critics whose reward the replay knows, by name.

    features (B, T, F) of the replayed states, returns (B * T, H) of the dreams that start there.
    """
    losses = {}
    for name, objective in behavior.terms().items():
        if objective.replay is not None:
            value, slow = objective.critic(features), objective.slow(features.detach())
            boot = returns[name][:, 0].reshape(batch.batch_size)
            last, terminal = batch["is_last"], batch["is_terminal"]
            loss, _ = objective.judge_replay(value, slow, objective.replay(batch), boot, last, terminal, update)
            losses[label("repval", name)] = loss
    return losses


def label(term: str, objective: str) -> str:
    """Name of a term of an objective: `value/novelty`; the environment's own reward goes without."""
    return term if objective == "extrinsic" else f"{term}/{objective}"


class frozen:
    """Context in which the parameters of modules take no gradient, while gradients still pass through them to their inputs."""

    def __init__(self, *modules: nn.Module) -> None:
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(True)
