"""Recorded reference values: finding cases, reading them, comparing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polydream.core.rng import Draws
from polydream.core.specs import Space

ROOT = Path(os.environ.get("POLYDREAM_GOLDEN", Path(__file__).parent.parent / "data" / "golden"))


@dataclass
class Case:
    """One recorded case: its arrays by name (those of several files merged, for whole agents) and its settings."""

    topic: str
    name: str
    files: list[Path]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Case:
        for path in self.files:
            with np.load(path, allow_pickle=False) as data:
                for key in data.files:
                    if key == "meta_json":
                        self.meta |= json.loads(str(data[key]))
                    else:
                        prefix = "grads/" if path.stem.endswith("__grads") else ""
                        self.arrays[prefix + key] = data[key]
        return self

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Arrays whose names begin with a prefix, without it."""
        return {k.removeprefix(prefix).removesuffix("__maynan"): self[k] for k in self.arrays if k.startswith(prefix)}


def cases() -> list[Case]:
    """All cases of the folder; the files of one agent are one case."""
    found: dict[tuple[str, str], Case] = {}
    for path in sorted(ROOT.glob("*/*.npz")):
        name = path.stem.split("__")[0]
        case = found.setdefault((path.parent.name, name), Case(path.parent.name, name, []))
        case.files.append(path)
    return list(found.values())


def near(ours: Tensor | float, theirs: Tensor | float, rtol: float, atol: float, what: str = "") -> None:
    """Equal within |ours - theirs| <= atol + rtol * |theirs|, in shape too."""
    torch.testing.assert_close(
        torch.as_tensor(ours).detach().double(),
        torch.as_tensor(theirs).double(),
        rtol=rtol,
        atol=atol,
        msg=lambda text: f"{what}: {text}",
    )


def near_grad(ours: Tensor | None, theirs: Tensor, share: float, what: str = "") -> None:
    """Gradients equal within a share of the largest element of the recorded tensor."""
    ours = torch.zeros_like(theirs) if ours is None else ours
    near(ours, theirs, 0.0, share * max(float(theirs.abs().max()), 1e-12), what)


def mode_draws() -> Draws:
    """The recorded agents take the most likely class, and mean + 0.5 std of normals."""
    return Draws(0, modes={"posterior": 0.0, "prior": 0.0, "action": 0.5})


def space(entry: dict[str, Any]) -> Space:
    """A recorded space: images are the uint8 ones without classes."""
    dtype = entry.get("dtype") or ("int32" if entry["discrete"] else "float32")
    return Space(shape=tuple(entry["shape"]), dtype=dtype, classes=entry["classes"])
