"""Goals in hindsight: one policy that reaches any goal it is given, trained in dreams whose goals were achieved in replay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.agent import Config, Dreamer
from ..core.behavior import Behavior
from ..core.nets import MLP, Linear
from ..core.promises import Promises
from ..core.rng import Draws
from ..core.specs import Spec
from . import arrival, hindsight
from .aims import Aim, Aims, choose, glimpse
from .attempts import attempts, goals
from .distance import PARTNERS, Distance, fit


@dataclass(frozen=True, kw_only=True)
class GoalConfig:
    """How goals are chosen, rewarded and pursued."""

    reward: Literal["auto", "match", "distance", "cosine"] = "auto"  # auto: distance where images are part of the goal, else match
    weight: float = 1.0  # of the goal reward; 0 leaves the base agent
    extrinsic: float = 0.0  # weight of the task's own reward beside it; at 0 that reward teaches nothing
    future: float = 0.5  # share of dreams towards a later step of the same episode
    random: float = 0.3  # towards any replayed step
    commanded: float = 0.2  # towards the goal that the task gave; to a random step where it gives none
    ahead: float = 15.0  # steps from a start to its future goal, on average
    tolerance: float = 0.5  # distance at which a goal counts as reached, in its own units (pixels from 0 to 1)
    stay: bool = False  # match: being at the goal pays at every step; otherwise nothing follows the goal
    horizon: int = 33  # of the goal's critic: discount 1 - 1 / horizon
    practice: float = 0.0  # share of training episodes that pursue a replayed goal instead of the task's
    pool: int = 256  # replayed goals kept for practice, and for tasks that give no goals
    success_ends: bool = False  # an episode ended by success ends for the model, too; otherwise it was truncated
    layers: int = 2  # dense units of what predicts achievements, and of the distance
    units: int = 64  # width of each
    fit: float = 1.0  # weight of the losses of these two
    reach: int = 15  # distance: so many steps count as 1
    negatives: float = 0.1  # distance: share of pairs from different sequences, which count as 1
    expectile: float = 0.5  # distance: which one of the steps between two places it is; half is the mean, less leans to short ways
    look: int = 3  # cosine: times that a goal is shown to the model before its latent is taken

    def __post_init__(self) -> None:
        if min(self.future, self.random, self.commanded) < 0 or self.future + self.random + self.commanded <= 0:
            raise ValueError("goal.future, goal.random and goal.commanded are shares: none below 0, not all 0")
        if not 0 < self.expectile < 1:
            raise ValueError(f"goal.expectile lies between 0 and 1, got {self.expectile:g}")


@dataclass(frozen=True, kw_only=True)
class GoalAgentConfig(Config):
    """Knobs of the base agent, and `goal`."""

    goal: GoalConfig = field(default_factory=GoalConfig)


class Goal(Dreamer):
    """Goal-conditioned policy with hindsight (LEXA, Mendonca et al. 2021; HER, Andrychowicz et al. 2017).

    Goals are what `spec.goals` names, else all that is visible. The state carries an embedding `goal` (*, G), see `embed`.
    """

    Config = GoalAgentConfig
    cfg: GoalAgentConfig
    exhibits = (goals,)
    promises = Promises(
        neutral={"goal.weight": 0.0},
        turn={"goal.reward": ("distance", "cosine"), "goal.tolerance": (2.0,)},
        beside={f"goal.{k}": {"goal.reward": "distance"} for k in ("reach", "negatives", "expectile")}
        | {"goal.look": {"goal.reward": "cosine"}}
        | {"goal.pool": {"goal.practice": 1.0}, "goal.stay": {"goal.tolerance": 3.0}, "goal.ahead": {"goal.tolerance": 0.0}},
        exempt=dict.fromkeys(("goal.success_ends", "goal.practice"), "needs success that ends episodes; needs a task that gives goals"),
    )

    def spaces(self, spec: Spec) -> Spec:
        """Commanded goals are hidden: the world does not depend on where the agent is told to go."""
        spec, kind = super().spaces(spec), self.cfg.goal.reward
        self.aims = Aims(spec := replace(spec, hidden=spec.hidden | spec.goals.keys()))
        self.kind = ("distance" if self.aims.imaged else "match") if kind == "auto" else kind
        if self.kind == "match" and self.cfg.actor.grad != "reinforce":
            raise ValueError("goal.reward=match has no slope for an actor to follow: choose distance, or actor.grad=reinforce")
        return spec

    def build(self) -> dict[str, nn.Module]:
        """Adds `achieved`, which predicts the goal embedding of a latent, and where they are used `distance` and `pool`."""
        nets, cfg = super().build(), self.cfg.goal
        self.goal_width: int = nets["encoder"].width if self.aims.imaged else self.aims.width  # type: ignore[assignment]
        mlp = MLP(nets["rssm"].latent_width, cfg.units, cfg.layers)  # type: ignore[arg-type]
        nets["achieved"] = nn.Sequential(mlp, Linear(mlp.width, self.goal_width))
        if cfg.practice or not self.aims.commands:
            nets["pool"] = hindsight.Pool(self.aims.spaces, cfg.pool)
        return nets | ({"distance": Distance(self.goal_width, cfg.units, cfg.layers)} if self.kind == "distance" else {})

    def build_behaviors(self) -> dict[str, Behavior]:
        """The policy that acts climbs the goal's reward. Replay teaches its critics nothing: another goal was pursued there."""
        behaviors = super().build_behaviors()
        return arrival.pursuing(self, behaviors) if self.cfg.goal.weight else behaviors

    def scales(self) -> dict[str, float]:
        """Adds achieved, distance and value/goal; what the task's own reward would train goes unless it has a weight."""
        cfg, named = self.cfg.goal, super().scales()
        named |= {"achieved": cfg.fit} | ({"distance": cfg.fit} if self.kind == "distance" else {})
        if not cfg.weight:
            return named
        # In a hierarchy the manager pursues goals, and its losses have a prefix.
        lead = arrival.leader(self)
        value, used = "value" if lead == "main" else f"{lead}/value", any("extrinsic" in b.terms() for b in self.behaviors.values())  # type: ignore[operator]
        named |= {f"{value}/goal": self.cfg.scales.value} | ({} if used else {"reward": 0.0})
        return {k: v for k, v in named.items() if k != "repval" and (k != value or cfg.extrinsic)}

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        """An episode that ended because its goal was reached would not have ended for any other goal."""
        cfg = self.cfg.goal
        spared = self.aims.reached(batch, cfg.tolerance) if cfg.weight and self.aims.commands and not cfg.success_ends else None
        # Looked at before images are moved about: what is commanded is not moved with them.
        batch = super().prepare(batch, draws).copy()
        if self.kind == "distance":
            batch["pairing"] = hindsight.uniform(draws, "goal/pairs", *batch.batch_size, PARTNERS, 3)
        return batch if spared is None else batch.set("is_terminal", batch["is_terminal"] & ~spared)

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """One goal for a whole dream or episode: relabelled when training, commanded when acting."""
        found, learning = super().context(data, state, draws), torch.is_grad_enabled()
        with torch.no_grad():
            goal = self._relabel(data, draws, learning) if state.batch_dims == 2 else self._pursue(data, draws)
            return found.update(self.aim(data, goal))

    def view(self, state: TensorDict) -> Tensor:
        """What actor and critic see, and the goal: (*, F)."""
        return torch.cat([super().view(state), state["goal"]], -1) if self.cfg.goal.weight else super().view(state)

    @property
    def view_width(self) -> int:
        return super().view_width + (self.goal_width if self.cfg.goal.weight else 0)

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        """Adds `goal`: how near each state (N, H + 1) is to the goal of its dream."""
        return super().rewards(dream) | {"goal": self.arrived(dream)}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Adds achieved and distance (B, T). Neither shapes latents or encoder."""
        losses, cfg = super().model_losses(batch, post), self.cfg.goal
        with torch.no_grad():
            truth = self.embed(batch, self.aims.achieved(batch))
        losses["achieved"] = (self.nets["achieved"](self.latent(post).detach()) - truth).square().sum(-1)
        if self.kind == "distance":
            losses["distance"] = fit(self.nets["distance"], truth, hindsight.remaining(batch["is_first"]), batch["pairing"], cfg)
        return losses

    def report(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Adds, where goals are images, attempts to dream oneself there."""
        metrics, pictures = super().report(batch, draws)
        return metrics, pictures | attempts(self, batch, draws)

    def eligible(self, batch: TensorDict) -> Tensor:
        """Replayed steps that may become goals, bool (B, T): all. For subclasses that hold some out."""
        return torch.ones_like(batch["is_first"])

    def arrived(self, state: TensorDict) -> Tensor:
        """Goal reward of states (*) for the goals that they carry: in [0, 1], 1 at the goal."""
        if self.kind == "cosine":
            return arrival.cosine(self.latent(state), state["goal_latent"])
        achieved = self.nets["achieved"](self.latent(state))
        if self.kind == "match":
            return arrival.match(achieved, state["goal"], self.cfg.goal.tolerance)
        return arrival.nearness(self.nets["distance"](achieved, state["goal"]))

    def embed(self, data: TensorDict, goal: Aim) -> Tensor:
        """What networks see of goals of steps, both (*): (*, G), numbers squashed by symlog, or tokens where images are among them."""
        return self.encode(self.aims.sight(goal, data)) if self.aims.imaged else self.aims.vector(goal)

    def aim(self, data: TensorDict, goal: Aim) -> TensorDict:
        """What states of steps (*) carry of their goals."""
        found = TensorDict({"goal": self.embed(data, goal)}, data.batch_size)
        if self.kind == "cosine":
            seen = glimpse(self.rssm, self.encode(self.aims.sight(goal, data)).flatten(0, -2), self.spec.action_width, self.cfg.goal.look)
            found["goal_latent"] = self.latent(seen).reshape(*data.batch_size, -1)
        return found

    def _relabel(self, batch: TensorDict, draws: Draws, learning: bool) -> Aim:
        """Goals of dreams from every replayed step (B, T)."""
        cfg, noise = self.cfg.goal, hindsight.uniform(draws, "goal", 4, *batch.batch_size)
        if learning and "pool" in self.nets:
            self.nets["pool"].add(self.aims.achieved(batch), noise[2], self.aims.kind(batch))  # type: ignore[operator]
        mixture: Any = {"shares": (cfg.future, cfg.random, cfg.commanded), "mean": cfg.ahead, "tolerance": cfg.tolerance}
        return hindsight.goals(self.aims, batch, self.eligible(batch), noise, **mixture)

    def _pursue(self, data: TensorDict, draws: Draws) -> Aim:
        """Goals of episodes (n,): the task's; in training a share is practice, and all of it where the task gives none."""
        which, pick = hindsight.uniform(draws, "goal", 2, *data.batch_size)
        if self.aims.commands and not (self.training and "pool" in self.nets):
            return self.aims.desired(data)
        practised, there = self.nets["pool"].draw(pick, self.aims.kind(data))  # type: ignore[operator]
        return choose((which < self.cfg.goal.practice) & there, practised, self.aims.desired(data)) if self.aims.commands else practised
