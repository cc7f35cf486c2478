"""E world models side by side, each with a latent space of its own.

States that all members follow are wide: deter (*, E * D), stoch (*, E * S, C). A dream is one member's, whose number the state
carries as `member`, and narrow: deter (*, D), stoch (*, S, C). The first member has the names, and so the start values, of a single
agent; the others are kept under `others`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core.codec import CodecConfig, Decoder, Encoder
from ..core.outputs import Output
from ..core.rng import Draws
from ..core.rssm import RSSM, RSSMConfig
from ..core.specs import Space
from .crowd import Crowd
from .mixtures import averaged, together


def apart(x: Tensor, members: int, axis: int = -1) -> Tensor:
    """What members hold side by side on an axis, (*, E * K, ...) -> (E, *, K, ...)."""
    return x.unflatten(axis, (members, -1)).movedim(axis - 1, 0)


def beside(x: Tensor, axis: int = -1) -> Tensor:
    """The reverse: (E, *, K, ...) -> (*, E * K, ...)."""
    return x.movedim(0, axis - 1).flatten(axis - 1, axis)


def own(state: TensorDict, members: int, deter: int) -> TensorDict:
    """States (*) with the latents of their own `member` only. Narrow ones are that already."""
    if state["deter"].shape[-1] == deter:
        return state
    member = state["member"]
    mine = {}
    for key, axis in (("deter", -1), ("stoch", -2)):
        each = apart(state[key], members, axis)
        place = member.reshape(1, *member.shape, *[1] * (each.ndim - 1 - member.ndim)).expand(1, *each.shape[1:])
        mine[key] = each.gather(0, place)[0]
    return state.copy().update(mine)


class WorldsEncoder(Encoder):
    """Observations (*) -> tokens (*, E * width): each member's beside the others'."""

    def __init__(self, obs: Mapping[str, Space], cfg: CodecConfig, members: int) -> None:
        super().__init__(obs, cfg)
        self.others = nn.ModuleList(Encoder(obs, cfg) for _ in range(members - 1))
        self.crowd = Crowd([self, *self.others])

    def forward(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        keys = [*self.vectors, *self.images]
        values = [obs[k] for k in keys]
        return beside(self.crowd(lambda net, *x: net(dict(zip(keys, x, strict=True))), *values, shared=range(len(keys))))


class WorldsDecoder(Decoder):
    """Wide latents -> one `Together` per observation key."""

    def __init__(self, obs: Mapping[str, Space], deter: int, stoch: int, cfg: CodecConfig, members: int) -> None:
        super().__init__(obs, deter, stoch, cfg)
        self.others = nn.ModuleList(Decoder(obs, deter, stoch, cfg) for _ in range(members - 1))
        self.crowd = Crowd([self, *self.others])

    def forward(self, deter: Tensor, stoch: Tensor, kept: Tensor | None = None) -> dict[str, Output]:
        members = len(self.crowd.nets)
        found = self.crowd(lambda net, *x: net(*x), apart(deter, members), apart(stoch, members, -2))
        return {key: together(each, kept) for key, each in found.items()}


class WorldsRSSM(RSSM):
    """E world models. Tokens (*, E * width), after them (*, E) whether a member learns from the step, where that is not always so."""

    def __init__(self, cell: str, action: int, tokens: int, cfg: RSSMConfig, members: int) -> None:
        super().__init__(cell, action, tokens, cfg)
        self.others = nn.ModuleList(RSSM(cell, action, tokens, cfg) for _ in range(members - 1))
        self.crowd, self.tokens, self.members = Crowd([self, *self.others]), tokens, members

    def initial(self, n: int, device: torch.device | str | None = None) -> TensorDict:
        """The state before anything was seen: zeros, (n,), wide."""
        deter = torch.zeros(n, self.members * self.cfg.deter, device=device)
        return TensorDict(
            {"deter": deter, "stoch": deter.new_zeros(n, self.members * self.cfg.stoch, self.cfg.classes)}, [n], device=device
        )

    def observe(self, tokens: Tensor, action: Tensor, is_first: Tensor, state: TensorDict, draws: Draws) -> TensorDict:
        """Posterior latents of all members, wide, each from noise of its own; `kept` (B, T, E) where the tokens say it."""

        def see(net: Any, tokens: Tensor, action: Tensor, is_first: Tensor, deter: Tensor, stoch: Tensor, noise: Tensor | None) -> Any:
            post = net.observe(tokens, action, is_first, TensorDict({"deter": deter, "stoch": stoch}, deter.shape[:1]), Given(noise))
            return post["deter"], post["stoch"], post["logits"]

        width, lead = self.members * self.tokens, tokens.shape[:2]
        noise = self._noise(draws, "posterior", *lead, self.cfg.stoch)
        before = (apart(state["deter"], self.members), apart(state["stoch"], self.members, -2))
        found = self.crowd(see, apart(tokens[..., :width], self.members), action, is_first, *before, noise, shared=(1, 2))
        latents = {"deter": beside(found[0]), "stoch": beside(found[1], -2), "logits": beside(found[2], -2)}
        if tokens.shape[-1] > width:
            latents["kept"] = tokens[..., width:] > 0.5
        return TensorDict(latents, lead, device=tokens.device)

    def step(self, state: TensorDict, action: Tensor, draws: Draws) -> TensorDict:
        """One dreamed step: of all members under one action where states are wide, else of each row's own."""
        deter, stoch = state["deter"], state["stoch"]
        if deter.shape[-1] != self.cfg.deter:
            noise = self._noise(draws, "prior", len(deter), self.cfg.stoch)
            given = (apart(deter, self.members), apart(stoch, self.members, -2), action, noise)
            found = self.crowd(_dreamt, *given, shared=(2,))
            after = {"deter": beside(found[0]), "stoch": beside(found[1], -2)}
        else:
            noise = draws.uniform("prior", len(deter), self.cfg.stoch)
            after = dict(zip(("deter", "stoch"), self.crowd.by_row(_dreamt, state["member"], deter, stoch, action, noise), strict=True))
        return TensorDict(after, state.batch_size, device=deter.device)

    def kl(self, post: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of each member by itself: means over members, those that do not learn from a step counting 0 in the losses."""

        def divergence(net: Any, deter: Tensor, logits: Tensor) -> Any:
            losses, entropies = net.kl(TensorDict({"deter": deter, "logits": logits}, deter.shape[:2]))
            return losses["dyn"], losses["rep"], entropies["dyn_ent"], entropies["rep_ent"]

        dyn, rep, *entropies = self.crowd(divergence, apart(post["deter"], self.members), apart(post["logits"], self.members, -2))
        kept = post.get("kept", None)
        losses = {"dyn": averaged(dyn, kept), "rep": averaged(rep, kept)}
        return losses, {name: x.mean(0) for name, x in zip(("dyn_ent", "rep_ent"), entropies, strict=True)}

    def _noise(self, draws: Draws, stream: str, *shape: int) -> Tensor | None:
        """A stream for each member, the first one's that of a single agent: (E, *shape), or None where it is replaced by its mode."""
        first = draws.uniform(stream, *shape)
        drawn = [first, *(draws.uniform(f"{stream}/{k}", *shape) for k in range(1, self.members))]
        return None if first is None else torch.stack(drawn)  # type: ignore[arg-type]


class Given(Draws):
    """Noise that was drawn before, for whoever asks next."""

    def __init__(self, noise: Tensor | None) -> None:
        super().__init__(0)
        self.noise = noise

    def uniform(self, stream: str, *shape: int) -> Tensor | None:
        """The noise itself."""
        return self.noise


def _dreamt(net: Any, deter: Tensor, stoch: Tensor, action: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    after = net.step(TensorDict({"deter": deter, "stoch": stoch}, deter.shape[:1]), action, Given(noise))
    return after["deter"], after["stoch"]
