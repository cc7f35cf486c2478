"""Numbers that are none: an update that would spread them is skipped, and many in a row end the run while its checkpoint is good."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from . import durable


class NonFinite(RuntimeError):
    """Updates were not finite too often in a row. The message is one line and names the first tensor that was not."""


def first_bad(groups: Mapping[str, Mapping[str, Tensor]]) -> str:
    """The first tensor that is not finite, as `group name`; empty where all are."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"{group} {name}"
    return ""


class Guard:
    """Counts skipped updates. patience: how many in a row are lived through; one more raises NonFinite, after a bundle for the
    diagnosis was written to `directory`. say: told of the first of each row of bad updates.
    """

    def __init__(self, patience: int, directory: Path, say: Callable[[str], None] = print) -> None:
        self.patience, self.directory, self.say = patience, directory, say
        self.skipped = self.streak = 0  # updates
        self.acted = self.acting = 0  # decisions

    def watch(self, agent: nn.Module, batch: TensorDict, metrics: Mapping[str, Tensor], update: int) -> bool:
        """Whether this update was good. metrics: as `Dreamer.update` returns them, with `opt/skipped` 1 for a skipped update."""
        skipped = metrics.get("opt/skipped")
        if skipped is None or not bool(skipped):
            self.streak = 0
            return True
        self.skipped += 1
        self.streak += 1
        if self.streak == 1 or self.streak > self.patience:
            where = self._diagnose(agent, batch, metrics)
        if self.streak == 1:
            self.say(f"update {update} was skipped: {where} is not finite")
        if self.streak > self.patience:
            bundle = self._write(agent, batch, metrics, update, where)
            raise NonFinite(f"{self.streak} updates in a row were not finite, first of all {where}; the diagnosis is in {bundle}")
        return False

    def sound(self, actions: Mapping[str, np.ndarray], state: TensorDict) -> bool:
        """Whether the actions and the latents behind them are finite. Raises NonFinite after `patience` times in a row."""
        if all(np.isfinite(a).all() for a in actions.values()) and bool(torch.isfinite(state["deter"]).all()):
            self.acting = 0
            return True
        self.acted += 1
        self.acting += 1
        if self.acting == 1:
            self.say("the policy's state or action is not finite: it begins anew, with random actions")
        if self.acting > self.patience:
            raise NonFinite(f"{self.acting} decisions in a row were not finite: {first_bad({'state': flat(state)}) or 'the action'}")
        return False

    def _diagnose(self, agent: nn.Module, batch: TensorDict, metrics: Mapping[str, Tensor]) -> str:
        """Where it begins, looked for in the order in which numbers flow."""
        gradients = {n: p.grad for n, p in agent.named_parameters() if p.grad is not None}
        losses = {k: v for k, v in metrics.items() if k.startswith("loss/") or k == "opt/loss"}
        groups = {"weight": agent.state_dict(), "batch": flat(batch), "loss": losses, "gradient of": gradients}
        return first_bad(groups) or "a gradient's norm"

    def _write(self, agent: nn.Module, batch: TensorDict, metrics: Mapping[str, Tensor], update: int, where: str) -> Path:
        """The batch, the weights and what the losses were, for whoever looks for the reason."""
        from safetensors.torch import save

        folder = self.directory / f"nonfinite-{update:09d}"
        folder.mkdir(exist_ok=True)
        for name, tensors in {"batch": flat(batch), "agent": agent.state_dict()}.items():
            durable.write(folder / f"{name}.safetensors", save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
        told: dict[str, Any] = {"update": update, "first": where, "metrics": {k: str(float(v)) for k, v in metrics.items()}}
        durable.write(folder / "metrics.json", json.dumps(told, indent=1).encode())
        return folder


def flat(batch: TensorDict) -> dict[str, Tensor]:
    """Arrays of a batch by joined key."""
    return {k if isinstance(k, str) else "/".join(k): v for k, v in batch.items(True, True)}
