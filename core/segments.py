"""Storage of steps: the rows of every stream in segments of one shared pool, in memory or in scratch files on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from .columns import Column, Key


class Segments:
    """Rows addressed by (stream, step), steps counted from 0 along each stream.

    A segment is `size` consecutive steps of one stream. Streams of any speed share one pool: a slot is lent when a stream
    reaches a new segment and comes back when the last step of the segment is evicted, so the rows in use never exceed the
    steps held by more than two segments per stream. Space is taken slot by slot, so a large capacity costs nothing until
    it is filled.

    directory: folder of the scratch files (removed from the folder at once, gone when the process ends), None for memory.
    """

    def __init__(self, columns: Mapping[Key, Column], *, streams: int, capacity: int, directory: Path | None) -> None:
        self.columns = dict(columns)
        self.size = segment_size(streams, capacity)
        self.slots = capacity // self.size + 2 * streams
        self.first = np.zeros(streams, np.int64)  # oldest step held, by stream
        self.end = np.zeros(streams, np.int64)  # one past the newest step, by stream
        self.owner = np.full((self.slots, 2), -1, np.int64)  # (stream, segment) of a slot
        self.used = 0  # slots whose space was ever taken
        self._free: list[int] = []
        # A stream holds fewer than `slots` segments in a row, so a segment's number modulo `slots` is unique within it.
        self._table = np.full((streams, self.slots), -1, np.int32)
        self._directory = directory
        self._files: dict[Key, int] = {}
        self._handles: list[object] = []
        self.arrays = {key: self._open(key, column) for key, column in self.columns.items()}
        self.changed = {group: np.zeros(self.slots, bool) for group in {c.group for c in self.columns.values()}}

    def _open(self, key: Key, column: Column) -> np.ndarray:
        shape = (self.slots * self.size, *column.shape)
        if self._directory is None or column.nbytes == 0:
            return np.zeros(shape, column.dtype)
        self._directory.mkdir(parents=True, exist_ok=True)
        handle = TemporaryFile(dir=self._directory)  # noqa: SIM115 (open as long as the replay, which grows it)
        handle.truncate(self.slots * self.size * column.nbytes)
        self._handles.append(handle)
        self._files[key] = handle.fileno()
        return np.asarray(np.memmap(handle, column.dtype, "r+", shape=shape))

    @property
    def row_bytes(self) -> int:
        """Bytes of one step over all columns."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def nbytes(self) -> int:
        """Bytes of every slot whose space was taken so far."""
        return self.used * self.size * self.row_bytes

    def reserve(self, stream: int) -> None:
        """Make room for the stream's next step. Raises OSError when the disk is full, changing nothing."""
        segment = int(self.end[stream]) // self.size
        if self._table[stream, segment % self.slots] < 0:
            self._lend(stream, segment)

    def push(self, stream: int) -> int:
        """Count the stream's next step, for which there must be room; returns its row."""
        step = int(self.end[stream])
        segment, offset = divmod(step, self.size)
        slot = int(self._table[stream, segment % self.slots])
        self.end[stream] = step + 1
        for changed in self.changed.values():
            changed[slot] = True
        return slot * self.size + offset

    def _lend(self, stream: int, segment: int) -> None:
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.owner[slot] = stream, segment
        self._table[stream, segment % self.slots] = slot

    def _grow(self) -> None:
        """Take the space of one more slot. Reserved on disk here, because a full disk met through the map kills the process."""
        for key, file in self._files.items():
            n = self.size * self.columns[key].nbytes
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file, self.used * n, n)
                else:
                    os.pwrite(file, bytes(n), self.used * n)
            except OSError as error:
                hint = "lower replay.capacity, free space, or set replay.memmap to false"
                raise OSError(error.errno, f"the replay cannot grow in {self._directory}: {error.strerror}; {hint}") from error
        self._free.append(self.used)
        self.used += 1

    def drop_oldest(self, stream: int) -> int:
        """Evict the oldest step of a stream; returns the row it had."""
        step = int(self.first[stream])
        segment, offset = divmod(step, self.size)
        row = int(self._table[stream, segment % self.slots]) * self.size + offset
        self.first[stream] = step + 1
        if offset == self.size - 1:
            self._release(stream, segment)
        return row

    def _release(self, stream: int, segment: int) -> None:
        slot = int(self._table[stream, segment % self.slots])
        self._table[stream, segment % self.slots] = -1
        self.owner[slot] = -1
        for changed in self.changed.values():
            changed[slot] = False
        self._free.append(slot)

    def truncate(self, end: np.ndarray) -> None:
        """Forget the steps from `end` (streams,) on. Every entry must lie between `first` and the present end."""
        for stream, (old, new) in enumerate(zip(self.end.tolist(), end.tolist(), strict=True)):
            for segment in range(-(-new // self.size), -(-old // self.size)):
                self._release(stream, segment)
        self.end[:] = end

    def extend(self, end: np.ndarray) -> None:
        """Make room up to the steps `end` (streams,), for rows that are then filled from a file."""
        for stream in range(len(end)):
            for segment in range(int(self.end[stream]) // self.size, -(-int(end[stream]) // self.size)):
                if self._table[stream, segment % self.slots] < 0:
                    self._lend(stream, segment)
        self.end[:] = end

    def clear(self, first: np.ndarray) -> None:
        """Forget everything; streams go on at the steps `first` (streams,)."""
        for stream, segment in self.owner[self.owner[:, 0] >= 0].tolist():
            self._release(stream, segment)
        self.first[:] = first
        self.end[:] = first

    def held(self, stream: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Which of the named steps are still here, bool of the common shape.

        Raises ValueError for a stream that does not exist and for a step that was never added.
        """
        if stream.size and (stream.min() < 0 or stream.max() >= len(self.end)):
            raise ValueError(f"stepid names stream {int(stream.max())}; the replay has streams 0 to {len(self.end) - 1}")
        if (step >= self.end[stream]).any():
            raise ValueError("stepid names a step that was never added to this replay")
        return step >= self.first[stream]

    def rows(self, stream: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Rows of steps that are held; the shapes broadcast. A row is valid until the step is evicted."""
        segment, offset = np.divmod(step, self.size)
        return self._table[stream, segment % self.slots].astype(np.int64) * self.size + offset

    def steps(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stream, step) of rows in lent slots: the inverse of `rows`."""
        slot, offset = np.divmod(rows, self.size)
        owner = self.owner[slot]
        return owner[..., 0], owner[..., 1] * self.size + offset

    def mark(self, rows: np.ndarray, group: str) -> None:
        """Note that columns of a group changed in these rows."""
        self.changed[group][rows // self.size] = True


def segment_size(streams: int, capacity: int) -> int:
    """Steps per segment: a power of two from 16 to 1024, small enough that half-used segments stay a few percent of the whole."""
    return 1 << int(np.clip(capacity // (64 * streams), 16, 1024)).bit_length() - 1
