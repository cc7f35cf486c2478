"""Replay: what goes in comes out, oldest first out, fresh first, draws repeat."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydream.core.replay import Replay, ReplayConfig
from polydream.core.segments import Segments, segment_size
from tests.replays import LATENT, SPEC, check_rows, fill, make, starts, steps


class Naive:
    """The obvious replay: one list of all steps in the order they came."""

    def __init__(self, capacity: int, length: int) -> None:
        self.capacity, self.length, self.log = capacity, length, list[tuple[int, int]]()

    def add(self, stream: int, step: int) -> None:
        self.log.append((stream, step))
        self.log = self.log[-self.capacity :]

    def items(self) -> set[tuple[int, int]]:
        held = set(self.log)
        return {(s, t) for s, t in held if (s, t + self.length - 1) in held}


@pytest.mark.parametrize("memmap", [False, True])
@pytest.mark.parametrize("capacity", [18, 61, 300])
def test_holds_exactly_the_newest_steps_of_streams_of_any_speed(memmap: bool, capacity: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(capacity)
    replay = make(3, capacity=capacity, memmap=memmap, directory=tmp_path, online=False)
    naive, ends = Naive(capacity, replay.length), [0, 0, 0]
    for round_ in range(700):
        weights = [0.9, 0.3, 0.05] if round_ % 200 < 100 else [0.1, 0.2, 0.9]  # the fast stream becomes the slow one
        streams = [s for s in range(3) if rng.random() < weights[s]]
        replay.add(steps(streams, [ends[s] for s in streams]), streams=streams)
        for s in streams:
            naive.add(s, ends[s])
            ends[s] += 1
        assert (replay.steps, len(replay), replay.ready) == (len(naive.log), len(naive.items()), bool(naive.items()))
        if round_ % 20 == 0 and replay.ready:
            batch = replay.sample()
            check_rows(batch)
            assert {tuple(i) for i in batch["stepid"][:, 0].tolist()} <= naive.items()
    assert max(ends) > 2 * capacity or capacity == 300
    assert replay.segments.used <= replay.segments.slots
    assert list(tmp_path.iterdir()) == []  # scratch files have no name and vanish with the process


def test_every_item_is_drawn_alike() -> None:
    replay = fill(make(2, capacity=60, batch=50, online=False), 45)
    for t in range(45, 60):
        replay.add(steps([1], [t]), streams=[1])  # unequal streams: the items count, not the streams
    counts: dict[tuple[int, int], int] = {}
    for item in starts(replay, 400):
        counts[item] = counts.get(item, 0) + 1
    expected = 400 * 50 / len(replay)
    assert len(counts) == len(replay) == 60 - 2 * 5
    assert all(abs(c - expected) < 5 * expected**0.5 for c in counts.values())


def test_fresh_stretches_come_first_and_once() -> None:
    replay = fill(make(2, batch=3), 20)  # K + T = 6: stretches from steps 1, 7 and 13 of both streams
    fresh = [tuple(i) for _ in range(2) for i in replay.sample()["stepid"][:, 0].tolist()]
    assert fresh == [(0, 1), (1, 1), (0, 7), (1, 7), (0, 13), (1, 13)]
    assert replay.state_dict()["queue"] == []
    fill(replay, 5, begin=20)  # up to step 24: stretches from step 19 are complete
    assert replay.sample()["stepid"][:2, 0].tolist() == [[0, 19], [1, 19]]
    assert fill(make(2, batch=3, online=False), 20).state_dict()["queue"] == []


def test_evicted_stretches_are_skipped_and_the_queue_stays_short() -> None:
    replay = fill(make(2, batch=3, capacity=26), 500)
    assert len(replay._queue) <= 26 // 6 + 2
    first = replay.segments.first
    assert all(start >= first[stream] for stream, start in replay._queue)
    fill(replay, 12, begin=500)
    for _ in range(3):
        check_rows(replay.sample())


@pytest.mark.parametrize("context", [0, 1, 3])
def test_flags_of_a_sample(context: int) -> None:
    replay = make(1, batch=1, length=8 - context, context=context)
    # Episodes: 0..2 ends by itself, 3..4 is abandoned, 5 is a single step, 6.. goes on.
    first, last = [0, 3, 5, 6], [2, 5]
    for t in range(9):
        replay.add(steps([0], [t], first=t in first, last=t in last))
    batch = replay.sample()  # the queued stretch 1..8
    assert batch.shape == (1, 8) and batch["stepid"][0, :, 1].tolist() == list(range(1, 9))
    assert batch["is_first"][0].nonzero().flatten().tolist() == [0, 2, 4, 5]  # steps 1 (forced), 3, 5, 6
    assert batch["is_last"][0].nonzero().flatten().tolist() == [1, 3, 4]  # steps 2, 4 (repaired), 5
    assert batch["is_terminal"][0].nonzero().flatten().tolist() == [1, 4]  # the abandoned episode did not terminate
    again = make(1, batch=1, length=8 - context, context=context)
    assert not again.ready and len(again) == 0
    assert replay.segments.arrays["is_first",][1] == False  # noqa: E712 (the stored row is untouched)


def test_dtypes_and_shapes_of_a_batch() -> None:
    for latents, dtype in {"half": torch.float16, "float32": torch.float32}.items():
        batch = fill(make(latents=latents), 10).sample()
        kinds = {k if isinstance(k, str) else "/".join(k): (v.dtype, tuple(v.shape[2:])) for k, v in batch.items(True, True)}
        assert kinds == {
            "obs/id": (torch.float32, (2,)),
            "obs/image": (torch.uint8, (2, 2, 3)),
            "obs/arm/touch": (torch.int32, ()),
            "action/move": (torch.float32, (2,)),
            "action/jump": (torch.int64, ()),
            "reward": (torch.float32, ()),
            "is_first": (torch.bool, ()),
            "is_last": (torch.bool, ()),
            "is_terminal": (torch.bool, ()),
            "task": (torch.int32, ()),
            "latent/deter": (dtype, (4,)),
            "latent/stoch": (torch.uint8, (3,)),
            "stepid": (torch.int64, (2,)),
        }
        assert batch.shape == (4, 6)


def test_draws_repeat_and_reports_change_nothing() -> None:
    one, two, other = (fill(make(seed=seed), 40) for seed in (3, 3, 4))
    seen = []
    for _ in range(6):
        one_ids = one.sample()["stepid"]
        report = two.sample(heldout=True)["stepid"]
        assert torch.equal(report, two.sample(heldout=True)["stepid"])
        assert torch.equal(one_ids, two.sample()["stepid"])
        seen.append((one_ids.tolist(), other.sample()["stepid"].tolist()))
    assert seen[-1][0] != seen[-1][1] and seen[-1][0] != seen[-2][0]


def test_a_batch_stays_as_it_is_while_anybody_holds_it() -> None:
    replay = fill(make(2, batch=8), 40)
    batch = replay.sample()
    view, address = batch["obs", "id"][3:, 1:], batch["obs", "image"].data_ptr()
    copy = view.clone()
    for _ in range(5):
        replay.sample()
    check_rows(batch)
    del batch
    for _ in range(5):
        replay.sample()
    assert torch.equal(view, copy)
    assert replay.sample()["obs", "image"].data_ptr() == address  # memory of a batch that is gone is used again


def test_written_latents_replace_the_stored_ones_and_later_rows_win() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        replay = fill(make(2, batch=8, latents="float32"), 30)
        batch = replay.sample()
        ids = batch["stepid"][:, 1:]
        deter, stoch = rng.random((8, 5, 4), dtype=np.float32), rng.integers(0, 5, (8, 5, 3))
        onehot = torch.nn.functional.one_hot(torch.from_numpy(stoch), 5).float()
        replay.write(ids, {"deter": torch.from_numpy(deter), "stoch": onehot})
        expected = {
            tuple(i): (d, s) for row, i_row in enumerate(ids.tolist()) for i, d, s in zip(i_row, deter[row], stoch[row], strict=True)
        }
        for stream in range(2):
            for step in range(30):
                row = replay.segments.rows(np.array(stream), np.array(step))
                before = steps([stream], [step])["latent"]
                d, s = expected.get((stream, step), (before["deter"][0], before["stoch"][0]))
                assert np.array_equal(replay.segments.arrays["latent", "deter"][row], d)
                assert np.array_equal(replay.segments.arrays["latent", "stoch"][row], s)


def test_half_latents_round_as_float16() -> None:
    replay = fill(make(1, batch=1), 12)
    ids, value = torch.tensor([[0, 4]]), 0.1234567
    replay.write(ids, {"deter": torch.full((1, 4), value, dtype=torch.bfloat16), "stoch": torch.zeros(1, 3)[..., None].expand(1, 3, 5)})
    stored = replay.segments.arrays["latent", "deter"][replay.segments.rows(np.array(0), np.array(4))]
    assert stored.tolist() == [float(torch.tensor(value, dtype=torch.bfloat16).half())] * 4


def test_evicted_steps_are_not_written() -> None:
    replay = fill(make(1, batch=1, capacity=10), 25)  # holds steps 15..24
    ids = np.array([[0, 0], [0, 14], [0, 15], [0, 24]])
    replay.write(ids, {"deter": np.repeat([[2.0], [3.0], [4.0], [5.0]], 4, axis=1), "stoch": np.full((4, 3), 4)})
    rows = replay.segments.rows(np.array(0), np.arange(15, 25))
    assert replay.segments.arrays["latent", "deter"][rows, 0].tolist() == [4.0, *(t / 128 for t in range(16, 24)), 5.0]
    for bad, match in {(1, 20): "stream 1", (-1, 20): "stream -1", (0, 25): "never added"}.items():
        with pytest.raises(ValueError, match=match):
            replay.write(np.array([bad]), {"deter": np.zeros((1, 4)), "stoch": np.zeros((1, 3), int)})


def test_bytes_per_step_and_prediction() -> None:
    # id 8, image 12, touch 4, move 8, jump 8, reward 4, flags 3, task 4 = 51; deter 8 or 16, stoch 3.
    raw = 51
    assert Replay.predicted_bytes(SPEC, LATENT, ReplayConfig(capacity=10, memmap=False)) == (10 * (raw + 11 + 2), 10 * (raw + 11 + 2))
    assert Replay.predicted_bytes(SPEC, LATENT, ReplayConfig(capacity=10)) == (20, 10 * (2 * (raw + 11) + 2))
    full = ReplayConfig(capacity=10, memmap=False, latents="float32", sampler="priority")
    assert Replay.predicted_bytes(SPEC, LATENT, full) == (10 * (raw + 19 + 4 + 2), 10 * (raw + 19 + 4 + 2))
    replay = fill(make(4, capacity=20_000), 6000)
    assert replay.steps == 20_000
    assert replay.nbytes <= 1.05 * replay.steps * (raw + 11)


def test_scratch_space_is_taken_as_it_is_needed(tmp_path: Path) -> None:
    replay = make(1, capacity=1_000_000, memmap=True, directory=tmp_path)
    taken = lambda: sum(os.fstat(fd).st_blocks * 512 for fd in replay.segments._files.values())  # noqa: E731
    assert taken() == 0
    fill(replay, 3)
    assert 0 < taken() <= 2 * 1024 * replay.segments.row_bytes


@pytest.mark.parametrize("memmap", [False, True])
def test_works_where_the_system_cannot_reserve_space(memmap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    check_rows(fill(make(2, memmap=memmap, directory=tmp_path), 40).sample())


def test_a_full_disk_is_an_error_that_leaves_the_replay_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = fill(make(2, memmap=True, directory=tmp_path), 32)  # both streams' second segments are full

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="cannot grow in .*No space left on device; lower replay.capacity") as caught:
            replay.add(steps([0, 1], [32, 32]))
    assert caught.value.errno == errno.ENOSPC
    assert replay.steps == 64
    fill(replay, 20, begin=32)
    for _ in range(5):
        check_rows(replay.sample())


def test_segments_are_small_beside_the_capacity() -> None:
    assert [segment_size(s, c) for s, c in ((1, 1000), (1, 10_000), (16, 1_000_000), (1, 5_000_000), (64, 100))] == [16, 128, 512, 1024, 16]
    for streams in (1, 3, 16):
        for capacity in (streams * 10, 5000, 123_457):
            segments = Segments({}, streams=streams, capacity=capacity, directory=None)
            assert segments.slots * segments.size >= capacity


def test_adding_and_writing_while_sampling_never_mixes_rows() -> None:
    replay = fill(make(2, capacity=60, batch=16), 30)
    stop, failed = threading.Event(), []

    def sample() -> None:
        try:
            while not stop.is_set():
                check_rows(replay.sample())
        except BaseException as error:  # noqa: BLE001 (shown in the main thread)
            failed.append(error)

    thread = threading.Thread(target=sample)
    thread.start()
    for t in range(30, 400):
        step = steps([0, 1], [t, t])
        replay.add(step)
        replay.write(np.array([[0, t], [1, t]]), step["latent"])
    stop.set()
    thread.join()
    assert not failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_batches() -> None:
    replay = Replay(SPEC, LATENT, ReplayConfig(memmap=False), batch=4, length=5, streams=2, pin=True)
    batch = fill(replay, 20).sample()
    check_rows(batch)
    assert batch["obs", "image"].is_pinned()
