"""Recorded behaviour of the released replay: items, online queue, eviction, annotations, write-back, train ratio."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from polydream.core.ratio import TrainRatio
from polydream.core.replay import Replay, ReplayConfig
from polydream.core.specs import Space, Spec
from tests.conformance.golden import Case

SPEC = Spec(obs={"x": Space(shape=(2,))}, action={"a": Space(shape=(1,))})


def row(stream: int, step: int, first: bool, last: bool, extra: dict[str, object]) -> dict[str, object]:
    """One step of one stream, its observation naming it."""
    flags = {"is_first": np.array([first]), "is_last": np.array([last]), "is_terminal": np.array([False])}
    obs = {"x": np.array([[stream, step]], np.float32)}
    return {"obs": obs, "action": {"a": np.zeros((1, 1), np.float32)}, "reward": np.zeros(1, np.float32), **flags, **extra}


def check_replay(case: Case) -> None:
    meta, arrays = case.meta, case.arrays
    streams, length = meta["workers"], meta["length"]
    # The recorded capacity counts items; see core/replay.py for the number of steps that is the same at every moment.
    capacity = meta["capacity"] + streams * (length - 1)
    cfg = ReplayConfig(capacity=capacity, context=1, memmap=False)
    replay = Replay(SPEC, {}, cfg, batch=meta["batch"], length=length - 1, streams=streams)
    samples = {at: i for i, at in enumerate(arrays["sample_at"].tolist())}
    added = 0
    for t in range(meta["steps"]):
        for w in range(streams):
            replay.add(row(w, t, arrays["is_first"][w, t], arrays["is_last"][w, t], {}), streams=[w])
            added += 1
            assert len(replay) == arrays["num_items"][added - 1], f"items after {added} steps"
            assert len(replay._queue) == arrays["online_queue_len"][added - 1], f"queue after {added} steps"
            if added in samples:
                check_sample(replay, arrays, samples[added])
    assert items(replay) == [tuple(item) for item in arrays["final_items"].tolist()]


def check_sample(replay: Replay, arrays: dict[str, np.ndarray], i: int) -> None:
    """The batch has the recorded rows where these came from the queue, and flags as recorded for every row it shares."""
    batch = replay.sample()
    np.testing.assert_array_equal(batch["obs", "x"].numpy(), batch["stepid"].numpy())
    starts, online = batch["stepid"][:, 0].numpy(), arrays["sample_is_online"][i]
    np.testing.assert_array_equal(starts[online], arrays["sample_worker_start"][i][online])
    for row_, (stream, start) in enumerate(starts.tolist()):
        span = slice(start, start + replay.length)
        first, last = arrays["is_first"][stream, span].copy(), arrays["is_last"][stream, span].copy()
        last[:-1] |= first[1:]
        first[0] = True
        if online[row_]:
            np.testing.assert_array_equal(first, arrays["sample_is_first"][i, row_])
            np.testing.assert_array_equal(last, arrays["sample_is_last"][i, row_])
        np.testing.assert_array_equal(batch["is_first"][row_].numpy(), first)
        np.testing.assert_array_equal(batch["is_last"][row_].numpy(), last)


def items(replay: Replay) -> list[tuple[int, int]]:
    """Every item in the order in which they became complete, which here is that of their first steps."""
    first, end = replay.segments.first, replay.segments.end
    found = [(start, stream) for stream in range(len(end)) for start in range(first[stream], end[stream] - replay.length + 1)]
    return [(stream, start) for start, stream in sorted(found)]


def check_replay_update(case: Case) -> None:
    meta, arrays = case.meta, case.arrays
    before, fresh = arrays["table_before"], arrays["new"]
    length, context = meta["length"], meta["context"]
    cfg = ReplayConfig(capacity=100, context=context, memmap=False, latents="float32")
    replay = Replay(SPEC, {"v": Space(shape=(before.shape[1],))}, cfg, batch=len(fresh), length=length - context, streams=1)
    for t, value in enumerate(before):
        replay.add(row(0, t, t == 0, False, {"latent": {"v": value[None]}}))
    steps = arrays["starts"][:, None] + np.arange(context, length)
    replay.write(np.stack([np.zeros_like(steps), steps], -1), {"v": fresh})
    every = np.arange(len(before))
    np.testing.assert_array_equal(replay.segments.arrays["latent", "v"][replay.segments.rows(np.array(0), every)], arrays["table_after"])


def check_ratio(case: Case) -> None:
    ratio = TrainRatio(case.meta["ratio"])
    assert [ratio(step) for step in case.arrays["step"].tolist()] == case.arrays["updates"].tolist()


CHECKS: dict[str, Callable[[Case], None]] = {"replay": check_replay, "replay_update": check_replay_update, "ratio": check_ratio}
"""Topic -> check."""
