"""polydream as a contender: the base agent at a named size, with its own options for precision and compilation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from polydream import __version__
from polydream.core.config import ConfigError
from polydream.core.launch import make_agent, prepare_processor
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.run import RunConfig
from polydream.core.specs import Space, Spec

from .case import CONTEXT, Case, arrays, observations
from .contender import Mode, Unsupported, contend


def case(given: argparse.Namespace, **changes: Any) -> Case:
    """The case that command line options describe, with the widths of the size they name. Raises ConfigError for an unknown size."""
    cfg = resolve({"size": given.size}).agent
    rssm = cfg.rssm
    named: dict[str, Any] = {"size": given.size, "obs": given.obs, "device": given.device, "threads": given.threads}
    named |= {"deter": rssm.deter, "hidden": rssm.hidden, "stoch": rssm.stoch, "classes": rssm.classes}
    return Case(**(named | {"units": cfg.reward.units, "depth": cfg.encoder.depth} | changes))


def configuration(case: Case, mode: Mode) -> RunConfig:
    """The run whose agent is measured. Raises Unsupported for a mode that it refuses."""
    shape = {"agent.dream": case.horizon, "batch": case.batch, "length": case.length}
    try:
        return resolve({"size": case.size}, shape | {"precision": mode.dtype, "compile": mode.compile})
    except ConfigError as why:
        raise Unsupported(str(why)) from None


def spec(case: Case) -> Spec:
    """One observation and one continuous action."""
    image = Space(shape=(case.image, case.image, 3), dtype="uint8")
    seen = image if case.obs == "image" else Space(shape=(case.vector,))
    return Spec(obs={case.key: seen}, action={"action": Space(shape=(case.actions,))})


class Ours:
    """One agent and the batch it is trained on."""

    def __init__(self, case: Case, mode: Mode) -> None:
        cfg = configuration(case, mode)
        self.case, self.device = case, torch.device(case.device)
        # As the training loop begins.
        prepare_processor(case.threads)
        self.agent = make_agent(cfg, spec(case)).to(self.device)
        self.agent.accelerate(cfg.precision, cfg.compile)
        self.optimizer = self.agent.optimizer()
        self.batch = batch(case).to(self.device)
        self.updates = self.decisions = 0
        count = sum(p.numel() for p in self.agent.parameters() if p.requires_grad)
        self.facts = {"version": __version__, "parameters": count, "note": ""}

    def update(self) -> None:
        """`Dreamer.update` with fresh draws."""
        self.agent.update(self.batch, self.optimizer, Draws(0, self.updates, self.device), CONTEXT)
        self.updates += 1

    def acting(self, environments: int) -> Callable[[], None]:
        """What the training loop does between the environments' arrays and its own: policy, actions and stored latents."""
        seen = observations(self.case, environments)
        flags = {key: torch.zeros(environments, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
        state = self.agent.initial(environments)

        def step() -> None:
            nonlocal state
            nested = {"obs": {self.case.key: torch.as_tensor(seen, device=self.device)}, **flags}
            data = TensorDict(nested, [environments], device=self.device)
            self.decisions += 1
            chosen, state = self.agent.policy(data, state, Draws(1, self.decisions, self.device))
            for value in (chosen["action"], state["deter"], state["stoch"].argmax(-1)):
                value.cpu().numpy()

        return step


def batch(case: Case) -> TensorDict:
    """The case's batch (B, K + T) as the replay gives it."""
    data = {k: torch.as_tensor(v) for k, v in arrays(case).items()}
    lead = [case.batch, CONTEXT + case.length]
    latent = {"deter": data.pop("deter"), "stoch": data.pop("stoch")}
    nested = {"obs": {case.key: data.pop("obs")}, "action": {"action": data.pop("action")}, "latent": latent}
    return TensorDict(nested | data, lead)


if __name__ == "__main__":
    contend(Ours)
