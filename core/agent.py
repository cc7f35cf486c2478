"""The agent: a world model, the behaviors that dream in it, and the seams that variants override."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, final

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.profiler import record_function

from . import codec, openloop
from .acting import CompiledPolicy
from .behavior import Behavior, Objective, actor_critic, frozen, replay_value
from .codec import Decoder, Encoder
from .compiler import Compile
from .heads import Head, Policy
from .knobs import Config as Config
from .mover import Mover
from .nets import RMSNorm, initialize
from .optim import Optimizer, finite, gradient_norms, make_groups, total_norm
from .outputs import Output
from .promises import require
from .recording import RecordedUpdate
from .rng import Draws
from .rssm import RSSM, Latents
from .specs import Space, Spec

AgentConfig = Config
Updated = tuple[dict[str, Tensor], TensorDict]  # metrics, and latents with their priority


class Dreamer(nn.Module):
    """DreamerV3 (Hafner et al. 2023, 2025). Variants inherit from it and override seams; final methods are the core's own.

    spec: what the task offers. cfg: knobs. seed: start values of the weights. `updates` counts finished updates.
    """

    Config: ClassVar[type[AgentConfig]] = Config
    exhibits: ClassVar[tuple[Callable[..., Any], ...]] = ()
    """What draws the report's pictures, each a `pictures.Exhibit`. Those of all parents are drawn as well."""
    cfg: AgentConfig
    updates: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.__dict__:
            if getattr(getattr(Dreamer, name, None), "__final__", False):
                raise TypeError(f"{cls.__name__}.{name} is the core's own and the same for all variants: override a seam that it calls")

    def __init__(self, spec: Spec, cfg: AgentConfig, seed: int = 0) -> None:
        super().__init__()
        require(type(self), spec)
        self.cfg = cfg
        self.spec = self.spaces(spec)
        self.precision = torch.float32
        self._compiled: CompiledPolicy | None = None
        self._recorded: RecordedUpdate | None = None
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.nets = nn.ModuleDict(self.build())
        self.behaviors = nn.ModuleDict(self.build_behaviors())
        initialize(self, seed)
        for objective in self.objectives():
            objective.start()

    # ------------------------------------------------------------------------------------------------ seams

    def spaces(self, spec: Spec) -> Spec:
        """Seam: what the replay keeps besides the task's own arrays, and which observations the model may not see."""
        return spec

    def build(self) -> dict[str, nn.Module]:
        """Seam: modules of the world model by name. The base has encoder, rssm, decoder, reward, cont."""
        cfg, visible = self.cfg, self.spec.visible
        encoder = Encoder(visible, cfg.encoder)
        rssm = RSSM(cfg.dynamics, self.spec.action_width, encoder.width, cfg.rssm)
        decoder = Decoder(visible, cfg.rssm.deter, cfg.rssm.stoch * cfg.rssm.classes, cfg.decoder)
        heads = {"reward": Head(rssm.latent_width, cfg.reward), "cont": Head(rssm.latent_width, cfg.cont)}
        return {"encoder": encoder, "rssm": rssm, "decoder": decoder, **heads}

    def build_behaviors(self) -> dict[str, Behavior]:
        """Seam: policies with their objectives. `main` is the one that acts."""
        objective = Objective(self.view_width, self.cfg.critic, replay=lambda batch: batch["reward"])
        policy = Policy(self.view_width, self.spec.action, self.cfg.actor.policy)
        return {"main": Behavior(policy, {"extrinsic": objective}, self.cfg.actor)}

    def scales(self) -> dict[str, float]:
        """Seam: weight of every loss by name. Names must equal those of the losses."""
        s = self.cfg.scales
        named = {"reward": s.reward, "cont": s.cont, "dyn": s.dyn, "rep": s.rep, "policy": s.policy, "value": s.value}
        if s.repval:
            named["repval"] = s.repval
        return named | {f"rec/{key}": s.rec for key in self.spec.visible}

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        """Seam: change a replayed batch (B, T) before anything is computed from it. The base may augment images."""
        if self.cfg.augment == "none":
            return batch
        return batch.copy().set("obs", codec.random_shift(batch["obs"], [k for k, s in self.spec.visible.items() if s.image], draws))

    def encode(self, data: TensorDict) -> Tensor:
        """Seam: observations of steps (*) -> tokens (*, tokens)."""
        return self.encoder(data["obs"])

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """Seam: what travels beside the latents from the start of a rollout on, same batch shape as the state. The base has none.

        Chosen at every replayed state (B, T) when training, and at an episode's first step (n,) when acting.
        """
        return TensorDict({}, state.batch_size, device=state.device)

    def latent(self, state: TensorDict) -> Tensor:
        """Seam: what the world model's heads see of a state: (*, D + S * C)."""
        joined = state.get("joined", None)
        return torch.cat([state["deter"], state["stoch"].flatten(-2)], -1) if joined is None else joined

    def predict(self, name: str, state: TensorDict) -> Output:
        """Seam: what a head of the world model, `reward` or `cont`, says of states (*)."""
        return self.nets[name](self.latent(state))

    def reconstruct(self, state: TensorDict, data: TensorDict) -> dict[str, Output]:
        """Seam: the observations of steps (*) by key, as their states show them."""
        return self.decoder(state["deter"], state["stoch"])

    def view(self, state: TensorDict) -> Tensor:
        """Seam: what actor and critic see of a state: (*, F)."""
        return self.latent(state)

    @property
    def view_width(self) -> int:
        """Seam: F, how many features `view` gives. What a variant appends comes after `super().view_width` others, wherever it stands."""
        return self.rssm.latent_width

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        """Seam: choose the action of a state (n,), in model form by key. The one definition for the dream and the world."""
        dists = self.main.policy(self.view(state).detach())
        action = TensorDict({k: d.sample(draws, "action") for k, d in dists.items()}, state.batch_size, device=state.device)
        return state.copy().set("action", action)

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Seam: dream from states (N,) to (N, H + 1) states with their actions and `cont`, the probability of going on."""
        dream = self.rollout(start, draws)
        return dream.set("cont", self.predict("cont", dream).pred())

    def rewards(self, dream: TensorDict) -> dict[str, Tensor]:
        """Seam: rewards (N, H + 1) of a dream by objective; entry t is for arriving at state t."""
        return {"extrinsic": self.predict("reward", dream).pred()}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Seam: losses (B, T) that train the world model, besides dyn and rep."""
        losses = {f"rec/{k}": o.loss(batch["obs", k]) for k, o in self.reconstruct(post, batch).items()}
        losses["reward"] = self.predict("reward", post if self.cfg.reward_grad else post.detach()).loss(batch["reward"])
        alive = (~batch["is_terminal"]).float()
        losses["cont"] = self.predict("cont", post).loss(alive * (self.cfg.critic.discount if self.cfg.critic.contdisc else 1.0))
        return losses

    def report(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Seam: metrics of steps (B, T) that were never trained on, and pictures (`truth`, `model`) of open-loop dreams by key."""
        metrics = openloop.inspect(self, batch, draws)
        errors, pictures = openloop.open_loop(self, batch, draws)
        return metrics | errors, pictures

    # ------------------------------------------------------------------------------------------------ names

    @property
    def encoder(self) -> Encoder:
        return self.nets["encoder"]  # type: ignore[return-value]

    @property
    def decoder(self) -> Decoder:
        return self.nets["decoder"]  # type: ignore[return-value]

    @property
    def rssm(self) -> RSSM:
        return self.nets["rssm"]  # type: ignore[return-value]

    @property
    def reward(self) -> Head:
        return self.nets["reward"]  # type: ignore[return-value]

    @property
    def cont(self) -> Head:
        return self.nets["cont"]  # type: ignore[return-value]

    @property
    def main(self) -> Behavior:
        """The behavior that acts."""
        return self.behaviors["main"]  # type: ignore[return-value]

    @property
    def latent_spaces(self) -> dict[str, Space]:
        """What the replay stores of a latent: deter as numbers, stoch as class indices."""
        r = self.cfg.rssm
        return {"deter": Space(shape=(r.deter,)), "stoch": Space(shape=(r.stoch,), dtype="uint8", classes=r.classes)}

    def objectives(self) -> list[Objective]:
        """Of all behaviors."""
        return [o for b in self.behaviors.values() for o in b.terms().values()]  # type: ignore[operator]

    # ------------------------------------------------------------------------------------------------ final

    @final
    def rollout(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Policy and prior in turn: states (N,) -> (N, H + 1), index 0 the start itself.

        What `act` and `context` put into the state travels on; every state holds the action chosen in it.

            state    s_0 ---> s_1 ---> ... ---> s_H
            action   a_0      a_1               a_H     a_t is chosen in s_t
            reward            r_1               r_H     r_t is for arriving at s_t; entry 0 is never read
        """
        states, latents = [], Latents(self.cfg.dream + 1)
        state = start.copy().update({k: start[k].to(self.precision) for k in ("deter", "stoch")})
        for t in range(self.cfg.dream + 1):
            # Joined once for all that read it: `latent` in every step, and every head afterwards.
            state = self.act(state.set("joined", latents.add(state["deter"], state["stoch"].flatten(1))), draws)
            states.append(state)
            if t < self.cfg.dream:
                state = state.copy().update(self.rssm.step(state, codec.joined(self.spec.action, state["action"]), draws))
        dream: TensorDict = torch.stack([s.exclude("deter", "stoch", "joined") for s in states], 1)
        deter, stoch = (joined := latents.all()).split([start["deter"].shape[-1], start["stoch"][0].numel()], -1)
        return dream.update({"joined": joined, "deter": deter, "stoch": stoch.unflatten(-1, start["stoch"].shape[1:])})

    @final
    def replay_context(self, batch: TensorDict, context: int) -> tuple[TensorDict, TensorDict, Tensor]:
        """Cut a replayed batch (B, K + T) into the state (B,) to start from, the T steps to train on and their previous actions.

        The K leading steps are not trained on: the last of them gives stored latents and the first previous action. With
        K = 0 sequences start from nothing. Returns state, batch (B, T), action (B, T, A) in model form.
        """
        count, steps = batch.batch_size
        chosen = codec.flat(self.spec.action, batch["action"], squash=False)
        if context:
            stored = batch["latent"][:, context - 1]
            stoch = stored["stoch"]
            if stoch.ndim == 2:
                stoch = nn.functional.one_hot(stoch.long(), self.cfg.rssm.classes)
            state = TensorDict({"deter": stored["deter"].float(), "stoch": stoch.float()}, [count], device=chosen.device)
            return state, batch[:, context:], chosen[:, context - 1 : -1]
        previous = torch.cat([torch.zeros_like(chosen[:, :1]), chosen[:, :-1]], 1)
        return self.rssm.initial(count, chosen.device), batch, previous

    @final
    def losses(
        self, batch: TensorDict, state: TensorDict, previous: Tensor, draws: Draws, update: bool = True
    ) -> tuple[dict[str, Tensor], TensorDict, dict[str, Tensor]]:
        """Every loss of one batch by name, (B, T) or (N, H); the posterior states (B, T); metrics.

        batch (B, T), state (B,) before it, previous action (B, T, A) in model form. update=False leaves normalisers alone.
        """
        with self._autocast():
            with record_function("observe"):
                batch = self.prepare(batch, draws)
                post = self.rssm.observe(self.encode(batch), previous, batch["is_first"], state, draws)
            with record_function("world model"):
                losses, entropies = self.rssm.kl(post)
                losses |= self.model_losses(batch, post)
        post = post.update(self.context(batch, post, draws))
        last = self.cfg.starts or post.batch_size[1]
        tail = post[:, -last:]
        with record_function("dream"):
            dream, rewards = self._dream(tail, draws)
        with record_function("behaviors"), self._autocast():
            more, metrics = self._train(dream, rewards, batch[:, -last:], tail, update)
        metrics |= {k: v.mean() for k, v in entropies.items()}
        return losses | more, post, metrics

    def _dream(self, post: TensorDict, draws: Draws) -> tuple[TensorDict, dict[str, Tensor]]:
        """Dreams (N, H + 1) from posterior states (B, T), and their rewards by objective."""
        start = post.exclude("logits").detach().reshape(-1)
        differentiable = any(b.through_dynamics for b in self.behaviors.values())
        # With the score-function gradient nothing of the dream needs a graph; through the dynamics only actions carry one.
        scope: AbstractContextManager[None] = frozen(*self.nets.values()) if differentiable else torch.no_grad()
        # A region of its own: an autocast keeps its casts of the weights, and those made without a graph must not reach what follows.
        with scope, self._autocast():
            dream = self.imagine(start, draws)
            return dream, self.rewards(dream)

    def _train(
        self, dream: TensorDict, rewards: dict[str, Tensor], batch: TensorDict, post: TensorDict, update: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and metrics of every behavior, on dreams (N, H + 1) and on the replayed steps (B, T) they started from."""
        losses, metrics = dict[str, Tensor](), dict[str, Tensor]()
        behaviors: dict[str, Behavior] = dict(self.behaviors.items())  # type: ignore[arg-type]
        for name, behavior in behaviors.items():
            seen, own = behavior.excerpt(dream, {k: rewards[k] for k in behavior.terms()})
            terms, returns, extra = actor_critic(behavior, self.view(seen), seen["action"], own, seen["cont"], update)
            if self.scales().get("repval"):
                seen = self.view(post) if self.cfg.repval_grad else self.view(post).detach()
                terms |= replay_value(behavior, seen, batch, returns, update)
            prefix = "" if name == "main" else f"{name}/"
            losses, metrics = losses | {prefix + k: v for k, v in terms.items()}, metrics | {prefix + k: v for k, v in extra.items()}
        return losses, metrics

    @final
    def accelerate(self, precision: Literal["float32", "bfloat16"] = "float32", compile: Compile = "none") -> None:
        """Choose the type of matrix products in `update`, and whether its steps and norms are compiled, or on a GPU all of it recorded too.

        Weights, norms, distributions and losses stay float32. Collecting acts in the type of the scan where it is compiled, else in
        float32; evaluation (`eval()`) always plays as a loaded agent does, plainly and in float32.
        """
        self.precision = torch.bfloat16 if precision == "bfloat16" else torch.float32
        fast = compile != "none"
        self._compiled = CompiledPolicy(self, self._decide_fast) if fast else None
        self._recorded = RecordedUpdate(self, self._update) if compile == "graph" else None
        for module in self.modules():
            if isinstance(module, RSSM):
                module.accelerate(self.precision, fast, fused=compile == "graph")
            elif isinstance(module, (RMSNorm, Head, Policy, Encoder, Decoder)):
                module.compiled = fast

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.updates.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16)

    @final
    def total(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scaled sum of the means of all losses, and the unscaled means by name. Refuses names without a scale and the reverse."""
        scales = self.scales()
        if losses.keys() != scales.keys():
            missing, idle = sorted(losses.keys() - scales.keys()), sorted(scales.keys() - losses.keys())
            raise ValueError(f"losses without a scale: {missing}; scales without a loss: {idle}")
        means = {k: v.mean() for k, v in losses.items()}
        return sum((scales[k] * v for k, v in means.items()), torch.zeros(())), {f"loss/{k}": v.detach() for k, v in means.items()}

    @final
    @record_function("update")
    def update(self, batch: TensorDict, optimizer: Optimizer, draws: Draws, context: int = 1) -> Updated:
        """One training step on a replayed batch (B, K + T): metrics, and fresh latents (B, T) with `priority` for the replay.

        A pure function of weights, batch and draws.
        """
        if self._recorded is not None and self.training:
            return self._recorded(batch, optimizer, draws, context)
        return self._update(batch, optimizer, draws, context, Mover(self, optimizer))

    def _update(self, batch: TensorDict, optimizer: Optimizer, draws: Draws, context: int, move: Mover) -> Updated:
        state, data, previous = self.replay_context(batch, context)
        kept = [b.clone() for b in self.buffers()]  # normalisers move while the losses are computed
        losses, post, metrics = self.losses(data, state, previous, draws)
        loss, means = self.total(losses)
        optimizer.zero_grad(set_to_none=True)
        with record_function("backward"):
            loss.backward()
        norms = gradient_norms(self.parameters())
        metrics["grad_norm/actor"] = total_norm(norms[p] for b in self.behaviors.values() for p in b.policy.parameters() if p in norms)  # type: ignore[union-attr]
        metrics |= means | {"opt/loss": loss.detach()}
        good = finite((loss, data["reward"].sum(), *norms.values()))
        metrics["opt/skipped"] = (~good).float()
        metrics |= move(norms, good, kept)
        # What a prioritised replay goes by: how badly the world model explains each step.
        scales = self.scales()
        priority = sum((scales[k] * v.detach() for k, v in losses.items() if v.shape == data.batch_size), torch.zeros(()))
        return metrics, post.select("deter", "stoch").detach().set("priority", priority)

    @final
    def optimizer(self) -> Optimizer:
        """A fresh optimizer over all trainable parameters, grouped as the configuration says."""
        actor = {p for b in self.behaviors.values() for p in b.policy.parameters()}  # type: ignore[union-attr]
        critic = {p for o in self.objectives() for p in o.critic.parameters()}
        trainable = [p for p in self.parameters() if p.requires_grad]
        model = [p for p in trainable if p not in actor and p not in critic]
        groups = make_groups(self.cfg.optim, model, [p for p in trainable if p in actor], [p for p in trainable if p in critic])
        return Optimizer(groups, self.cfg.optim)

    @final
    def initial(self, n: int) -> TensorDict:
        """The acting state of n environments before their first step."""
        device = self.updates.device
        action = TensorDict({k: torch.zeros(n, s.width, device=device) for k, s in sorted(self.spec.action.items())}, [n], device=device)
        return self.rssm.initial(n, device).set("action", action)

    @final
    @torch.no_grad()
    def policy(self, data: TensorDict, state: TensorDict, draws: Draws) -> tuple[TensorDict, TensorDict]:
        """Act in n environments: steps (n,) with `obs` and `is_first`, acting state (n,) -> actions in environment form, new state.

        Uses the same `encode`, `observe`, `context` and `act` as training.
        """
        decide = self._compiled if self._compiled is not None and self.training else self._decide
        return decide(data, state, draws)

    def _decide_fast(self, data: TensorDict, state: TensorDict, draws: Draws) -> tuple[TensorDict, TensorDict]:
        with self._autocast() if self.rssm.scan_dtype is self.precision else nullcontext():
            return self._decide(data, state, draws)

    def _decide(self, data: TensorDict, state: TensorDict, draws: Draws) -> tuple[TensorDict, TensorDict]:
        first = data["is_first"]
        tokens, previous = self.encode(data), codec.joined(self.spec.action, state["action"])
        post = self.rssm.observe(tokens[:, None], previous[:, None], first[:, None], state.select("deter", "stoch"), draws)
        state = state.copy().update({k: post[k][:, 0] for k in ("deter", "stoch")})
        fresh = self.context(data, state, draws)
        for key in fresh.keys(True, True):
            kept, chosen = state.get(key, None), fresh[key]
            state.set(key, chosen if kept is None else torch.where(first.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, kept))
        state = self.act(state, draws)
        return codec.env_actions(self.spec.action, state["action"]), state
