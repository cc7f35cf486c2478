"""Ensembles: knowing what is not known, by one-step disagreement heads, several prior heads, or several world models."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core import codec
from ..core.behavior import Behavior, frozen
from ..core.config import ConfigError
from ..core.normalizer import percentiles
from ..core.promises import Promises
from ..core.rng import Draws
from ..core.rssm import RSSM
from .disagreement import Disagreement
from .doubts import doubts
from .explorer import Explorer, novelty, shared_out
from .kinds import EnsembleAgentConfig as EnsembleAgentConfig
from .kinds import EnsembleConfig as EnsembleConfig
from .members import kept
from .priors import MultiPrior, draw_member
from .thompson import Thompson

NAME = "disagreement"
"""Of the explorer's reward and of the loss of the heads."""


class Ensemble(Thompson):
    """Plan2Explore (Sekar et al. 2020) and its kin: a reward for, a charge on or a measure of what members disagree about.

    The state carries `explore`, who acts in this dream or episode, and `member`, the prior head or the whole agent it follows.
    """

    Config = EnsembleAgentConfig
    cfg: EnsembleAgentConfig
    exhibits = (doubts,)
    promises = Promises(
        neutral={"ensemble.kind": "heads", "ensemble.use": "measure", "ensemble.stop": 0.0},
        turn={"ensemble.stop": (0.9,), "ensemble.until": (1,)}
        | {"ensemble.intrinsic": (2.0,), "ensemble.extrinsic": (1.0,), "ensemble.episodes": (1.0,), "ensemble.prior": (1.0,)},
        beside={
            "ensemble.pessimism": {"ensemble.use": "pessimism"},
            "ensemble.stop": {"ensemble.use": "measure"},
            "ensemble.redraw": {"ensemble.kind": "priors"},
        },
        exempt={"ensemble.pilot": "says who plays in evaluation, which the kit does not compare", "state/kept": "is for learning only"},
    )

    @property
    def curious(self) -> bool:
        """Whether somebody is paid for disagreement."""
        e = self.cfg.ensemble
        return e.use == "explore" and e.dreams > 0 and e.kind != "worlds"

    @property
    def explores(self) -> bool:
        """Whether there is an explorer. Where another part has a policy that `roams`, a manager, it is the one that is paid."""
        return self.curious and not getattr(self, "roams", False)

    def build(self) -> dict[str, nn.Module]:
        """Adds `disagreement`, or replaces `rssm` by one with several prior heads."""
        nets, e = super().build(), self.cfg.ensemble
        if e.kind == "worlds":
            return nets
        tokens: int = nets["encoder"].width  # type: ignore[assignment]
        latent: int = nets["rssm"].latent_width  # type: ignore[assignment]
        if e.kind == "priors":
            if type(nets["rssm"]) is not RSSM:
                other = type(nets["rssm"]).__name__
                raise ConfigError(f"ensemble.kind=priors brings dynamics of its own, and so does another part ({other}): choose heads")
            return nets | {
                "rssm": MultiPrior(self.cfg.dynamics, self.spec.action_width, tokens, self.cfg.rssm, members=e.members, redraw=e.redraw)
            }
        width = {"stoch": self.cfg.rssm.stoch * self.cfg.rssm.classes, "deter": self.cfg.rssm.deter, "tokens": tokens}[e.target]
        inputs = latent + self.spec.action_width
        return nets | {NAME: Disagreement(inputs, width, members=e.members, units=e.units, layers=e.layers, prior=e.prior)}

    def build_behaviors(self) -> dict[str, Behavior]:
        """Gives the acting behavior a second policy, where there is an explorer."""
        behaviors, e = super().build_behaviors(), self.cfg.ensemble
        main = behaviors["main"]
        if e.use == "pessimism":
            charged = [b.terms()["extrinsic"] for b in behaviors.values() if "extrinsic" in b.terms()]
            if not charged:
                raise ConfigError(f"ensemble.use=pessimism charges the task's reward, but the policy climbs {', '.join(main.terms())}")
            for objective in charged:
                objective.replay = None  # replay knows the reward without the charge
        if e.stop and getattr(self, "roams", False):
            raise ConfigError("ensemble.stop pays the policy that acts for where a dream was stopped, and a manager not: leave it 0")
        if not self.explores:
            e.refuse_explorer(self.curious)
            return behaviors
        novel = novelty(self, self.view_width)
        return behaviors | {"main": Explorer(main, NAME, novel, e.intrinsic, e.extrinsic, super().view_width)}

    def scales(self) -> dict[str, float]:
        """The heads share nothing with the rest, so their weight is no matter of taste: 1."""
        named = super().scales()
        if self.explores:
            named[f"value/{NAME}"] = self.cfg.scales.value
        if self.cfg.ensemble.use == "pessimism":
            named.pop("repval", None)
        return named | ({NAME: 1.0} if self.cfg.ensemble.kind == "heads" else {})

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """Who acts, and which member is followed. Observations of a player come without the flags that collected steps have: it
        gets the task policy."""
        found, e = super().context(data, state, draws), self.cfg.ensemble
        if e.kind == "priors":
            found["member"] = draw_member(draws, "member", e.members, *state.batch_size)
        if self.explores:
            who = shared_out(draws, state.batch_size, e.dreams, e.episodes if self.training and "is_last" in data else 0.0)
            found["explore"] = who & ~self.retired
        return found

    @property
    def retired(self) -> Tensor:
        """Whether the explorer has stopped acting and dreaming, bool ()."""
        return self.updates >= (self.cfg.ensemble.until or torch.inf)

    def view(self, state: TensorDict) -> Tensor:
        """Where there is an explorer, one more feature says whose state it is."""
        seen = super().view(state)
        return torch.cat([seen, state["explore"].unsqueeze(-1).to(seen.dtype)], -1) if self.explores else seen

    @property
    def view_width(self) -> int:
        """That feature's on top."""
        return super().view_width + self.explores

    def uncertainty(self, dream: TensorDict) -> Tensor:
        """What members disagree about on the way to each state of a dream (N, H + 1): nats, or the heads' standard deviation.

        Heads know no way to the first state: their entry 0 is 0.
        """
        if self.cfg.ensemble.kind == "priors":
            return self.rssm.uncertainty(dream["deter"])  # type: ignore[operator]
        heads: Disagreement = self.nets[NAME]  # type: ignore[assignment]
        left = heads.uncertainty(self.latent(dream)[:, :-1], codec.joined(self.spec.action, dream["action"])[:, :-1])
        return torch.cat([torch.zeros_like(left[:, :1]), left], 1)

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Ends dreams where they leave what is known, if asked to. `trust` (N, H + 1) is what the model itself says of going on."""
        dream, e = super().imagine(start, draws), self.cfg.ensemble
        if not e.stop:
            return dream
        doubt = self.uncertainty(dream)
        limit, _ = percentiles(doubt[:, 1], 100 * e.stop, 100)
        ends = doubt[:, 1:] > limit
        cont = dream["cont"]
        return dream.set("trust", cont).set("cont", torch.cat([cont[:, :1], cont[:, 1:] * ~ends], 1))

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        """Adds the explorer's reward, or takes the charge off the task's. A stopped dream is paid the value of where it stopped."""
        rewards, e = super().rewards(dream), self.cfg.ensemble
        if e.use == "pessimism":
            rewards["extrinsic"] = rewards["extrinsic"] - e.pessimism * self.uncertainty(dream)
        if e.stop:
            rest = dream["trust"] - dream["cont"]
            for name, objective in self.main.terms().items():
                with frozen(objective):
                    value = objective.bootstrap(self.view(dream))
                    rewards[name] = rewards[name] + objective.going(rest) * objective.raw(value.pred(), value)
        return rewards | ({NAME: self.uncertainty(dream)} if self.explores else {})

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Adds the loss (B, T - 1) of the heads on every transition within an episode."""
        losses, e = super().model_losses(batch, post), self.cfg.ensemble
        if e.kind != "heads":
            return losses
        targets = {"stoch": lambda: self.rssm.log_probs(post["logits"]).exp().flatten(-2), "deter": lambda: post["deter"]}
        target = targets.get(e.target, lambda: self.encode(batch))()
        action = codec.flat(self.spec.action, batch["action"], squash=False)
        keep = kept(batch["stepid"], e.members, e.bootstrap)[:, :-1] if e.bootstrap < 1 and "stepid" in batch else None
        heads: Disagreement = self.nets[NAME]  # type: ignore[assignment]
        loss = heads.loss(self.latent(post)[:, :-1], action[:, :-1], target[:, 1:], keep)
        return losses | {NAME: loss * ~batch["is_first"][:, 1:]}

    def report(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Adds the mean uncertainty of replayed transitions, and with worlds that about rewards beside that about values."""
        metrics, pictures = super().report(batch, draws)
        if self.cfg.ensemble.kind == "worlds":
            metrics["uncertainty/reward"] = self.disputes(self._seen(batch, draws))["reward"].mean()
        return metrics | {"uncertainty": self.measure(batch, draws).mean()}, pictures

    @torch.no_grad()
    def measure(self, batch: TensorDict, draws: Draws) -> Tensor:
        """Uncertainty (B, T) of replayed steps: of the way to each of them from the one before; with worlds, of their values."""
        post = self._seen(batch, draws)
        return self.disputes(post)["value"] if self.cfg.ensemble.kind == "worlds" else self.uncertainty(post)

    @torch.no_grad()
    def _seen(self, batch: TensorDict, draws: Draws) -> TensorDict:
        """States (B, T) of replayed steps, with the actions taken in them."""
        state, data, previous = self.replay_context(batch, 0)
        post = self.rssm.observe(self.encode(data), previous, data["is_first"], state, draws)
        return post.set("action", codec.model_actions(self.spec.action, data["action"]))
