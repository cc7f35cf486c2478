"""Plain-language warnings about a training run that is going wrong, from its metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .agent import Config
from .specs import Spec

PATIENCE = 5
"""Logged rows in a row that must show a symptom before it is reported."""


@dataclass(frozen=True)
class Symptom:
    """Something wrong: which metrics show it, how, what it means and what to try."""

    name: str
    needs: tuple[str, ...]
    seen: Callable[[Mapping[str, float]], bool]
    advice: str


def symptoms(cfg: Config, spec: Spec) -> list[Symptom]:
    """What is watched, for one agent on one task."""
    return [*_model_symptoms(cfg), *_actor_symptoms(cfg, spec)]


def _model_symptoms(cfg: Config) -> list[Symptom]:
    free = cfg.rssm.free_nats * 1.001
    return [
        Symptom(
            "posterior collapse",
            ("loss/dyn", "loss/rep"),
            lambda m: cfg.rssm.free_nats > 0 and m["loss/dyn"] <= free and m["loss/rep"] <= free,
            f"the KL has stayed at its floor of {cfg.rssm.free_nats} nats: the latent carries next to nothing of the observation. Lower "
            "agent.rssm.free_nats or agent.scales.rep, or check that observations change at all",
        ),
        Symptom(
            "reward head fails on extremes",
            ("reward_extreme_error",),
            lambda m: m["reward_extreme_error"] > 0.5,
            "the largest reward of a batch is predicted with more than half its size as error: rare rewards are not learned yet. If this "
            "lasts, look at agent.reward.dist (symexp_twohot takes any scale) and at how often such rewards are in the replay",
        ),
        Symptom(
            "world model overfits",
            ("overfit",),
            lambda m: m["overfit"] > 0.5,
            "steps never trained on are reconstructed more than half worse than replayed ones: lower the train ratio, take a smaller "
            "model, collect more, or use agent.augment=shift for images",
        ),
        Symptom(
            "not a number",
            ("opt/loss",),
            lambda m: not math.isfinite(m["opt/loss"]),
            "the loss is not finite: look for huge observations and rewards (polydream check-env), then lower the learning rate",
        ),
    ]


def _actor_symptoms(cfg: Config, spec: Spec) -> list[Symptom]:
    floor = cfg.critic.retnorm.limit * 1.001
    highest = sum(s.elements * math.log(s.classes) if s.classes else math.inf for s in spec.action.values())
    return [
        Symptom(
            "actor gets no gradient",
            ("grad_norm/actor",),
            lambda m: m["grad_norm/actor"] == 0.0 and not m.get("asleep"),  # a policy may be told to wait
            "nothing reaches the policy: with agent.actor.grad=dynamics the dream must lead to rewards, with reinforce the entropy "
            "weight and all advantages are 0",
        ),
        Symptom(
            "policy stays random",
            ("adv_mag",),
            lambda m: 0 < highest < math.inf and _entropy(m) > 0.999 * highest and m["adv_mag"] > 0.05 and not m.get("asleep"),
            "the policy is as random as at the start although advantages are not small: raise the actor's learning rate or lower "
            "agent.actor.entropy",
        ),
        Symptom(
            "advantages vanish",
            ("adv_mag", "ret_scale"),
            lambda m: m["adv_mag"] < 1e-4 and m["ret_scale"] <= floor,
            "advantages are below 1e-4 and returns within the normaliser's floor: there is no reward to learn from yet, or it is tiny. "
            "Look at the episodes' returns, explore more, or lower agent.critic.retnorm.limit",
        ),
    ]


def _entropy(metrics: Mapping[str, float]) -> float:
    return sum(v for k, v in metrics.items() if k.startswith("ent/"))


class Health:
    """Watches rows of metrics; `check` returns warnings the first time a symptom has lasted."""

    def __init__(self, cfg: Config, spec: Spec) -> None:
        self.symptoms = symptoms(cfg, spec)
        self.streak: dict[str, int] = defaultdict(int)
        self.reported: set[str] = set()

    def check(self, metrics: Mapping[str, float], patience: int = PATIENCE) -> list[str]:
        """New warnings, each a sentence. Only symptoms whose metrics are in the row are looked at.

        patience: rows in a row that must show a symptom. One that went away is reported again when it returns.
        """
        warnings = []
        for symptom in self.symptoms:
            if not all(key in metrics for key in symptom.needs):
                continue
            self.streak[symptom.name] = self.streak[symptom.name] + 1 if symptom.seen(metrics) else 0
            if not self.streak[symptom.name]:
                self.reported.discard(symptom.name)
            elif self.streak[symptom.name] >= patience and symptom.name not in self.reported:
                self.reported.add(symptom.name)
                warnings.append(f"{symptom.name}: {symptom.advice}")
        return warnings
