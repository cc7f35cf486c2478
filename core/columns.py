"""What the replay keeps of a step, array by array, and how arrays that come in are checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .specs import FLAGS, Space, Spec

Key = tuple[str, ...]
"""Where a column sits in a batch: ("obs", key), ("action", key), ("latent", key), ("reward",), ..."""


@dataclass(frozen=True)
class Column:
    """One array of every step.

    shape: of one step. dtype: as stored. classes: bound of class indices, None for numbers.
    group: "data" is written once; "latent" is written again while training, and saved apart for that reason.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    classes: int | None = None
    group: str = "data"

    @property
    def nbytes(self) -> int:
        """Bytes of one step."""
        return int(np.prod(self.shape, dtype=int)) * self.dtype.itemsize


PRIORITY: Key = ("priority",)
RESERVED = ("obs", "action", "latent", "reward", "stepid", *FLAGS, *PRIORITY)


def columns(spec: Spec, latent: Mapping[str, Space], half: bool) -> dict[Key, Column]:
    """The arrays kept of every step, by their place in a batch.

    Latent numbers are kept as float16 if `half`, else float32, class indices as uint8. Raises ValueError for extras whose
    name is taken and latents of more than 256 classes.
    """
    found: dict[Key, Column] = {("obs", k): Column(s.shape, np.dtype(s.dtype), s.classes) for k, s in spec.obs.items()}
    found |= {("action", k): Column(s.shape, np.dtype(s.dtype), s.classes) for k, s in spec.action.items()}
    found["reward",] = Column((), np.dtype(np.float32))
    for key in FLAGS:
        found[key,] = Column((), np.dtype(bool))
    for key, space in spec.extras.items():
        if key in RESERVED or "/" in key:
            raise ValueError(f"a replay extra may not be called {key!r}: / and {', '.join(RESERVED)} are taken")
        found[(key,)] = Column(space.shape, np.dtype(space.dtype), space.classes)
    for key, space in latent.items():
        if space.classes and space.classes > 256:
            raise ValueError(f"latent {key!r} has {space.classes} classes; the replay keeps class indices in one byte, so at most 256")
        number = np.float16 if half else np.float32
        found[("latent", key)] = Column(space.shape, np.dtype(np.uint8 if space.classes else number), space.classes, "latent")
    return found


def as_numpy(value: Any) -> np.ndarray:
    """An array of a tensor on any device, or of anything numpy understands. bfloat16, unknown to numpy, becomes float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def fit(value: Any, column: Column, lead: tuple[int, ...], name: str) -> np.ndarray:
    """Check an array against its column and bring it to the stored form: (*lead, *column.shape)."""
    shape = (*lead, *column.shape)
    if column.group == "latent" and column.classes and np.shape(value) == (*shape, column.classes):
        value = value.argmax(-1)
    array = as_numpy(value)
    if array.shape != shape:
        raise ValueError(f"{name!r} has shape {array.shape}; {shape} wanted")
    if array.dtype == column.dtype:
        return array
    kinds = {"f": "fiub", "b": "b"}.get(column.dtype.kind, "iub")
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name!r} has dtype {array.dtype}; {column.dtype} wanted")
    if column.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        limits = np.iinfo(column.dtype)
        if low < limits.min or high > limits.max:
            raise ValueError(f"{name!r} reaches from {low} to {high}; {column.dtype} holds {limits.min} to {limits.max}")
    return array.astype(column.dtype)


def nearest(name: str, options: Sequence[str]) -> str:
    """What to say about a name that is not among the options."""
    near = get_close_matches(name, options, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(options))}"


def refuse_others(given: set[str], wanted: set[str], what: str) -> None:
    """Raise KeyError for the first key that is unknown or missing."""
    if given == wanted:
        return
    for key in sorted(given - wanted):
        raise KeyError(f"the replay keeps no {what} key {key!r}; {nearest(key, sorted(wanted))}")
    raise KeyError(f"the replay needs the {what} key {sorted(wanted - given)[0]!r}")
