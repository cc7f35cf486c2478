"""Gymnasium's spaces flattened to ours: every leaf becomes one key, with its conversion in both directions.

| Gymnasium | here |
|---|---|
| Box of floats | float32 of the same shape |
| Box uint8 0 ... 255, (H, W, C) or (C, H, W) with C = 1, 3, 4, or (H, W) | image (H, W, C), (H, W, 1) for the last |
| Box of other integers, equal bounds of at most 16 values | classes, counted from `low` |
| Box of other integers in an observation | float32 |
| Box of other integers in an action | as MultiDiscrete, up to 1024 values per element |
| Box of bools, MultiBinary | 2 classes |
| Discrete(n, start) | n classes, counted from `start` |
| MultiDiscrete, equal counts | classes, counted from `start` |
| MultiDiscrete, unequal counts | one scalar key per element, `<key>/0`, `<key>/1` ... |
| Dict, Tuple | keys joined by "/", elements of tuples by their number |
| Text, Sequence, Graph, OneOf, others | TypeError naming the key |

A lone unnamed space is called `action` for actions, and `image` or `vector` for observations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from ..core.specs import Space
from .base import bounds, scale_action

FEW = 16
MANY = 1024
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Leaf:
    """One flat key. `path` leads to its value inside the nested one; `read` converts an observation, `write` an action.

    Keys that share a path are the elements of one MultiDiscrete, in order.
    """

    path: tuple[str | int, ...]
    space: Space
    read: Callable[[Any], np.ndarray]
    write: Callable[[np.ndarray], Any]


def flatten(space: spaces.Space[Any], *, action: bool = False) -> dict[str, Leaf]:
    """Leaves by key. Raises TypeError naming the key of a space that arrays cannot hold, ValueError for clashing or no keys."""
    found: list[tuple[tuple[str | int, ...], str, Leaf]] = []
    for path, leaf in _walk(space, ()):
        key = "/".join(map(str, path))
        found += [(path, (key + name).strip("/"), made) for name, made in _convert(leaf, path, key, action)]
    lone = "action" if action else "image" if found and found[0][2].space.image else "vector"
    named = [(key if path else f"{lone}/{key}".strip("/"), leaf) for path, key, leaf in found]
    leaves = dict(named)
    if len(leaves) < len(named):
        raise ValueError(f"two spaces flatten to one key: {', '.join(sorted(key for key, _ in named))}")
    if not leaves:
        raise ValueError(f"nothing to {'do' if action else 'see'}: the {'action' if action else 'observation'} space is empty")
    return leaves


def read(leaves: Mapping[str, Leaf], value: Any) -> dict[str, np.ndarray]:
    """Flat arrays of a nested observation."""
    return {key: leaf.read(_at(value, leaf.path)) for key, leaf in leaves.items()}


def write(space: spaces.Space[Any], leaves: Mapping[str, Leaf], flat: Mapping[str, np.ndarray]) -> Any:
    """The nested action that the flat one stands for, in the environment's own bounds, offsets and dtypes."""
    by_path: dict[tuple[str | int, ...], list[Any]] = {}
    for key, leaf in leaves.items():
        by_path.setdefault(leaf.path, []).append(leaf.write(flat[key]))
    return _nest(space, (), by_path)


def _walk(space: spaces.Space[Any], path: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return [leaf for name, inner in space.spaces.items() for leaf in _walk(inner, (*path, name))]
    if isinstance(space, spaces.Tuple):
        return [leaf for number, inner in enumerate(space.spaces) for leaf in _walk(inner, (*path, number))]
    return [(path, space)]


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def _nest(space: spaces.Space[Any], path: tuple[str | int, ...], by_path: dict[tuple[str | int, ...], list[Any]]) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _nest(inner, (*path, name), by_path) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(inner, (*path, number), by_path) for number, inner in enumerate(space.spaces))
    parts = by_path[path]
    if len(parts) == 1 and not _uneven(space):
        return parts[0]
    return np.array(parts, space.dtype).reshape(space.shape or ())


def _convert(space: spaces.Space[Any], path: tuple[str | int, ...], key: str, action: bool) -> list[tuple[str, Leaf]]:
    """Leaves of one unnested space, each with the end of its key."""
    if isinstance(space, spaces.Discrete):
        return [("", _classes(path, (), int(space.n), np.asarray(space.start), lambda a: int(a)))]
    if isinstance(space, spaces.MultiBinary):
        return [("", _classes(path, space.shape, 2, np.asarray(0), lambda a: a.astype(space.dtype)))]
    if isinstance(space, spaces.MultiDiscrete):
        return _many(path, space, space.nvec, space.start)
    if isinstance(space, spaces.Box):
        kind = np.dtype(space.dtype).kind
        if kind == "f":
            return [("", _floats(path, space))]
        if kind == "u" and not action and (image := _image(path, space)):
            return [("", image)]
        if kind in "iub":
            return _integers(path, space, key, action)
    where = f"{'action' if action else 'observation'} {key!r}" if key else f"the {'action' if action else 'observation'} space"
    advice = "" if action else ", or see pictures instead (obs='pixels')"
    raise TypeError(f"{where} is {space}, which has no fixed-size array: wrap the environment so that it is a Box or discrete{advice}")


def _classes(path: tuple[str | int, ...], shape: tuple[int, ...], count: int, start: np.ndarray, cast: Callable[[np.ndarray], Any]) -> Leaf:
    return Leaf(
        path,
        Space(shape=shape, dtype="int32", classes=count, low=bounds(start) or None),
        lambda value: (np.asarray(value, np.int64) - start).astype(np.int32).reshape(shape),
        lambda chosen: cast(np.asarray(chosen, np.int64) + start),
    )


def _many(path: tuple[str | int, ...], space: spaces.Space[Any], counts: np.ndarray, start: np.ndarray) -> list[tuple[str, Leaf]]:
    if not _uneven(space):
        return [("", _classes(path, counts.shape, int(counts.flat[0]), start, lambda a: a.astype(space.dtype)))]
    return [(f"/{i}", _element(path, i, int(count), int(start.flat[i]))) for i, count in enumerate(counts.flat)]


def _element(path: tuple[str | int, ...], i: int, count: int, start: int) -> Leaf:
    return Leaf(
        path,
        Space(dtype="int32", classes=count, low=float(start) or None),
        lambda value: np.asarray(np.asarray(value).flat[i] - start, np.int32),
        lambda chosen: int(chosen) + start,
    )


def _counts(space: spaces.Space[Any]) -> np.ndarray:
    """Number of values of every element of a MultiDiscrete or of an integer Box."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec
    assert isinstance(space, spaces.Box)
    return space.high.astype(np.float64) - space.low.astype(np.float64) + 1


def _uneven(space: spaces.Space[Any]) -> bool:
    """True where the elements have unequal counts and so need keys of their own."""
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind not in "iub":
        return False
    return isinstance(space, (spaces.MultiDiscrete, spaces.Box)) and len(np.unique(_counts(space))) > 1


def _floats(path: tuple[str | int, ...], space: spaces.Box) -> Leaf:
    return Leaf(
        path,
        Space(shape=space.shape, low=bounds(space.low), high=bounds(space.high)),
        lambda value: np.array(value, np.float32).reshape(space.shape),
        lambda chosen: scale_action(chosen, space.low, space.high).astype(space.dtype),
    )


def _image(path: tuple[str | int, ...], space: spaces.Box) -> Leaf | None:
    if space.dtype != np.uint8 or space.low.any() or (space.high != 255).any():
        return None
    shape = space.shape
    if len(shape) == 2:
        return _pixels(path, (*shape, 1), lambda value: np.array(value, np.uint8)[..., None])
    if len(shape) == 3 and shape[2] in CHANNELS:
        return _pixels(path, (shape[0], shape[1], shape[2]), lambda value: np.array(value, np.uint8))
    if len(shape) == 3 and shape[0] in CHANNELS:
        return _pixels(path, (shape[1], shape[2], shape[0]), lambda value: np.array(np.moveaxis(value, 0, 2), np.uint8, order="C"))
    return None


def _pixels(path: tuple[str | int, ...], shape: tuple[int, int, int], convert: Callable[[Any], np.ndarray]) -> Leaf:
    return Leaf(path, Space(shape=shape, dtype="uint8"), convert, lambda chosen: chosen)


def _integers(path: tuple[str | int, ...], space: spaces.Box, key: str, action: bool) -> list[tuple[str, Leaf]]:
    counts, flat = _counts(space), Space(shape=space.shape, low=bounds(space.low), high=bounds(space.high))
    low = space.low.astype(np.int64)
    if not action and (_uneven(space) or counts.max(initial=1) > FEW):
        return [("", Leaf(path, flat, lambda value: np.array(value, np.float32).reshape(space.shape), lambda chosen: chosen))]
    if counts.max(initial=1) > MANY:
        raise TypeError(f"action {key or 'action'!r} is {space}: integers of more than {MANY} values; wrap it as floats or Discrete")
    return _many(path, space, counts, low)
