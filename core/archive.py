"""The replay's contents on disk: one pair of safetensors files per segment, and indices that name the files of each save."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from . import durable
from .columns import Key
from .segments import Segments

FORMAT = 2
OURS = re.compile(r"(\d{1,9}-\d{1,15}-(data|latent)|order)-\d{1,9}\.safetensors")
INDEX = re.compile(r"index-(\d{1,9})\.json")
"""Names of the files that a save may remove."""


class ArchiveError(ValueError):
    """A saved replay is damaged. The message is one line and names the file."""


class Archive:
    """Saves segments to a folder, and later only those that changed since.

    Every save is a version: an index that names files with their sizes and hashes, in which files of earlier versions occur
    again where nothing changed. No file is written twice, and a version can be loaded until `prune` takes it away, so each
    checkpoint finds exactly the replay that it was saved with. Arrays that training writes again (latents) lie in files of
    their own, so that observations are written once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: dict[str, Any] | None = None  # of the version that the segments came from or went to
        self._fresh: list[Path] = []

    def versions(self) -> list[int]:
        """Numbers of the saves that are there, oldest first."""
        found = [INDEX.fullmatch(p.name) for p in self.path.iterdir()] if self.path.is_dir() else []
        return sorted(int(match[1]) for match in found if match)

    def save(self, segments: Segments, order: np.ndarray, state: dict[str, Any], *, wait: bool = True) -> list[Any]:
        """Write what changed as the next version and return [number, fingerprint of its index].

        order: stream of every held step, oldest first; state: JSON of the replay's counters. wait: until all of it is on the
        disk; without, `sync` must be called before anything refers to this version.
        """
        before = len(self._fresh)
        try:
            return self._save(segments, order, state, wait)
        except BaseException:
            del self._fresh[before:]  # nothing names what a save has written that did not come to its end
            raise

    def _save(self, segments: Segments, order: np.ndarray, state: dict[str, Any], wait: bool) -> list[Any]:
        durable.make_folder(self.path)
        version = max(self.versions(), default=-1) + 1
        before = self.index["files"] if self.index and self.index["size"] == segments.size else {}
        files: dict[str, list[Any]] = {}
        for slot in np.flatnonzero(segments.owner[:, 0] >= 0).tolist():
            for group in segments.changed:
                name = "-".join(map(str, [*segments.owner[slot].tolist(), group]))
                if name in before and not segments.changed[group][slot]:
                    files[name] = before[name]
                elif arrays := rows_of(segments, slot, group):
                    files[name] = self._write(f"{name}-{version}.safetensors", arrays)
        files["order"] = self._write(f"order-{version}.safetensors", {"stream": order})
        columns = {"/".join(k): [c.dtype.name, *c.shape] for k, c in segments.columns.items()}
        index = {"format": FORMAT, "version": version, "size": segments.size, "columns": columns, "state": state, "files": files}
        path = self.path / f"index-{version}.json"
        self._fresh.append(path)
        mark = durable.write(path, json.dumps(index).encode(), wait=False)
        self.index = index
        for changed in segments.changed.values():
            changed[:] = False
        if wait:
            self.sync()
        return [version, mark]

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> list[Any]:
        self._fresh.append(self.path / name)
        content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        return [name, durable.write(self.path / name, content, wait=False)]

    def sync(self) -> None:
        """Wait until everything saved so far is on the disk. May be called from another thread than `save`, not at the same time."""
        some = bool(self._fresh)
        while self._fresh:  # one that fails stays: later versions may name it, too
            durable.sync(self._fresh[-1])
            self._fresh.pop()
        if some:
            durable.sync(self.path)

    def prune(self, keep: Collection[int]) -> None:
        """Remove versions other than these, and files that no version left names. Foreign files stay."""
        for version in set(self.versions()) - set(keep):
            (self.path / f"index-{version}.json").unlink()
        named = {file for version in self.versions() for file in self._names(version)}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if OURS.fullmatch(path.name) and path.name not in named:
                path.unlink()
        self._fresh = [path for path in self._fresh if path.exists()]

    def _names(self, version: int) -> set[str]:
        if self.index is not None and self.index["version"] == version:
            return {file for file, _ in self.index["files"].values()}
        try:
            return {file for file, _ in self._read_index(version, None)["files"].values()}
        except ArchiveError:
            return set()  # a damaged index can never be loaded, so what only it names is of no use

    def _read_index(self, version: int, mark: Any) -> dict[str, Any]:
        path = self.path / f"index-{version}.json"
        if mark is not None and (reason := durable.unfit(path, mark)):
            raise ArchiveError(f"the saved replay in {self.path} is damaged: {reason}")
        try:
            index: dict[str, Any] = json.loads(path.read_text())
            if index["format"] != FORMAT:
                raise ArchiveError(f"{path} has format {index['format']!r}; this version reads {FORMAT}")
            if any(not OURS.fullmatch(file) for file, _ in index["files"].values()):
                raise ArchiveError(f"{path} names a file that is none of a replay's")
            counts = [(first, end) for first, end in zip(index["state"]["first"], index["state"]["end"], strict=True)]
            if index["version"] != version or not index["columns"].keys() or index["size"] < 1 or any(f < 0 for f, _ in counts):
                raise ArchiveError(f"{path} counts what cannot be")
            return index
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(f"the saved replay in {self.path} is damaged: {path.name} is missing or no index") from error

    def load(self, segments: Segments, capacity: int, mark: list[Any] | None = None, salvage: Callable[[str], None] | None = None) -> Any:
        """Fill the segments with a saved version, the newest `capacity` steps of it: (order, state) as given to `save`.

        mark: what `save` returned; None takes the newest version. salvage: called with one line per damaged segment, which is
        then forgotten with all older steps of its stream; without it damage is an error.
        Segments of another size are fitted, so the capacity may differ from that of the saved replay. Raises
        FileNotFoundError when nothing was saved here, ArchiveError where files are damaged, ValueError when the saved arrays are
        not those of the replay.
        """
        versions = self.versions()
        if mark is None and not versions:
            raise FileNotFoundError(f"no saved replay in {self.path}")
        self.index = None
        index = self._read_index(*mark) if mark is not None else self._read_index(versions[-1], None)
        state = index["state"]
        self._check(index, segments, len(state["end"]))
        order = self._read(index, "order")["stream"]
        first, end = np.array(state["first"], np.int64), np.array(state["end"], np.int64)
        if order.ndim != 1 or (order >= len(first)).any() or (np.bincount(order, minlength=len(first)) != end - first).any():
            raise ArchiveError(f"the saved replay in {self.path} is damaged: its order of steps does not lead to its counters")
        order = order[max(len(order) - capacity, 0) :]
        segments.clear(end - np.bincount(order, minlength=len(first)))
        segments.extend(end)
        for changed in segments.changed.values():
            changed[:] = False
        for name in names_of(first, end, index["size"], segments.changed):
            try:
                self._restore(index, segments, name)
            except ArchiveError as error:
                if salvage is None:
                    segments.clear(first)
                    raise
                order = self._forget(index, segments, name, order, salvage, str(error))
        self.index = index
        return order, state

    def _forget(
        self, index: dict[str, Any], segments: Segments, name: str, order: np.ndarray, say: Callable[[str], None], reason: str
    ) -> np.ndarray:
        """Drop a segment that cannot be read, and what its stream holds before it. Returns what is left of the order."""
        stream, segment = map(int, name.split("-")[:2])
        until = min((segment + 1) * index["size"], int(segments.end[stream]))
        lost = max(until - int(segments.first[stream]), 0)
        for _ in range(lost):
            segments.drop_oldest(stream)
        if lost:
            say(f"{reason}; {lost} steps of environment {stream} up to there are forgotten")
        return np.delete(order, np.flatnonzero(order == stream)[:lost])

    def _check(self, index: dict[str, Any], segments: Segments, streams: int) -> None:
        if streams != len(segments.end):
            raise ValueError(f"the saved replay has {streams} streams (environments), this one {len(segments.end)}: keep env.count")
        ours = {"/".join(k): [c.dtype.name, *c.shape] for k, c in segments.columns.items()}
        for key in sorted(ours.keys() | index["columns"].keys()):
            saved, wanted = index["columns"].get(key), ours.get(key)
            if saved != wanted:
                raise ValueError(f"{key!r} in the saved replay is {describe(saved)}, in this one {describe(wanted)}")

    def _restore(self, index: dict[str, Any], segments: Segments, name: str) -> None:
        stream, segment, group = name.split("-")
        start = int(segment) * index["size"]
        s = int(stream)
        low = max(start, int(segments.first[s]))
        high = min(start + index["size"], int(segments.end[s]))
        if low >= high:
            return
        arrays = self._read(index, name)
        rows = segments.rows(np.array(s), np.arange(low, high))
        for key, column in segments.columns.items():
            if column.group == group:
                saved = arrays.get("/".join(key))
                if saved is None or saved.dtype != column.dtype or saved.shape[1:] != column.shape or len(saved) < high - start:
                    raise ArchiveError(f"{self.path / index['files'][name][0]} is damaged: {'/'.join(key)!r} is not what was saved")
                segments.arrays[key][rows] = saved[low - start : high - start]

    def _read(self, index: dict[str, Any], name: str) -> dict[str, np.ndarray]:
        try:
            file, mark = index["files"][name]
        except KeyError:
            raise ArchiveError(f"the saved replay in {self.path} is damaged: its index names no {name}") from None
        if reason := durable.unfit(self.path / file, mark):
            raise ArchiveError(f"the saved replay in {self.path} is damaged: {reason}")
        try:
            arrays: dict[str, np.ndarray] = load((self.path / file).read_bytes())
            return arrays
        except (SafetensorError, ValueError, KeyError) as error:
            raise ArchiveError(f"{self.path / file} is damaged: {error}") from error


def names_of(first: np.ndarray, end: np.ndarray, size: int, groups: Collection[str]) -> Iterator[str]:
    """Names of the files that hold the steps from `first` to `end` (streams,) in segments of one size."""
    for stream, (low, high) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        for segment in range(low // size, -(-high // size) if high > low else 0):
            yield from (f"{stream}-{segment}-{group}" for group in groups)


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
