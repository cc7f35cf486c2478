"""Plain data of an object as one JSON text and numbered arrays, and back: how environments' attributes are saved.

What comes out holds only strings and numeric arrays, so that a checkpoint needs no pickle. What goes in may be numbers,
strings, bytes, None, NumPy arrays and scalars, random generators, and lists, tuples, dicts, sets and deques of these.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np


class NotPlain(NotImplementedError):
    """Something to be saved is no plain data, so the object that holds it cannot be restored."""


def freeze(values: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} as {"json": text, "array0": array, ...}. Arrays are copied.

    Raises NotPlain, naming the value, for objects, and for mutable data reachable under two names: restoring would
    silently cut the tie between them.
    """
    writer = _Writer()
    encoded = {name: writer.encode(value, name) for name, value in values.items()}
    writer.check_shared()
    return {"json": json.dumps(encoded), **{f"array{i}": array.copy() for i, array in enumerate(writer.arrays)}}


def thaw(state: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `freeze` saved. Arrays and generators of `present` with the same name and kind are overwritten in place."""
    encoded = json.loads(state["json"])
    return {name: _settle(_decode(value, state), present.get(name)) for name, value in encoded.items()}


def rng_text(generator: np.random.Generator) -> str:
    """The state of a generator as text."""
    return json.dumps(_plain_state(generator.bit_generator.state))


def set_rng(generator: np.random.Generator, text: str) -> None:
    """Put back what `rng_text` returned. Raises ValueError for another kind of bit generator."""
    generator.bit_generator.state = _array_state(json.loads(text))


def _plain_state(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain_state(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return {"uint": value.tolist(), "dtype": value.dtype.str}
    return value.item() if isinstance(value, np.generic) else value


def _array_state(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {"uint", "dtype"}:
        return np.array(value["uint"], value["dtype"])
    return {k: _array_state(v) for k, v in value.items()}


class _Writer:
    """Turns values into JSON with tags, keeping arrays aside and noticing what is reached twice."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.names: list[str] = []
        self.seen: dict[int, str] = {}

    def encode(self, value: Any, name: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)) and type(value) in (bool, int, float, str):
            return value
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, np.generic):
            return {"scalar": self._keep(np.asarray(value), name)}
        if id(value) in self.seen and type(value) is not tuple:
            raise NotPlain(f"{name} and {self.seen[id(value)]} are the same object")
        self.seen[id(value)] = name
        if isinstance(value, np.ndarray):
            return {"array": self._keep(value, name)}
        return self._encode_container(value, name)

    def _encode_container(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind in (list, tuple, set):
            return {kind.__name__: [self.encode(v, f"{name}[{i}]") for i, v in enumerate(value)]}
        if kind is dict:
            return {"dict": [[self.encode(k, f"{name} key"), self.encode(v, f"{name}[{k!r}]")] for k, v in value.items()]}
        if kind is deque:
            return {"deque": [self.encode(v, f"{name}[{i}]") for i, v in enumerate(value)], "maxlen": value.maxlen}
        if kind is np.random.Generator:
            return {"generator": _plain_state(value.bit_generator.state)}
        if kind is np.random.RandomState:
            return {"random_state": _plain_state(value.get_state(legacy=False))}
        if kind is random.Random:
            version, words, gauss = value.getstate()
            return {"random": [version, list(words), gauss]}
        raise NotPlain(f"{name} is a {kind.__module__}.{kind.__qualname__}, not plain data")

    def _keep(self, array: np.ndarray, name: str) -> Any:
        if array.dtype.kind in "SU":
            return {
                "text": [t.hex() if isinstance(t, bytes) else t for t in array.ravel().tolist()],
                "dtype": array.dtype.str,
                "shape": array.shape,
            }
        if array.dtype.kind not in "biufc":
            raise NotPlain(f"{name} is an array of dtype {array.dtype}")
        self.arrays.append(array)
        self.names.append(name)
        return len(self.arrays) - 1

    def check_shared(self) -> None:
        for i, one in enumerate(self.arrays):
            for j in range(i):
                if one.size and np.may_share_memory(one, self.arrays[j]):
                    raise NotPlain(f"{self.names[i]} and {self.names[j]} are views of the same memory")


def _decode(value: Any, state: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, body), *rest) = value.items()
    if kind == "bytes":
        return bytes.fromhex(body)
    if kind in ("scalar", "array"):
        array = _text_array(body) if isinstance(body, dict) else np.array(state[f"array{body}"])
        return array[()] if kind == "scalar" else array
    if kind == "dict":
        return {_decode(k, state): _decode(v, state) for k, v in body}
    if kind in ("list", "tuple", "set", "deque"):
        items = [_decode(v, state) for v in body]
        return deque(items, maxlen=rest[0][1]) if kind == "deque" else {"list": list, "tuple": tuple, "set": set}[kind](items)
    return _decode_random(kind, body)


def _text_array(body: dict[str, Any]) -> np.ndarray:
    kind = np.dtype(body["dtype"]).kind
    items = [bytes.fromhex(t) for t in body["text"]] if kind == "S" else body["text"]
    return np.array(items, body["dtype"]).reshape(body["shape"])


def _decode_random(kind: str, body: Any) -> Any:
    if kind == "generator":
        bits = getattr(np.random, body["bit_generator"])()
        bits.state = _array_state(body)
        return np.random.Generator(bits)
    if kind == "random_state":
        old = np.random.RandomState()
        old.set_state(_array_state(body))
        return old
    version, words, gauss = body
    plain = random.Random()
    plain.setstate((version, tuple(words), gauss))
    return plain


def _settle(value: Any, present: Any) -> Any:
    """Write into the object that is already there where others may hold it too, else use the new one."""
    if isinstance(value, np.ndarray) and isinstance(present, np.ndarray) and present.flags.writeable:
        if (value.shape, value.dtype) == (present.shape, present.dtype):
            present[...] = value
            return present
    elif isinstance(value, np.random.Generator) and isinstance(present, np.random.Generator):
        if type(present.bit_generator) is type(value.bit_generator):
            present.bit_generator.state = value.bit_generator.state
            return present
    elif isinstance(value, np.random.RandomState) and isinstance(present, np.random.RandomState):
        present.set_state(value.get_state(legacy=False))
        return present
    return value
