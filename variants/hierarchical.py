"""Two levels: a manager that sets a subgoal every K steps, in a code that it learned, and a worker that reaches it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from ..core import maths
from ..core.behavior import Behavior, CriticConfig
from ..core.config import ConfigError
from ..core.knobs import Config
from ..core.promises import Promises
from ..core.rng import Draws
from ..core.specs import Space, Spec
from . import council, pursuits, segments
from .arrival import GoalObjective, own_horizon
from .explorer import novelty
from .landmarks import Kind, Landmarked
from .levels import Manager, Worker
from .subgoals import Subgoals
from .timeline import pursuit


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """How subgoals are coded, held, chosen and paid for."""

    subgoal: Kind = "state"  # of the model; achieved: what a task with goals calls achieved, as a vector
    hold: int = 0  # K, steps that a subgoal is held, a divisor of the dream; 0 takes the largest up to 8
    groups: int = 8  # of the code
    codes: int = 8  # classes of each group
    layers: int = 1  # dense units of encoder and decoder of subgoals
    units: int = 256  # width of each
    share: float = 0.75  # of the nats that a code can tell, how much it is to tell of a state
    extrinsic: float = 1.0  # manager: weight of the task's reward
    floor: float = 0.01  # manager: least scale of the task's returns, which are means over K steps
    novelty: float = 0.1  # manager: weight of what the code cannot tell yet
    closeness: float = 1.0  # worker: weight of nearness to the subgoal
    horizon: int = 33  # worker: of the critic of closeness, discount 1 - 1 / horizon
    task: float = 0.0  # worker: weight of the task's reward beside it
    manager_entropy: float = 0.5  # share of the greatest entropy that the manager's is steered to
    worker_entropy: float = 0.5  # likewise the worker's
    speed: float = 0.1  # share by which the weights of entropies and of the code's KL are turned at an update

    def __post_init__(self) -> None:
        if not (self.extrinsic or self.novelty):
            raise ConfigError("a manager without reward: hierarchy.extrinsic and hierarchy.novelty are both 0")
        if not (self.closeness or self.task):
            raise ConfigError("a worker without reward: hierarchy.closeness and hierarchy.task are both 0")


@dataclass(frozen=True, kw_only=True)
class HierarchicalConfig(Config):
    """Knobs of the base agent, and `hierarchy`."""

    dream: int = 16  # H, imagined steps: two subgoals
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)


class Hierarchical(Landmarked):
    """Director (Hafner et al. 2022, "Deep Hierarchical Planning from Pixels") on the shared core.

    The state carries `subgoal` (*, D), a deterministic state or an achievement (`landmarks`); `code` (*, S * C), what the manager chose;
    `clock` (*), steps since, which is 0 where the next one is due.
    """

    Config = HierarchicalConfig
    cfg: HierarchicalConfig
    exhibits = (pursuit,)
    leader, roams = "manager", True
    """Who pursues commanded goals, and whether that one explores: beside members that disagree it is paid for that, not for its code."""
    promises = Promises(
        turn={"hierarchy.floor": (1e4,)},
        neutral={"repval_grad": False},  # no critic here values replayed steps, so none shapes latents
        exempt=dict.fromkeys(("loss/policy", "loss/value", "loss/repval"), "manager and worker take the place of the flat policy")
        | {"state/clock": "dreams of replayed states keep step without one", "hierarchy.subgoal": "needs a task with goals"},
    )

    def __init__(self, spec: Spec, cfg: HierarchicalConfig, seed: int = 0) -> None:
        self.hold = segments.held(cfg.dream, cfg.hierarchy.hold)
        self.moment = 0  # step of the dream that is being made
        super().__init__(spec, cfg, seed)
        if not isinstance(self.main, Worker):
            raise ConfigError(f"{type(self).__name__}: hierarchical acts by its worker, and another part puts a policy of its own there")

    def build(self) -> dict[str, nn.Module]:
        """Adds `subgoals`, their autoencoder."""
        h = self.cfg.hierarchy
        sizes = {"groups": h.groups, "codes": h.codes, "units": h.units, "layers": h.layers}
        return super().build() | {"subgoals": Subgoals(self.aspects, share=h.share, speed=h.speed, **sizes)}

    def build_behaviors(self) -> dict[str, Behavior]:
        """`main` is the worker, who acts; `manager` chooses its subgoals, always by the score function: a code has no slope."""
        cfg, h, width, behaviors = self.cfg, self.cfg.hierarchy, self.view_width - self.unled, super().build_behaviors()
        code = {"code": Space(shape=(h.groups,), dtype="int32", classes=h.codes)}
        paid = {"extrinsic": council.objective(self, width, self._critic(), h.extrinsic), "novelty": novelty(self, width)}
        paid["novelty"].weight = h.novelty
        actor = replace(cfg.actor, grad="reinforce")
        policy = council.policy(self, width, code, cfg.actor.policy)
        manager = Manager(
            policy, {k: o for k, o in paid.items() if o.weight}, actor, target=h.manager_entropy, speed=h.speed, hold=self.hold
        )
        own_horizon(self)
        # What an end of the task is worth is the manager's to judge. A worker that fears for its closeness never steps on the goal.
        near = GoalObjective(self.view_width, cfg.critic, h.horizon, h.closeness, absorbing=False, endless=True)
        objectives = {"closeness": near, "extrinsic": council.objective(self, self.view_width, cfg.critic, h.task)}
        objectives = {k: o for k, o in objectives.items() if o.weight}
        worker = Worker(behaviors["main"].policy, objectives, cfg.actor, target=h.worker_entropy, speed=h.speed, hold=self.hold)
        return behaviors | {"main": worker, "manager": manager}

    def _critic(self) -> CriticConfig:
        """The manager's. With the floor of flat returns, 1, a rare reward would weigh less than novelty, whose scale has none."""
        return replace(self.cfg.critic, retnorm=replace(self.cfg.critic.retnorm, limit=self.cfg.hierarchy.floor))

    def scales(self) -> dict[str, float]:
        """Adds subgoals, which share nothing with the rest and so weigh 1, and what either level learns by."""
        named, s, h = super().scales(), self.cfg.scales, self.cfg.hierarchy
        named |= {"subgoals": 1.0, "manager/policy": s.policy}
        terms = {"value/closeness": h.closeness, "value": h.task, "manager/value": h.extrinsic, "manager/value/novelty": h.novelty}
        return {k: v for k, v in named.items() if k not in ("value", "repval")} | {k: s.value for k, weight in terms.items() if weight}

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        """Adds `noise` (B, T, S), by which codes of replayed states are drawn."""
        batch = super().prepare(batch, draws).copy()
        noise = draws.uniform("subgoals", *batch.batch_size, self.cfg.hierarchy.groups)
        return batch if noise is None else batch.set("noise", noise)

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """A clock at 0, so that the manager chooses at once; what it replaces is nothing. Dreams of replayed states need none."""
        found, h, lead = super().context(data, state, draws), self.cfg.hierarchy, state.batch_size
        zeros = torch.zeros(*lead, h.groups * h.codes + self.aspects, device=state.device)
        found.update(dict(zip(("code", "subgoal"), zeros.split([h.groups * h.codes, self.aspects], -1), strict=True)))
        return found if len(lead) == 2 else found.set("clock", torch.zeros(lead, dtype=torch.int64, device=state.device))

    def view(self, state: TensorDict) -> Tensor:
        """What actor and critic see, and the subgoal where the state has one: (*, F + D). The manager's states have none."""
        seen = super().view(state)
        return torch.cat([seen, state["subgoal"]], -1) if "subgoal" in state else seen

    @property
    def unled(self) -> int:
        """Width of what only the worker sees: the subgoal."""
        return self.aspects

    @property
    def view_width(self) -> int:
        """Of the worker's states: the subgoal's on top."""
        return super().view_width + self.unled

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        """Choose the next subgoal where it is due, then let the worker act towards the one in force."""
        return super().act(self.renew(state, draws), draws)

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Dreams whose start has no clock begin with a choice, all at once: when the next is due is known without looking."""
        self.moment = 0
        return super().imagine(start, draws)

    @torch.no_grad()
    def renew(self, state: TensorDict, draws: Draws) -> TensorDict:
        """States (n,) with the manager's choice where one is due, and the clock moved on where there is one."""
        noise = draws.uniform("action/code", *state.batch_size, self.cfg.hierarchy.groups) if "action" not in draws.modes else None
        if "clock" not in state:
            due, self.moment = self.moment % self.hold == 0, self.moment + 1
            return state.copy().update(self.choose(state, noise)) if due else state
        now = (state["clock"] == 0).unsqueeze(-1)
        renewed = {k: torch.where(now, v, state[k]) for k, v in self.choose(state, noise).items()}
        return state.copy().update(renewed | {"clock": (state["clock"] + 1) % self.hold})

    def choose(self, state: TensorDict, noise: Tensor | None) -> dict[str, Tensor]:
        """The manager's `code` (n, S * C) for states, drawn with noise (n, S), or its likeliest, and the `subgoal` (n, D) that it means."""
        dist = self.behaviors["manager"].policy(self.view(state.exclude("subgoal")))["code"]  # type: ignore[operator]
        code = maths.sample_onehot(dist.log_probs.exp(), noise).flatten(-2)
        return {"code": code, "subgoal": self.subgoals.decode(code).to(state["deter"].dtype)}

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        """Adds `closeness` (N, H + 1) of each state to the subgoal in force when it was made for, and `novelty` of all but the first."""
        rewards, h, there = super().rewards(dream), self.cfg.hierarchy, self.aspect(dream)[:, 1:]
        if h.closeness:
            faced = segments.facing(dream["subgoal"], there, 1 if "clock" in dream else self.hold)
            rewards["closeness"] = F.pad(self.nearness(*faced).flatten(1), (1, 0))
        if h.novelty:
            members = getattr(self, "curious", False)
            rewards["novelty"] = self.uncertainty(dream) if members else F.pad(self.subgoals.novelty(there), (1, 0))  # type: ignore[operator]
        return rewards

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Adds the loss (B, T) of the autoencoder. It does not shape latents. Its controller rests where nothing is learned."""
        noise = batch.get("noise", None)
        return super().model_losses(batch, post) | {"subgoals": self.subgoals.loss(self.aspect(post), noise, torch.is_grad_enabled())}

    def report(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Adds how well the code tells of states, how much of it is used, how near subgoals are come to, and what both look like."""
        metrics, pictures = super().report(batch, draws)
        more, drawn = pursuits.inspect(self, batch, draws)
        return metrics | more, pictures | drawn
