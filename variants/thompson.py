"""E whole agents that learn from one replay: a member is drawn for each dream and each episode (Thompson 1933; Osband et al. 2016)."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.agent import Dreamer
from ..core.behavior import Behavior
from ..core.compose import SEAMS
from ..core.config import ConfigError
from ..core.outputs import Output
from ..core.rng import Draws
from ..core.specs import Space, Spec
from .kinds import EnsembleAgentConfig
from .members import kept
from .minds import WorldsHead, WorldsObjective, WorldsPolicy, marked
from .mixtures import together
from .priors import draw_member
from .worlds import WorldsDecoder, WorldsEncoder, WorldsRSSM, apart, beside, own

SPAN = 64
"""Steps of a stream that a member learns from together or not at all: neighbours are nearly the same data (Kunsch 1989)."""


class Thompson(Dreamer):
    """What `ensemble.kind=worlds` makes of an agent; with one member, or another kind, nothing.

    The state carries `member`, whose dream or episode it is; a player's states carry `mixture` where all members play together.
    """

    cfg: EnsembleAgentConfig

    @property
    def worlds(self) -> int:
        """E, or 0 where there is one world model."""
        e = self.cfg.ensemble
        return e.members if e.kind == "worlds" and e.members > 1 else 0

    def spaces(self, spec: Spec) -> Spec:
        """Refuses company: what another variant puts on latents would be put on unrelated ones."""
        others = [c for c in type(self).__mro__ if issubclass(c, Dreamer) and c is not Dreamer and not issubclass(c, Thompson)]
        strangers = [c.__name__ for c in others if set(SEAMS) & vars(c).keys() and c is not Thompson]
        if self.worlds and strangers:
            raise ConfigError(
                f"ensemble.kind=worlds has latents for each member, and {', '.join(strangers)} one for all: choose heads or priors"
            )
        norms = {"critic.valnorm.impl": self.cfg.critic.valnorm.impl, "actor.advnorm.impl": self.cfg.actor.advnorm.impl}
        if self.worlds and (one := [f"{k}={v}" for k, v in norms.items() if v != "none"]):
            raise ConfigError(f"ensemble.kind=worlds has a scale of returns for each member, and {one[0]} one for all: choose none")
        return super().spaces(spec)

    def build(self) -> dict[str, nn.Module]:
        """Everything E times."""
        nets, cfg, e = super().build(), self.cfg, self.worlds
        if not e:
            return nets
        tokens: int = nets["encoder"].width  # type: ignore[assignment]
        rssm = WorldsRSSM(cfg.dynamics, self.spec.action_width, tokens, cfg.rssm, e)
        decoder = WorldsDecoder(self.spec.visible, cfg.rssm.deter, cfg.rssm.stoch * cfg.rssm.classes, cfg.decoder, e)
        heads = {"reward": WorldsHead(rssm.latent_width, cfg.reward, e), "cont": WorldsHead(rssm.latent_width, cfg.cont, e)}
        return {"encoder": WorldsEncoder(self.spec.visible, cfg.encoder, e), "rssm": rssm, "decoder": decoder, **heads}

    def build_behaviors(self) -> dict[str, Behavior]:
        """A policy and a critic for each member."""
        behaviors, cfg, e, width = super().build_behaviors(), self.cfg, self.worlds, self.rssm.latent_width
        if not e:
            return behaviors
        main = behaviors["main"]
        objective = WorldsObjective(width, cfg.critic, e, main.terms()["extrinsic"].replay)
        return behaviors | {
            "main": Behavior(WorldsPolicy(width, self.spec.action, cfg.actor.policy, e), {"extrinsic": objective}, main.cfg)
        }

    def scales(self) -> dict[str, float]:
        """Losses are means over members, of which each learns as if it were alone."""
        return {k: v * max(self.worlds, 1) for k, v in super().scales().items()}

    @property
    def latent_spaces(self) -> dict[str, Space]:
        """Of all members, side by side."""
        r, e = self.cfg.rssm, max(self.worlds, 1)
        return {"deter": Space(shape=(e * r.deter,)), "stoch": Space(shape=(e * r.stoch,), dtype="uint8", classes=r.classes)}

    def prepare(self, batch: TensorDict, draws: Draws) -> TensorDict:
        """Adds `kept` (B, T, E), which members learn from which step, where that is not all."""
        batch, share = super().prepare(batch, draws), self.cfg.ensemble.bootstrap
        if not self.worlds or share >= 1 or "stepid" not in batch:
            return batch
        block = torch.stack([batch["stepid"][..., 0], batch["stepid"][..., 1] // SPAN], -1)
        return batch.copy().set("kept", kept(block, self.worlds, share))

    def encode(self, data: TensorDict) -> Tensor:
        """Tokens of all members, and `kept` after them, which the world models pass on."""
        tokens = super().encode(data)
        return torch.cat([tokens, data["kept"].float()], -1) if self.worlds and "kept" in data else tokens

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """Whose dream or episode it is: in training each sequence's, shared out evenly, and each collected episode's, drawn.

        A player, whose observations come without the flags of collected steps, follows the pilot or all.
        """
        found, e, pilot = super().context(data, state, draws), self.worlds, self.cfg.ensemble.pilot
        if not e:
            return found
        lead, device = state.batch_size, state.device
        if len(lead) == 2:
            order, first = draws.uniform("worlds", lead[0]), draws.uniform("worlds/first", 1)
            assert order is not None and first is not None
            member = (order.argsort().argsort() + (first * e).long()) % e
            return found.set("member", member.unsqueeze(-1).expand(lead).contiguous())
        if self.training and "is_last" in data:
            return found.set("member", draw_member(draws, "worlds", e, *lead))
        if pilot < 0:
            found["mixture"] = torch.ones(lead, dtype=torch.bool, device=device)
        return found.set("member", torch.full(lead, max(pilot, 0), dtype=torch.int64, device=device))

    def view(self, state: TensorDict) -> Tensor:
        """The latent of a state's own member, its number and whether it learns; in a mixture the latents of all (n, E * F + 2)."""
        e = self.worlds
        if not e:
            return super().view(state)
        if "mixture" in state:
            return marked(beside(self._each(state)), state["member"], None)
        return marked(super().view(own(state, e, self.cfg.rssm.deter)), state["member"], state.get("kept", None))

    @property
    def view_width(self) -> int:
        """Two marks on top."""
        return super().view_width + (2 if self.worlds else 0)

    def predict(self, name: str, state: TensorDict) -> Output:
        """What each state's own member says of a dream; of replayed states all say something."""
        if not self.worlds:
            return super().predict(name, state)
        head: WorldsHead = self.nets[name]  # type: ignore[assignment]
        if state["deter"].shape[-1] != self.cfg.rssm.deter:
            return together(head(self._each(state)), state.get("kept", None))
        return head(self.latent(state), state["member"].reshape(len(state), -1)[:, 0])

    def reconstruct(self, state: TensorDict, data: TensorDict) -> dict[str, Output]:
        """As all members together show replayed states."""
        if not self.worlds:
            return super().reconstruct(state, data)
        decoder: WorldsDecoder = self.decoder  # type: ignore[assignment]
        return decoder(state["deter"], state["stoch"], state.get("kept", None))

    def imagine(self, start: TensorDict, draws: Draws) -> TensorDict:
        """Dreams each in the world of their member. One that begins outside of its sample weighs nothing."""
        if not self.worlds:
            return super().imagine(start, draws)
        dream = super().imagine(own(start, self.worlds, self.cfg.rssm.deter), draws)
        if "kept" not in start:
            return dream
        learns = start["kept"].gather(-1, start["member"].unsqueeze(-1))
        return dream.set("cont", torch.cat([dream["cont"][:, :1] * learns, dream["cont"][:, 1:]], 1))

    @torch.no_grad()
    def disputes(self, post: TensorDict) -> dict[str, Tensor]:
        """Standard deviation over members of what they say `reward` and `value` of replayed states are, each (B, T)."""
        seen, critic = self._each(post), self.main.terms()["extrinsic"].critic
        value = WorldsHead.forward(critic, seen) if isinstance(critic, WorldsHead) else critic(seen)
        said = {"reward": self.nets["reward"](seen), "value": value}
        return {k: o.pred().std(0, correction=0) for k, o in said.items()}

    def _each(self, state: TensorDict) -> Tensor:
        """Latents of all members, (E, *, F)."""
        e = max(self.worlds, 1)
        return torch.cat([apart(state["deter"], e), apart(state["stoch"], e, -2).flatten(-2)], -1)
