"""The replay's contents on disk: one pair of safetensors files per segment, and an index that names the valid ones."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .columns import Key
from .segments import Segments

FORMAT = 1
INDEX = "index.json"
OURS = re.compile(r"(\d+-\d+-(data|latent)|order)-\d+\.safetensors(\.partial)?")
"""Names of the files that a save may remove."""


class Archive:
    """Saves segments to a folder, and later only those that changed since.

    A file is never written twice: a changed segment gets a new file, the index is replaced in one step, and only then are
    files dropped that it no longer names. A save that is interrupted leaves the previous one whole. Arrays that training
    writes again (latents) lie in files of their own, so that observations are written once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index = self._read_index() if (path / INDEX).is_file() else None
        self._ours = False  # whether the files named by the index hold what the segments hold, changes aside

    def _read_index(self) -> dict[str, Any]:
        index: dict[str, Any] = json.loads((self.path / INDEX).read_text())
        if index.get("format") != FORMAT:
            raise ValueError(f"{self.path / INDEX} has format {index.get('format')!r}; this version reads {FORMAT}")
        return index

    def save(self, segments: Segments, order: np.ndarray, state: dict[str, Any]) -> None:
        """Write what changed. order: stream of every held step, oldest first; state: JSON of the replay's counters."""
        self.path.mkdir(parents=True, exist_ok=True)
        version = self.index["version"] + 1 if self.index else 0
        before = self.index["files"] if self.index and self._ours else {}
        files: dict[str, str] = {}
        for slot in np.flatnonzero(segments.owner[:, 0] >= 0).tolist():
            for group in segments.changed:
                name = "-".join(map(str, [*segments.owner[slot].tolist(), group]))
                if name in before and not segments.changed[group][slot]:
                    files[name] = before[name]
                elif arrays := rows_of(segments, slot, group):
                    files[name] = f"{name}-{version}.safetensors"
                    self._write(files[name], arrays)
        files["order"] = f"order-{version}.safetensors"
        self._write(files["order"], {"stream": order})
        columns = {"/".join(k): [c.dtype.name, *c.shape] for k, c in segments.columns.items()}
        index = {"format": FORMAT, "version": version, "size": segments.size, "columns": columns, "state": state, "files": files}
        self._replace(INDEX, json.dumps(index).encode())
        self.index, self._ours = index, True
        for changed in segments.changed.values():
            changed[:] = False
        kept = set(files.values())
        for path in self.path.iterdir():
            if OURS.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        partial = self.path / f"{name}.partial"
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, partial)
        os.replace(partial, self.path / name)

    def _replace(self, name: str, content: bytes) -> None:
        partial = self.path / f"{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, self.path / name)

    def load(self, segments: Segments, capacity: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Fill the segments with what was saved, the newest `capacity` steps of it: (order, state) as given to `save`.

        Segments of another size are fitted, so the capacity may differ from that of the saved replay. Raises
        FileNotFoundError when nothing was saved here, ValueError when the saved arrays are not those of the replay.
        """
        if self.index is None:
            raise FileNotFoundError(f"no saved replay in {self.path}")
        state = self.index["state"]
        self._check(segments, len(state["end"]))
        order = self._read("order")["stream"]
        first, end = np.array(state["first"], np.int64), np.array(state["end"], np.int64)
        if (np.bincount(order, minlength=len(first)) != end - first).any():
            raise ValueError(f"the saved replay in {self.path} is damaged: its order of steps does not lead to its counters")
        surplus = max(len(order) - capacity, 0)
        segments.clear(first + np.bincount(order[:surplus], minlength=len(first)))
        segments.extend(end)
        for name in self.index["files"]:
            if name != "order":
                self._restore(segments, name)
        self._ours = segments.size == self.index["size"]
        return order[surplus:], state

    def _check(self, segments: Segments, streams: int) -> None:
        assert self.index is not None
        if streams != len(segments.end):
            raise ValueError(f"the saved replay has {streams} streams (environments), this one {len(segments.end)}: keep env.count")
        ours = {"/".join(k): [c.dtype.name, *c.shape] for k, c in segments.columns.items()}
        for key in sorted(ours.keys() | self.index["columns"].keys()):
            saved, wanted = self.index["columns"].get(key), ours.get(key)
            if saved != wanted:
                raise ValueError(f"{key!r} in the saved replay is {describe(saved)}, in this one {describe(wanted)}")

    def _restore(self, segments: Segments, name: str) -> None:
        assert self.index is not None
        stream, segment, group = name.split("-")
        start = int(segment) * self.index["size"]
        s = int(stream)
        low = max(start, int(segments.first[s]))
        high = min(start + self.index["size"], int(segments.end[s]))
        if low >= high:
            return
        arrays = self._read(name)
        rows = segments.rows(np.array(s), np.arange(low, high))
        for key, column in segments.columns.items():
            if column.group == group:
                saved = arrays["/".join(key)]
                if len(saved) < high - start:
                    raise ValueError(f"{self.index['files'][name]} is damaged: {len(saved)} steps where {high - start} were saved")
                segments.arrays[key][rows] = saved[low - start : high - start]

    def _read(self, name: str) -> dict[str, np.ndarray]:
        assert self.index is not None
        file = self.index["files"][name]
        if not OURS.fullmatch(file):
            raise ValueError(f"{self.path / INDEX} names {file!r}, which is no file of a replay")
        try:
            return load_file(self.path / file)
        except SafetensorError as error:
            raise ValueError(f"{self.path / file} is damaged: {error}") from error


def rows_of(segments: Segments, slot: int, group: str) -> dict[str, np.ndarray]:
    """Arrays of one group of columns in one slot, by joined key, as far as its stream has come."""
    stream, segment = segments.owner[slot].tolist()
    count = min(int(segments.end[stream]) - segment * segments.size, segments.size)
    keys: list[Key] = [k for k, c in segments.columns.items() if c.group == group] if count > 0 else []
    begin = slot * segments.size
    return {"/".join(k): segments.arrays[k][begin : begin + count] for k in keys}


def describe(column: list[Any] | None) -> str:
    """A column of the index in words."""
    return f"{column[0]} of shape {tuple(column[1:])}" if column else "missing"
