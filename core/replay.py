"""Replay of sequences: every stream's steps in order, sampled as stretches that may cross episodes.

Rows, streams and alignment. Each environment is a stream of steps numbered from 0; `stepid` (stream, step) names a step for
ever. Row t holds obs_t, the action chosen after seeing it, the reward received on arriving, and the latents of the policy.

An item is a start from which context + length steps are held; items begin at every step and overlap, and span episodes.
Capacity counts steps over all streams, and the oldest is evicted first; where the released DreamerV3 speaks of a capacity of
c items, ours is c + streams * (context + length - 1), with the same items at every moment. Decisions: docs/replay.md.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Literal

import numpy as np
from tensordict import TensorDict
from torch import Tensor

from .archive import Archive
from .buffers import Buffers
from .columns import Column, Key, as_numpy, columns, fit, nearest, refuse_others
from .config import ConfigError
from .needs import predicted_bytes
from .rng import seed_for
from .sampler import Priority, Recency, Sampler, Uniform, extra_columns
from .segments import Segments
from .specs import Space, Spec

Array = np.ndarray | Tensor


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is kept of the past and which of it is drawn."""

    capacity: int = 1_000_000  # steps held over all streams; the oldest are evicted first
    online: bool = True  # batches first take fresh, not overlapping stretches of every stream, each once
    context: int = 1  # leading steps of a sequence that only give stored latents and a previous action (K)
    latents: Literal["half", "float32"] = "half"  # how latent numbers are stored; class indices always take one byte
    memmap: bool = True  # rows in scratch files that the system caches in free memory, instead of in memory
    sampler: Literal["uniform", "priority", "recency"] = "uniform"
    exponent: float = 0.8  # priority: steps weigh priority ** exponent
    half_life: float = 100_000.0  # recency: steps of experience after which a sequence is drawn half as often
    blend: float = 0.1  # priority and recency: share of draws that stay uniform

    def __post_init__(self) -> None:
        for name, low in {"capacity": 1, "context": 0, "exponent": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"replay.{name} must be at least {low}, got {getattr(self, name)}")
        for name, options in {"latents": ("half", "float32"), "sampler": ("uniform", "priority", "recency")}.items():
            if (value := getattr(self, name)) not in options:
                raise ConfigError(f"replay.{name}={value!r}: {nearest(str(value), options)}")
        if not 0 < self.half_life < float("inf"):
            raise ConfigError(f"replay.half_life must be above 0 and finite, got {self.half_life}: sampler=uniform forgets nothing")
        if not 0 <= self.blend <= 1:
            raise ConfigError(f"replay.blend must lie between 0 and 1, got {self.blend}")


class Replay:
    """Steps of n streams in, batches of sequences (B, K + T) out.

    spec: what a step holds. latent: the stored latents by key; numbers take float16 or float32, class indices uint8.
    batch, length: B and T. streams: how many environments feed it. directory: where scratch files go when `cfg.memmap`, the
    system's temporary folder when None. pin: batches in page-locked memory, for a CUDA device. seed: root of all draws.

    Every method may be called from any thread; they wait for one another. Raises ValueError for a capacity that could not
    hold one sequence of every stream.
    """

    def __init__(
        self,
        spec: Spec,
        latent: Mapping[str, Space],
        cfg: ReplayConfig,
        *,
        batch: int,
        length: int,
        streams: int,
        directory: Path | None = None,
        pin: bool = False,
        seed: int = 0,
    ) -> None:
        self.cfg, self.batch, self.length, self.seed = cfg, batch, cfg.context + length, seed
        for name, value in {"batch": batch, "length": length, "streams": streams}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if cfg.capacity < streams * self.length:
            need = f"{streams} streams of sequences of {self.length} steps need at least {streams * self.length}"
            raise ConfigError(f"replay.capacity={cfg.capacity} is too small: {need}")
        self.latent = dict(latent)
        place = (directory or Path(gettempdir())) if cfg.memmap else None
        self._inputs = columns(spec, latent, cfg.latents == "half")
        self.segments = Segments(self._inputs | extra_columns(cfg.sampler), streams=streams, capacity=cfg.capacity, directory=place)
        self.sampler = self._make_sampler()
        self._order = np.zeros(cfg.capacity, np.min_scalar_type(streams - 1))  # stream of every held step, a ring
        self._total = 0  # steps ever added
        self._drawn = 0  # training batches ever sampled
        self._queue: deque[tuple[int, int]] = deque()
        self._buffers = Buffers(pin)
        self._groups = {g: {k[1] for k in self._inputs if k[0] == g and len(k) == 2} for g in ("obs", "action", "latent")}
        self._names = {k[0] for k in self._inputs}
        self._archive: Archive | None = None
        # A plain lock: `begin` takes it in one thread and its copy, perhaps in another, gives it back.
        self._lock = threading.Lock()

    def _make_sampler(self) -> Sampler:
        cfg = self.cfg
        if cfg.sampler == "priority":
            return Priority(self.segments, self.length, exponent=cfg.exponent, blend=cfg.blend)
        if cfg.sampler == "recency":
            return Recency(self.segments, self.length, half_life=cfg.half_life, blend=cfg.blend)
        return Uniform(self.segments, self.length)

    def __len__(self) -> int:
        """Items: starts from which a whole sequence of K + T steps is held."""
        return int(np.maximum(self.segments.end - self.segments.first - (self.length - 1), 0).sum())

    @property
    def steps(self) -> int:
        """Steps held over all streams."""
        return int((self.segments.end - self.segments.first).sum())

    @property
    def ready(self) -> bool:
        """Whether a batch can be sampled at all. How much experience training waits for is the loop's to decide."""
        return len(self) > 0

    @property
    def nbytes(self) -> int:
        """Bytes taken so far by rows and bookkeeping, in memory or scratch files."""
        return self.segments.nbytes + self._order.nbytes

    # --------------------------------------------------------------------------------------------- steps in

    def add(self, steps: Mapping[str, Any], streams: Sequence[int] | None = None) -> None:
        """Append one step to each of n streams.

        steps: {"obs": {key: (n, ...)}, "action": {...}, "latent": {...}, "reward", "is_first", "is_last", "is_terminal": (n,)}
        and the spec's extras, as arrays or tensors. Latent classes may be indices or one-hot with a further axis. Row i
        belongs to stream `streams[i]`, to stream i by default.

        Raises KeyError for missing and unknown keys, ValueError for wrong shapes and for streams named twice or not there,
        TypeError for wrong kinds of numbers, OSError when the disk is full; nothing of the steps is kept then.
        """
        ids = range(len(self.segments.end)) if streams is None else self._check_streams(streams)
        arrays = self._arrays(steps, len(ids))
        with self._lock:
            self._evict(len(ids))
            for stream in ids:
                self.segments.reserve(stream)
            rows = np.array([self._push(stream) for stream in ids], np.int64)
            for key, array in arrays.items():
                self.segments.arrays[key][rows] = array
            self.sampler.added(rows)

    def _evict(self, coming: int) -> None:
        if (until := self._total + coming - self.cfg.capacity) > 0:
            for i in range(int(self.segments.first.sum()), until):
                self.sampler.evicted(self.segments.drop_oldest(int(self._order[i % self.cfg.capacity])))

    def _push(self, stream: int) -> int:
        segments = self.segments
        self._order[self._total % self.cfg.capacity] = stream
        self._total += 1
        row = segments.push(stream)
        start = int(segments.end[stream]) - self.length
        # As released: queued stretches begin at steps 1, 1 + L, 1 + 2L, ...; step 0 is in none of them.
        if self.cfg.online and start > 0 and (start - 1) % self.length == 0 and start >= segments.first[stream]:
            self._queue.append((stream, start))
            while self._queue[0][1] < segments.first[self._queue[0][0]]:
                self._queue.popleft()
        return row

    def _arrays(self, steps: Mapping[str, Any], n: int) -> dict[Key, np.ndarray]:
        """Checked numpy arrays of every column."""
        self._check_keys(steps)
        found = {}
        for key, column in self._inputs.items():
            value = steps[key[0]] if len(key) == 1 else steps[key[0]][key[1]]
            found[key] = fit(value, column, (n,), "/".join(key))
        return found

    def _check_keys(self, steps: Mapping[str, Any]) -> None:
        refuse_others(set(steps.keys()), self._names, "step")
        for group, names in self._groups.items():
            if names:
                refuse_others(set(steps[group].keys()), names, group)

    def _check_streams(self, streams: Sequence[int]) -> Sequence[int]:
        count = len(self.segments.end)
        if len(set(streams)) < len(streams) or not all(0 <= s < count for s in streams):
            raise ValueError(f"streams={list(streams)} must be different numbers from 0 to {count - 1}")
        return streams

    # ------------------------------------------------------------------------------------------ batches out

    def sample(self, *, heldout: bool = False) -> TensorDict:
        """A batch (B, K + T): obs, action, latent (nested), reward, flags, extras, stepid (B, K + T, 2) of (stream, step).

        Fresh stretches in the queue come first, then what the sampler draws: a pure function of the contents, the seed and
        the number of batches sampled before (kept in `state_dict`), so a resumed run repeats itself. With `heldout`, for
        reports, draws come from a stream of their own, the queue stays, and training batches are none the wiser.

        is_first is forced in row 0, and is_last is set where the next step is a first one (an episode that was abandoned).
        Latents come as stored (float16, uint8). The arrays are used again once the batch and every view of it are gone.
        Raises RuntimeError while no sequence is complete.
        """
        with self._lock:
            return self._gather(self._choose(heldout))

    def begin(self) -> Callable[[], TensorDict]:
        """`sample` in two halves: choose now, and return the function that copies, to be called exactly once in any thread.

        Until that call has ended the replay is held still: whoever wants to change or read it waits.
        """
        self._lock.acquire()
        try:
            items = self._choose(heldout=False)
        except BaseException:
            self._lock.release()
            raise

        def finish() -> TensorDict:
            try:
                return self._gather(items)
            finally:
                self._lock.release()

        return finish

    def _choose(self, heldout: bool) -> np.ndarray:
        if not self.ready:
            raise RuntimeError(f"no stream holds a sequence of {self.length} steps yet ({self.steps} steps in all)")
        fresh: list[tuple[int, int]] = []
        while not heldout and self._queue and len(fresh) < self.batch:
            stream, start = self._queue.popleft()
            if start >= self.segments.first[stream]:
                fresh.append((stream, start))
        rng = np.random.default_rng(seed_for(self.seed, "heldout" if heldout else "replay", self._drawn))
        self._drawn += not heldout
        drawn = self.sampler.draw(rng, self.batch - len(fresh)) if len(fresh) < self.batch else np.zeros((0, 2), np.int64)
        return np.concatenate([np.array(fresh, np.int64).reshape(-1, 2), drawn])

    def _gather(self, items: np.ndarray) -> TensorDict:
        shape = (self.batch, self.length)
        stepid, stepid_out = self._buffers.take("stepid", (*shape, 2), np.dtype(np.int64))
        stepid[..., 0] = items[:, :1]
        stepid[..., 1] = items[:, 1:] + np.arange(self.length)
        rows = self.segments.rows(stepid[..., 0], stepid[..., 1])
        arrays: dict[Key, np.ndarray] = {}
        batch: dict[str, Any] = {"stepid": stepid_out}
        for key, column in self._inputs.items():
            arrays[key], out = self._buffers.take(key, (*shape, *column.shape), column.dtype)
            # mode="clip" only because "raise" would copy through a further array; rows are valid.
            np.take(self.segments.arrays[key], rows, axis=0, out=arrays[key], mode="clip")
            if len(key) == 1:
                batch[key[0]] = out
            else:
                batch.setdefault(key[0], {})[key[1]] = out
        arrays[("is_last",)][:, :-1] |= arrays[("is_first",)][:, 1:]
        arrays[("is_first",)][:, 0] = True
        nested = {k: TensorDict(v, shape) if isinstance(v, dict) else v for k, v in batch.items()}
        return TensorDict(nested, shape)

    # --------------------------------------------------------------------------------------------- feedback

    def write(self, stepid: Array, latent: Mapping[str, Array] | TensorDict) -> None:
        """Replace stored latents by fresh ones.

        stepid: (..., 2) as sampled, of exactly the steps written (a batch without its K context steps). latent: every stored
        key (..., *shape), classes as indices or one-hot. Evicted steps are passed over; where a step comes twice, the later
        row of the batch stays.
        """
        ids = as_numpy(stepid)
        refuse_others(set(latent.keys()), self._groups["latent"], "latent")
        lead = ids.shape[:-1]
        arrays = {k: fit(v, self.segments.columns["latent", k], lead, f"latent/{k}") for k, v in latent.items()}
        with self._lock:
            rows, held = self._locate(ids)
            for key, array in arrays.items():
                flat = array.reshape(len(held), *array.shape[len(lead) :])
                self.segments.arrays["latent", key][rows] = flat if held.all() else flat[held]
            self.segments.mark(rows, "latent")

    def prioritise(self, stepid: Array, priority: Array) -> None:
        """Set priorities (...) >= 0 of the steps stepid (..., 2). Raises TypeError unless replay.sampler is "priority"."""
        if not isinstance(self.sampler, Priority):
            raise TypeError(f"priorities are of no use to replay.sampler={self.cfg.sampler!r}; it would have to be 'priority'")
        ids = as_numpy(stepid)
        values = fit(priority, Column((), np.dtype(np.float64)), ids.shape[:-1], "priority").reshape(-1)
        with self._lock:
            rows, held = self._locate(ids)
            self.sampler.put(rows, values[held])

    def _locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the steps still held, and which of the flattened (..., 2) those are."""
        stream, step = ids.reshape(-1, 2).T
        held = self.segments.held(stream, step)
        return self.segments.rows(stream[held], step[held]), held

    # ----------------------------------------------------------------------------------------- save and load

    def state_dict(self) -> dict[str, Any]:
        """Counters and queue, as plain numbers and lists: small, for a checkpoint beside the contents."""
        with self._lock:
            return self._state()

    def _state(self) -> dict[str, Any]:
        highest = self.sampler.highest if isinstance(self.sampler, Priority) else 1.0
        first, end = self.segments.first.tolist(), self.segments.end.tolist()
        queue = [[stream, start] for stream, start in self._queue if start >= first[stream]]
        return {"first": first, "end": end, "drawn": self._drawn, "queue": queue, "highest": highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the moment of `state_dict`, the contents having been loaded before: later steps are forgotten.

        Raises ValueError when the contents do not reach up to that moment.
        """
        with self._lock:
            self._rewind(state)

    def _rewind(self, state: dict[str, Any]) -> None:
        segments, end = self.segments, np.array(state["end"], np.int64)
        if len(end) != len(segments.end):
            raise ValueError(f"the checkpoint's replay has {len(end)} streams, this one {len(segments.end)}")
        surplus = segments.end - end
        newest = self._order[np.arange(self._total - int(surplus.clip(0).sum()), self._total) % self.cfg.capacity]
        if (end < segments.first).any() or (np.bincount(newest, minlength=len(end)) != surplus).any():
            raise ValueError(f"the replay holds other steps than its checkpoint: up to {segments.end.tolist()}, wanted {end.tolist()}")
        segments.truncate(end)
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        first = self.segments.first
        self._total, self._drawn = int(self.segments.end.sum()), state["drawn"]
        self._queue = deque((s, i) for s, i in state["queue"] if i >= first[s]) if self.cfg.online else deque()
        if isinstance(self.sampler, Priority):
            self.sampler.highest = state["highest"]
            self.sampler.refresh()

    def save(self, path: Path, *, keep: Collection[int] = (), wait: bool = True) -> dict[str, Any]:
        """Write the contents to a folder, only what changed since the last save or load there. Safetensors and JSON.

        keep: earlier saves, by the number in their state's `saved`, that must stay loadable. wait: until all is on the disk;
        without, `sync` must be called before anything names this save. Returns `state_dict` with `saved`, for the checkpoint.
        """
        with self._lock:
            archive, state = self._archive_at(path), self._state()
            order = self._order[np.arange(self._total - self.steps, self._total) % self.cfg.capacity]
            saved = archive.save(self.segments, order, state, wait=wait)
            archive.prune({saved[0], *keep})
            return state | {"saved": saved}

    def sync(self) -> None:
        """Wait until everything saved is on the disk, without keeping others from the replay."""
        if self._archive:
            self._archive.sync()

    def load(self, path: Path, state: dict[str, Any] | None = None, salvage: Callable[[str], None] | None = None) -> None:
        """Take over the contents, counters and queue that were saved to a folder; of a larger replay the newest steps.

        state: which save, None for the newest; or that of an older moment to go back to, as `load_state_dict` does. salvage:
        told what is damaged and forgotten, which is an error without it. Raises FileNotFoundError where nothing was saved,
        ArchiveError where files are damaged, ValueError where streams or arrays differ from this replay's.
        """
        with self._lock:
            archive = self._archive_at(path)
            mark = state.get("saved") if state else None
            order, saved = archive.load(self.segments, self.cfg.capacity, mark, salvage)
            total = int(self.segments.end.sum())
            self._order[np.arange(total - len(order), total) % self.cfg.capacity] = order
            self._restore(saved)
            if state is not None and mark is None:
                self._rewind(state)

    def close_episode(self, stream: int) -> None:
        """End the stream's episode, if it has not, at its newest step, as one that was broken off: not terminal, action zero."""
        with self._lock:
            end = int(self.segments.end[stream])
            row = self.segments.rows(np.array([stream]), np.array([end - 1]))
            if end > self.segments.first[stream] and not self.segments.arrays["is_last",][row]:
                self.segments.arrays["is_last",][row] = True
                for key in self._groups["action"]:
                    self.segments.arrays["action", key][row] = 0
                self.segments.mark(row, "data")

    def _archive_at(self, path: Path) -> Archive:
        if self._archive is None or self._archive.path != path:
            self._archive = Archive(path)
        return self._archive

    predicted_bytes = staticmethod(predicted_bytes)
