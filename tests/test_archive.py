"""Saved replays: they go on bit for bit, cost only what changed, and survive interruption and damage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydream.core import durable
from polydream.core.replay import Replay
from tests.replays import check_rows, fill, make, starts, steps


@pytest.mark.parametrize("options", [{}, {"sampler": "priority"}, {"memmap": True, "latents": "float32"}])
def test_a_loaded_replay_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    for count in (7, 64, 300):  # before, at and after eviction begins; segments partly filled
        one = fill(make(2, capacity=200, directory=tmp_path / "scratch", **options), count)
        one.sample()
        if "sampler" in options:
            one.prioritise(one.sample()["stepid"], np.random.default_rng(0).random((4, 6)))
        state = one.save(tmp_path / str(count))
        two = make(2, capacity=200, directory=tmp_path / "scratch", **options)
        two.load(tmp_path / str(count))
        assert {**two.state_dict(), "saved": state["saved"]} == {**one.state_dict(), "saved": state["saved"]} == state
        assert state == json.loads(json.dumps(state))
        for t in range(count, count + 250):
            for replay in (one, two):
                replay.add(steps([0, 1], [t, t]))
            if t % 25 == 0:
                a, b = one.sample(), two.sample()
                assert all(torch.equal(a[k], b[k]) for k in a.keys(True, True))
                check_rows(a)
        assert two.state_dict() == one.state_dict()


def test_only_changed_segments_are_written_again(tmp_path: Path) -> None:
    replay = fill(make(2, capacity=1000), 100)
    assert replay.segments.size == 16
    replay.save(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    replay.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} ^ before == {f"{n}" for v in (0, 1) for n in (f"order-{v}.safetensors", f"index-{v}.json")}
    before = {p.name for p in tmp_path.iterdir()}
    replay.write(np.array([[1, 40]]), {"deter": np.ones((1, 4)), "stoch": np.ones((1, 3), int)})
    replay.save(tmp_path)
    after = {p.name for p in tmp_path.iterdir()}
    assert after - before == {"1-2-latent-2.safetensors", "order-2.safetensors", "index-2.json"}  # step 40 lies in segment 2 of stream 1
    assert before - after == {"1-2-latent-0.safetensors", "order-1.safetensors", "index-1.json"}
    replay.add(steps([0], [100]), streams=[0])
    replay.save(tmp_path)
    fresh = {"0-6-data-3.safetensors", "0-6-latent-3.safetensors", "order-3.safetensors", "index-3.json"}
    assert {p.name for p in tmp_path.iterdir()} - after == fresh
    resumed = make(2, capacity=1000)
    resumed.load(tmp_path)
    files = {p.name for p in tmp_path.iterdir()}
    resumed.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - files == {"order-4.safetensors", "index-4.json"}
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_files_of_evicted_steps_go_and_foreign_files_stay(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"mine")
    replay = fill(make(1, capacity=40), 40)
    replay.save(tmp_path)
    assert (tmp_path / "0-0-data-0.safetensors").exists()
    fill(replay, 40, begin=40).save(tmp_path)
    assert not (tmp_path / "0-0-data-0.safetensors").exists()
    assert (tmp_path / "weights.safetensors").read_bytes() == b"mine"


def test_an_interrupted_save_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = fill(make(2), 50)
    saved = replay.save(tmp_path)
    fill(replay, 30, begin=50)
    whole = 0
    original = durable.write
    for fail_at in range(100):
        calls = iter(range(1000))

        def write(path: Path, content: bytes, *, calls: Iterator[int] = calls, fail_at: int = fail_at, **options: Any) -> Any:
            if next(calls) == fail_at:
                path.write_bytes(content[: len(content) // 2])
                raise OSError("interrupted")
            return original(path, content, **options)

        monkeypatch.setattr(durable, "write", write)
        try:
            newer = replay.save(tmp_path, keep=[saved["saved"][0]])
            whole = fail_at
        except OSError:
            pass
        monkeypatch.setattr(durable, "write", original)
        two = make(2)
        two.load(tmp_path, saved)
        assert {**two.state_dict(), "saved": saved["saved"]} == saved
        check_rows(two.sample())
        if whole:
            break
    assert whole > 4
    two.load(tmp_path, newer)
    assert two.state_dict() == replay.state_dict()
    replay.save(tmp_path)
    assert {int(p.stem.split("-")[-1]) for p in tmp_path.iterdir()} <= {0, newer["saved"][0], newer["saved"][0] + 1}, (
        "nothing half-written stays"
    )


def test_every_kept_save_can_be_loaded_with_the_latents_it_had(tmp_path: Path) -> None:
    replay = fill(make(1, capacity=64), 64)
    states, contents = [], []
    for round in range(3):
        replay.write(np.array([[0, round + 62]]), {"deter": np.full((1, 4), round + 0.5), "stoch": np.full((1, 3), round)})
        states.append(replay.save(tmp_path, keep=[s["saved"][0] for s in states]))
        contents.append(replay.sample(heldout=True))
        fill(replay, 40, begin=64 + 40 * round)  # evicts what earlier saves hold
    for state, batch in zip(states, contents, strict=True):
        back = make(1, capacity=64)
        back.load(tmp_path, state)
        again = back.sample(heldout=True)
        assert all(torch.equal(again[k], batch[k]) for k in batch.keys(True, True))
    replay.load(tmp_path, states[0])
    replay.save(tmp_path)
    with pytest.raises(ValueError, match="index-1.json is missing"):
        replay.load(tmp_path, states[1])


@pytest.mark.parametrize("segment", [0, 1, 3])
def test_a_damaged_segment_is_named_and_only_what_lies_before_it_is_lost(segment: int, tmp_path: Path) -> None:
    one = fill(make(2, capacity=1000), 60)
    state = one.save(tmp_path)
    file = tmp_path / f"1-{segment}-data-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    back, said = make(2, capacity=1000), []
    with pytest.raises(ValueError, match=f"{file.name} has been changed"):
        back.load(tmp_path, state)
    back.load(tmp_path, state, said.append)
    lost = min(16 * (segment + 1), 60)
    assert len(said) == 1 and file.name in said[0] and f"{lost} steps of environment 1" in said[0]
    assert back.segments.first.tolist() == [0, lost] and back.segments.end.tolist() == [60, 60]
    fill(back, 1000, begin=60)  # counters and order still lead to each other, through growth and eviction
    check_rows(back.sample())
    again = make(2, capacity=1000)
    again.load(tmp_path / "again", back.save(tmp_path / "again"))
    assert again.state_dict() == back.state_dict()


def test_a_broken_off_episode_is_closed_once(tmp_path: Path) -> None:
    replay = fill(make(2), 20)
    replay.close_episode(1)
    replay.close_episode(1)
    fill(replay, 20, begin=20)
    last = replay.segments.arrays["is_last",]
    rows = replay.segments.rows(np.array(1), np.arange(40))
    assert np.flatnonzero(last[rows]).tolist() == [19] and not replay.segments.arrays["is_terminal",][rows].any()
    assert (
        replay.segments.arrays["action", "move"][rows[19]].tolist() == [0, 0] and replay.segments.arrays["action", "move"][rows[18]].any()
    )
    assert not last[replay.segments.rows(np.array(0), np.arange(40))].any()
    make(2).close_episode(0)  # nothing there


def test_an_older_checkpoint_forgets_what_came_later(tmp_path: Path) -> None:
    for size, extra in ((1000, 9), (1000, 40), (70, 9)):  # few steps, several segments, and with eviction in between
        one, two = (fill(make(2, capacity=size), 60) for _ in range(2))
        state = one.state_dict()
        fill(one, extra, begin=60)
        one.save(tmp_path / str(size))
        back = make(2, capacity=size)
        back.load(tmp_path / str(size), state)
        assert back.state_dict()["end"] == [60, 60] and back.state_dict()["queue"] == [
            i for i in state["queue"] if i[1] >= back.segments.first[i[0]]
        ]
        assert back.steps == min(120, size - 2 * extra)
        segments = back.segments
        spanned = sum(60 // segments.size - first // segments.size + 1 for first in segments.first.tolist())
        assert (segments.owner[:, 0] >= 0).sum() == spanned  # room of the forgotten steps was given back
        for t in range(60, 100):
            for replay in (two, back):
                replay.add(steps([0, 1], [t, t]))
        a, b = two.sample(), back.sample()
        assert all(torch.equal(a[k], b[k]) for k in a.keys(True, True))
        back.save(tmp_path / str(size))
        again = make(2, capacity=size)
        again.load(tmp_path / str(size))
        check_rows(again.sample())
    with pytest.raises(ValueError, match="other steps than its checkpoint"):
        make(2).load_state_dict(state)


def test_priorities_of_forgotten_steps_do_not_count(tmp_path: Path) -> None:
    def fresh() -> Replay:
        return make(2, batch=50, sampler="priority", exponent=1.0, blend=0.0, online=False)

    replay = fill(fresh(), 40)
    replay.prioritise(np.array([[s, t] for s in range(2) for t in range(40)]), np.zeros(80))
    replay.prioritise(np.array([[0, 20]]), np.ones(1))
    state = replay.state_dict()
    fill(replay, 5, begin=40)
    replay.save(tmp_path)
    back = fresh()
    back.load(tmp_path, state)
    assert set(starts(back, 10)) == {(0, t) for t in range(15, 21)}
    used = fill(fresh(), 70)
    used.sample()
    used.load(tmp_path, state)  # of what was there before, nothing stays
    assert set(starts(used, 10)) == {(0, t) for t in range(15, 21)}


def test_the_capacity_may_change_between_save_and_load(tmp_path: Path) -> None:
    replay = fill(make(2, capacity=4000), 300)
    for capacity in (12, 100, 599, 600, 5000, 100_000):
        replay.save(tmp_path / str(capacity))
        other = make(2, capacity=capacity)
        other.load(tmp_path / str(capacity))
        assert other.steps == min(capacity, 600) and other.segments.end.tolist() == [300, 300]
        check_rows(other.sample(heldout=True))
        fill(other, 50, begin=300)
        check_rows(other.sample(heldout=True))
        other.save(tmp_path / str(capacity))
        again = make(2, capacity=capacity)
        again.load(tmp_path / str(capacity))
        assert again.state_dict() == other.state_dict()


def test_what_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved replay in"):
        make().load(tmp_path / "nothing")
    fill(make(2), 30).save(tmp_path)
    with pytest.raises(ValueError, match="has 2 streams .* this one 3: keep env.count"):
        make(3).load(tmp_path)
    with pytest.raises(ValueError, match=r"'latent/deter' in the saved replay is float16 of shape \(4,\), in this one float32"):
        make(2, latents="float32").load(tmp_path)
    with pytest.raises(ValueError, match=r"'priority' in the saved replay is missing"):
        make(2, sampler="priority").load(tmp_path)
    file = tmp_path / "1-0-data-0.safetensors"
    content = file.read_bytes()
    for harm in (content[: len(content) // 2], b"", bytes(len(content)), (tmp_path / "1-1-data-0.safetensors").read_bytes()):
        file.write_bytes(harm)
        with pytest.raises(ValueError, match="is damaged: 1-0-data-0.safetensors has"):
            make(2).load(tmp_path)
    file.write_bytes(content)
    path = tmp_path / "index-0.json"
    index = json.loads(path.read_text())
    for key, value, match in (
        ("format", 99, "format 99"),
        ("files", {"0-0-data": ["../secret", []]}, "none of a replay's"),
        ("size", 0, "counts what cannot be"),
        ("state", [], "no index"),
    ):
        path.write_text(json.dumps(index | {key: index["files"] | value if key == "files" else value}))
        with pytest.raises(ValueError, match=match):
            make(2).load(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no index"):
        make(2).load(tmp_path)
