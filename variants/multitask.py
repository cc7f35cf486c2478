"""Many tasks, one world model: a policy that knows its task, heads and scales of its own for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.behavior import Behavior
from ..core.codec import Encoder
from ..core.heads import Head
from ..core.outputs import Output
from ..core.promises import Promises
from ..core.rng import Draws
from ..core.rssm import RSSM
from ..core.specs import Space, Spec
from .branches import Branches, balance, other
from .conflicts import conflicts
from .embedding import TOLD, Reader, TaskEmbedding, ToldRSSM, given
from .heirs import Heritage
from .padding import Mark, Padding, TaskPolicy, owned
from .patience import Patient, PatientConfig
from .units import Units
from .yardstick import TaskObjective, discount, own


@dataclass(frozen=True, kw_only=True)
class MultiTaskConfig:
    """What is each task's own and what is shared. With one task all of it is the base agent's, unless `alone` says otherwise."""

    embedding: int = 32  # width of the vector that stands for a task
    vectors: str = ""  # .npz or .json file of such vectors by task, embeddings of text for example, which stay as given; otherwise learned
    reads: tuple[Reader, ...] = ("encoder", "heads", "behavior")  # who is told it; behavior: actor and critic; dynamics: for unlike bodies
    heads: Literal["per_task", "shared"] = "per_task"  # of reward and continuation
    returns: Literal["per_task", "shared"] = "per_task"  # scale of the returns, which divides the advantage
    reduction: Literal["uniform", "per_task"] = "uniform"  # losses of the world model's heads: mean over steps, or over tasks of theirs
    discount: Literal["shared", "length"] = "shared"  # length: of each task by its longest episode
    alone: Literal["base", "told"] = "base"  # told: a single task of a suite gets embedding, heads and scale as one of several would
    swap: float = 0.0  # share of dreams under the number of another task with the same spaces; above 0 replay teaches the critic nothing

    def __post_init__(self) -> None:
        if self.vectors and not self.reads:
            raise ValueError(f"multitask.vectors: {self.vectors!r} would be read by nobody: name readers in multitask.reads")


@dataclass(frozen=True, kw_only=True)
class MultiTaskAgentConfig(PatientConfig):
    """Knobs of the base agent, `patience` and `multitask`."""

    multitask: MultiTaskConfig = field(default_factory=MultiTaskConfig)


class MultiTask(Heritage, Patient):
    """One agent for all of `spec.tasks` (after TD-MPC2, Hansen et al. 2024, and BRC, Nauman et al. 2025).

    Steps and states carry the number of their task as `task` (*)."""

    Config = MultiTaskAgentConfig
    cfg: MultiTaskAgentConfig
    exhibits = (conflicts,)
    promises = Promises(
        home="suite/world-grid4",
        neutral={"multitask.reads": (), "multitask.heads": "shared", "multitask.returns": "shared", "patience.trust": 0.0},
        exempt={"multitask.alone": "for one task", "multitask.vectors": "a file"},
        turn={"multitask.reads": ((), ("behavior",), ("encoder", "heads", "behavior", "dynamics"))},
    )

    def spaces(self, spec: Spec) -> Spec:
        """Looks at what the tasks are, and refuses discounts that the continue head does not learn."""
        spec, cfg = super().spaces(spec), self.cfg.multitask
        if cfg.discount == "length" and not self.cfg.critic.contdisc:
            raise ValueError("multitask.discount=length needs critic.contdisc: a task's discount is part of what its continuation learns")
        self.tasks, usual = list(spec.tasks.values()), self.cfg.critic.discount
        self.many = len(self.tasks) > 1 or (bool(self.tasks) and cfg.alone == "told")
        self.reads: frozenset[str] = frozenset(cfg.reads if self.many else ())
        self.discounts = [discount(t.limit, usual) if cfg.discount == "length" else usual for t in self.tasks]
        # Whether actor and critic must know the number itself: for masks, scales and discounts.
        masked = any(t.action.get(k) is None or t.action[k].width < s.width for k, s in spec.action.items() for t in self.tasks)
        self.marked = self.many and (masked or cfg.returns == "per_task" or cfg.discount == "length")
        self.heard = cfg.embedding if "behavior" in self.reads else 0  # by actor and critic, width
        return spec

    def build(self) -> dict[str, nn.Module]:
        """Adds `tasks`, the embedding, and `padding`; heads of each task take the place of `reward` and `cont`."""
        nets, cfg, told = super().build(), self.cfg, self.cfg.multitask.embedding
        if not self.many:
            return nets
        nets["padding"], nets["units"] = Padding(self.spec.visible, [t.obs for t in self.tasks]), Units(len(self.tasks))
        if self.reads:
            nets["tasks"] = TaskEmbedding(len(self.tasks), told, given(cfg.multitask.vectors, list(self.spec.tasks), told))
        if "encoder" in self.reads:
            nets["encoder"] = Encoder(self.spec.visible | {TOLD: Space(shape=(told,))}, cfg.encoder)
        if self.reads & {"encoder", "dynamics"}:
            sizes: Any = (cfg.dynamics, self.spec.action_width, nets["encoder"].width, cfg.rssm)
            nets["rssm"] = ToldRSSM(*sizes, told=told, tell=nets["tasks"].forward) if "dynamics" in self.reads else RSSM(*sizes)
        nets["encoder"].width += told if "dynamics" in self.reads else 0  # type: ignore[assignment, operator]  # tokens end with it
        width: int = nets["rssm"].latent_width + (told if "heads" in self.reads else 0)  # type: ignore[assignment, operator]
        for name, head in (("reward", cfg.reward), ("cont", cfg.cont)):
            nets[name] = Branches(len(self.tasks), width, head) if cfg.multitask.heads == "per_task" else Head(width, head)
        return nets

    def build_behaviors(self) -> dict[str, Behavior]:
        """The policy that acts, in whatever behavior, knows what actions its task has; its critic has the task's scale and discount."""
        behaviors, cfg = super().build_behaviors(), self.cfg
        main, terms = behaviors["main"], behaviors["main"].terms()
        for objective in terms.values() if self.many and cfg.multitask.swap else ():
            objective.replay = None
        if not self.marked:
            return behaviors
        if usual := terms.get("extrinsic"):
            terms["extrinsic"] = TaskObjective(self.view_width, usual.cfg, weight=usual.weight, replay=usual.replay, **own(self))
        main.policy = TaskPolicy(self.view_width, self.spec.action, cfg.actor.policy, [t.action for t in self.tasks], self.mark)
        main.objectives = nn.ModuleDict(terms)
        return behaviors

    def scales(self) -> dict[str, float]:
        """Without repval where dreams change their task: they say nothing of the replayed step that they start from."""
        named = super().scales()
        return {k: v for k, v in named.items() if k != "repval"} if self.many and self.cfg.multitask.swap else named

    def encode(self, data: TensorDict) -> Tensor:
        """Tells the encoder the task, and the dynamics, which take it from the end of the tokens."""
        told = self.nets["tasks"](self.ids(data)) if self.reads & {"encoder", "dynamics"} else None
        if "encoder" in self.reads:
            data = data.copy().set("obs", data["obs"].copy().set(TOLD, told))
        tokens = super().encode(data)
        return torch.cat([tokens, told], -1) if "dynamics" in self.reads else tokens  # type: ignore[list-item]

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """The task's number, at every step: a sequence may hold episodes of several."""
        return super().context(data, state, draws).update({"task": self.ids(data)} if self.many else {})

    def predict(self, name: str, state: TensorDict) -> Output:
        """What the head of a state's own task says."""
        if not self.many:
            return super().predict(name, state)
        latent, head = self.latent(state), self.nets[name]
        seen = torch.cat([latent, self.told(state).to(latent.dtype)], -1) if "heads" in self.reads else latent
        return head(seen, state["task"]) if isinstance(head, Branches) else head(seen)

    def reconstruct(self, state: TensorDict, data: TensorDict) -> dict[str, Output]:
        """Padded elements cost nothing."""
        outputs = super().reconstruct(state, data)
        padding: Padding = self.nets["padding"] if self.many else Padding({}, ())  # type: ignore[assignment]
        return outputs | {key: owned(outputs[key], padding.of(key, self.ids(data))) for key in padding.names}

    def view(self, state: TensorDict) -> Tensor:
        """Adds the embedding of a state's task, and its number as `mark` has it."""
        parts = [super().view(state)]
        if "behavior" in self.reads:
            # Dreams train actor and critic alone: what they make of the task must not reach its embedding.
            parts.append(self.told(state).detach() if state.get("joined", None) is not None else self.told(state))
        if self.marked:
            parts.append(self.mark.write(state["task"]))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    @property
    def view_width(self) -> int:
        """The embedding's and the number's on top."""
        return super().view_width + self.heard + self.marked

    @property
    def mark(self) -> Mark:
        """Where the number stands."""
        return Mark(super().view_width + self.heard, len(self.tasks))

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Dreams a share of the starts under the number of another task."""
        share, chosen = self.cfg.multitask.swap, draws.uniform("task/swap", 2, *start.batch_size)
        if self.many and share and chosen is not None:
            start = start.copy().set("task", torch.where(chosen[0] < share, other(self.tasks, start["task"], chosen[1]), start["task"]))
        return super().imagine(start, draws)

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Each step's reward and continuation train the head of its own task."""
        if not self.many:
            return super().model_losses(batch, post)
        ids, cfg = self.ids(batch), self.cfg.multitask
        losses = super().model_losses(batch, post := post.copy().set("task", ids))
        self.nets["units"].meet(ids, batch["reward"])  # type: ignore[operator]
        if cfg.discount == "length":
            alive = (~batch["is_terminal"]).float() * torch.tensor(self.discounts, device=ids.device)[ids]
            losses["cont"] = self.predict("cont", post).loss(alive)
        if cfg.reduction == "per_task":
            weight = balance(ids, len(self.tasks))
            losses = {k: v * weight if v.shape == ids.shape else v for k, v in losses.items()}
        return losses

    def told(self, state: TensorDict) -> Tensor:
        """Embedding (*, E) of the tasks of states (*)."""
        return self.nets["tasks"](state["task"])

    def ids(self, data: TensorDict) -> Tensor:
        """Task numbers (*) of steps (*), int64. Raises KeyError where a step does not say."""
        if "task" not in data:
            raise KeyError(f"a step must say under 'task' which of {', '.join(self.spec.tasks)} it is of")
        return data["task"].long()
