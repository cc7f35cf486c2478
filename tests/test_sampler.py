"""Samplers: every sequence is drawn as often as the stated rule says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polydream.core.replay import Replay
from tests.replays import fill, make, starts, steps


def frequencies(replay: Replay, batches: int) -> dict[tuple[int, int], float]:
    counts: dict[tuple[int, int], int] = {}
    for item in starts(replay, batches):
        counts[item] = counts.get(item, 0) + 1
    return {item: c / (batches * replay.batch) for item, c in counts.items()}


def near(found: dict[tuple[int, int], float], expected: dict[tuple[int, int], float], draws: int) -> None:
    for item in found.keys() | expected.keys():
        p = expected.get(item, 0.0)
        assert abs(found.get(item, 0.0) - p) <= 5 * (p * (1 - p) / draws) ** 0.5, (item, found.get(item), p)


def test_recency_halves_with_age() -> None:
    for blend in (0.0, 0.5):
        replay = fill(make(2, batch=100, sampler="recency", half_life=8.0, blend=blend, online=False), 20)
        newest = 20 - 6
        weights = {(s, t): 0.5 ** ((newest - t) * 2 / 8.0) for s in range(2) for t in range(newest + 1)}
        total = sum(weights.values())
        near(frequencies(replay, 300), {k: (1 - blend) * w / total + blend / len(weights) for k, w in weights.items()}, 30_000)


def priority_replay(**options: Any) -> Replay:
    return fill(make(2, batch=100, sampler="priority", online=False, **{"exponent": 1.0, "blend": 0.0} | options), 20)


def expected_by_priority(
    weight: dict[tuple[int, int], float], length: int, ends: dict[int, tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Each step gives its share of the weight in equal parts to the sequences around it."""
    found: dict[tuple[int, int], float] = {}
    total = sum(weight.values())
    for (stream, step), w in weight.items():
        first, end = ends[stream]
        around = range(max(first, step - length + 1), min(step, end - length) + 1)
        for start in around:
            found[stream, start] = found.get((stream, start), 0.0) + w / total / len(around)
    return found


@pytest.mark.parametrize(("exponent", "blend"), [(1.0, 0.0), (0.5, 0.0), (2.0, 0.3)])
def test_priorities_are_followed(exponent: float, blend: float) -> None:
    replay = priority_replay(exponent=exponent, blend=blend, capacity=30)  # both streams hold steps 5..19
    rng = np.random.default_rng(1)
    ids = np.array([[s, t] for s in range(2) for t in range(20)])
    priority = rng.random(40).astype(np.float32) * 3
    replay.prioritise(ids, priority)
    weight = {(s, t): float(p) ** exponent for (s, t), p in zip(ids.tolist(), priority, strict=True) if t >= 5}
    expected = expected_by_priority(weight, 6, {0: (5, 20), 1: (5, 20)})
    mixed = {item: (1 - blend) * expected.get(item, 0.0) + blend / len(replay) for item in expected}
    assert len(expected) == len(replay) == 20
    near(frequencies(replay, 300), mixed, 30_000)


def test_a_single_important_step_is_in_every_sequence() -> None:
    replay = priority_replay()
    ids = np.array([[s, t] for s in range(2) for t in range(20)])
    replay.prioritise(ids, np.where((ids == [1, 9]).all(1), 2.0, 0.0))
    assert set(starts(replay, 20)) == {(1, t) for t in range(4, 10)}
    fill(replay, 1, begin=20)  # new steps get the highest weight seen: now two more steps, of streams 0 and 1, count as much
    assert {s for s, _ in starts(replay, 20)} == {0, 1}
    near({k: v for k, v in frequencies(replay, 200).items() if k in {(0, 15), (1, 15)}}, {(0, 15): 1 / 3, (1, 15): 1 / 3}, 20_000)


def test_no_weight_at_all_means_uniform_and_evicted_steps_weigh_nothing() -> None:
    replay = priority_replay(capacity=24)  # holds 8..19
    ids = np.array([[s, t] for s in range(2) for t in range(20)])
    replay.prioritise(ids, np.zeros(40))
    assert len(set(starts(replay, 30))) == len(replay) == 14
    replay.prioritise(np.array([[0, 8]]), np.array([5.0]))
    assert set(starts(replay, 5)) == {(0, 8)}
    replay.add(steps([1], [20]), streams=[1])  # evicts step 8 of stream 0
    assert set(starts(replay, 5)) <= {(1, t) for t in range(15, 16)}


def test_priorities_are_refused_when_useless_or_wrong() -> None:
    with pytest.raises(TypeError, match="replay.sampler='uniform'"):
        fill(make(), 10).prioritise(np.array([[0, 1]]), np.ones(1))
    replay = priority_replay()
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite and at least 0"):
            replay.prioritise(np.array([[0, 1]]), np.array([bad]))
    with pytest.raises(ValueError, match="'priority' has shape"):
        replay.prioritise(np.array([[0, 1]]), np.ones(2))
