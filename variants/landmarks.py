"""What a subgoal is a subgoal of: the whole deterministic state of the model, or only what a goal task can achieve."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from ..core import maths
from ..core.agent import Dreamer
from ..core.config import ConfigError
from ..core.nets import MLP, Linear
from ..core.specs import Spec
from .aims import Aims
from .subgoals import Subgoals, closeness

Kind = Literal["state", "achieved"]


class Landmarked(Dreamer):
    """Gives subgoals something to be compared with: `aspect` (*, D) of states. The configuration has `hierarchy`.

    achieved: what `Aims.vector` makes of an observation, as a head predicts it from the latent, because a dream has no observations. It
    takes no gradient into the latent. A subgoal then says where to be and leaves open how (HIRO, Nachum et al. 2018, has it so).
    """

    cfg: Any

    def spaces(self, spec: Spec) -> Spec:
        """Looks for what can be achieved. Raises ConfigError where subgoals are to be that and the task has no such vector."""
        spec = super().spaces(spec)
        self.placed = self.cfg.hierarchy.subgoal == "achieved"
        self.marks = Aims(spec)
        if self.placed and (not self.marks.commands or self.marks.imaged):
            why = "shows it as images" if self.marks.commands else "names no goals"
            raise ConfigError(f"hierarchy.subgoal=achieved needs what was achieved as a vector, and this task {why}: choose state")
        return spec

    def build(self) -> dict[str, nn.Module]:
        """Adds `landmarks`, which predicts achievements, where these are subgoals."""
        nets = super().build()
        if self.placed:
            mlp = MLP(nets["rssm"].latent_width, self.cfg.hierarchy.units, 1)  # type: ignore[arg-type]
            nets["landmarks"] = nn.Sequential(mlp, Linear(mlp.width, self.marks.width))
        return nets

    def scales(self) -> dict[str, float]:
        """Adds landmarks, which share nothing with the rest and so weigh 1."""
        return super().scales() | ({"landmarks": 1.0} if self.placed else {})

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Adds the squared error (B, T) of predicted achievements."""
        losses = super().model_losses(batch, post)
        if self.placed:
            truth = self.marks.vector(self.marks.achieved(batch))
            losses["landmarks"] = (self.nets["landmarks"](self.latent(post).detach()).float() - truth).square().sum(-1)
        return losses

    @property
    def subgoals(self) -> Subgoals:
        return self.nets["subgoals"]  # type: ignore[return-value]

    @property
    def aspects(self) -> int:
        """Width D of a subgoal."""
        return self.marks.width if self.placed else self.cfg.rssm.deter

    def aspect(self, state: TensorDict) -> Tensor:
        """What of states (*) can be a subgoal (*, D)."""
        return self.nets["landmarks"](self.latent(state)) if self.placed else state["deter"]

    def replayed(self, latent: TensorDict) -> Tensor:
        """`aspect` (*, D) of latents (*) as the replay keeps them, float32."""
        deter, stoch = latent["deter"].float(), latent["stoch"]
        if stoch.ndim == deter.ndim:
            stoch = nn.functional.one_hot(stoch.long(), self.cfg.rssm.classes)
        return self.aspect(TensorDict({"deter": deter, "stoch": stoch.float()}, latent.batch_size)).float()

    def nearness(self, goal: Tensor, aspect: Tensor) -> Tensor:
        """How near aspects are to subgoals, (*) of (*, D) each; 1 only where they are equal.

        Of states it is max-cosine. Achievements are coordinates, whose origin means nothing, so it is exp(-|g - a| / s), with s the
        running deviation of achievements.
        """
        if not self.placed:
            return closeness(goal, aspect)
        return torch.exp(-(goal - aspect).norm(dim=-1) / self.subgoals.spread.sqrt())

    def shown(self, goal: Tensor) -> dict[str, Tensor]:
        """Observations by key that subgoals (*, D) stand for, with the latent that the model expects there."""
        if self.placed:
            return self._places(goal)
        logits = self.rssm.prior_logits(goal)
        likeliest = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(goal.dtype)
        return {key: output.pred() for key, output in self.decoder(goal, likeliest).items()}

    def _places(self, goal: Tensor) -> dict[str, Tensor]:
        """The reverse of `Aims.vector`: what is nearest where there are classes."""
        spaces = self.marks.spaces
        found = {}
        for key, part in zip(sorted(spaces), goal.split([spaces[k].width for k in sorted(spaces)], -1), strict=True):
            space = spaces[key]
            value = part.unflatten(-1, (-1, space.classes)).argmax(-1) if space.classes else maths.symexp(part)
            found[key] = value.reshape(*goal.shape[:-1], *space.shape)
        return found
