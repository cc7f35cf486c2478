"""A language-conditioned agent in a file of its own: what it is told to do is context, a frozen bag of words; and a corridor to try it in.

python -m polydream train --variant examples.instructed:Instructed --task examples.instructed:Told
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core import agent
from polydream.core.promises import Promises
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from polydream.tasks.base import Common
from polydream.tasks.toys import Chain

BUCKETS, LENGTH = 256, 8
INSTRUCTION = Space(shape=(LENGTH,), dtype="int32", classes=BUCKETS + 1)
"""What a task offers as observation `instruction`: word numbers, `BUCKETS` where the sentence is over."""


def words(sentence: str) -> np.ndarray:
    """A sentence as an instruction: every word by its hash, in order; words beyond the eighth are cut."""
    found = [crc32(word.encode()) % BUCKETS for word in sentence.lower().split()][:LENGTH]
    return np.array(found + [BUCKETS] * (LENGTH - len(found)), np.int32)


@dataclass(frozen=True, kw_only=True)
class InstructedConfig(agent.Config):
    """The base agent's knobs and one more."""

    loudness: float = 0.3  # deviation of each word's vector; 0 leaves the base agent


class Instructed(agent.Dreamer):
    """Reward heads, actor and critic hear the task's instruction; the model of the world does not.

    Every word has a fixed random vector as wide as a latent, and the sum of a sentence's vectors is added to what is seen of
    the state. No layer changes its width, so this combines with variants that read latents of states with a context only: not with
    heads on bare latents (`ensemble`, `goal.reward=cosine`).
    """

    Config = InstructedConfig
    cfg: InstructedConfig
    promises = Promises(requires=("instruction",), neutral={"loudness": 0.0})

    def spaces(self, spec: Spec) -> Spec:
        """The world does not depend on what is said."""
        spec = super().spaces(spec)
        return replace(spec, hidden=spec.hidden | {"instruction"})

    def build(self) -> dict[str, torch.nn.Module]:
        nets = super().build()
        noise = torch.Generator().manual_seed(0)
        table = torch.randn(BUCKETS + 1, nets["rssm"].latent_width, generator=noise)  # type: ignore[arg-type]
        table[BUCKETS] = 0
        return nets | {"words": torch.nn.Embedding.from_pretrained(table)}

    def said(self, data: TensorDict) -> Tensor:
        """Instructions of steps (*) -> bags of words (*, D + S * C)."""
        return self.cfg.loudness * self.nets["words"](data["obs", "instruction"].long()).sum(-2)

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        """The sentence of an episode, or of the replayed step at which a dream begins, stays to its end."""
        return super().context(data, state, draws).set("said", self.said(data))

    def latent(self, state: TensorDict) -> Tensor:
        return super().latent(state) + state["said"]

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """What was received is explained by what was said at that step."""
        return super().model_losses(batch, post.copy().set("said", self.said(batch)))


VERBS, SIDES = ("go", "walk", "run"), ("left", "right")


class Told(Chain):
    """A corridor entered in the middle, and a sentence that names one of its ends: "walk to the left end".

    Arriving there gives 1, at the other end -1, and ends the episode. held: only sentences that training never says (one verb
    for each side is left out there); else all but those. A policy that does not listen scores 0 at best, one that does 1.
    """

    memory = ("_place", "_side", "_verb")

    def __init__(self, seed: int = 0, held: bool = False) -> None:
        self._held, self._side, self._verb = held, 0, 0
        super().__init__("told", Common(seed=seed), length=7)
        self.spec = replace(self.spec, obs={**self.spec.obs, "instruction": INSTRUCTION})

    def _start(self) -> None:
        self._place = self._length // 2
        self._side = int(self._rng.integers(2))
        others = [verb for verb in range(len(VERBS)) if verb != self._side]
        self._verb = self._side if self._held else others[int(self._rng.integers(len(others)))]

    def _move(self, action: np.ndarray) -> tuple[float, bool]:
        self._place += 1 if action else -1
        done = self._place in (0, self._length - 1)
        return done * (1.0 if (self._place > 0) == bool(self._side) else -1.0), done

    def _vectors(self) -> dict[str, np.ndarray]:
        return super()._vectors() | {"instruction": words(f"{VERBS[self._verb]} to the {SIDES[self._side]} end")}


class Unheard(Told):
    """`Told` with only the sentences that training never says."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, held=True)
