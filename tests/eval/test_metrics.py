"""Statistics against hand-made numbers, against rliable's on the same scores and draws, and as properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polydream.eval import metrics

RLIABLE = json.loads((Path(__file__).parent.parent / "data" / "eval" / "rliable.json").read_text())
CASES = sorted(RLIABLE["cases"])
AGGREGATES = {"mean": metrics.mean, "median": metrics.median, "iqm": metrics.iqm, "optimality_gap": metrics.optimality_gap}
NAN = float("nan")


def case(name: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    found = RLIABLE["cases"][name]
    return found, np.array(found["x"]), np.array(found["y"])


def draws(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """The indices that rliable drew after `np.random.seed`: for each repetition one array per matrix, in turn."""
    rng = np.random.RandomState(RLIABLE["seed"])
    drawn = [[rng.choice(shape[0], shape, replace=True) for shape in shapes] for _ in range(RLIABLE["reps"])]
    return [np.stack(rows) for rows in zip(*drawn, strict=True)]


# ---------------------------------------------------------------------------------------------------- rliable


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("who", ["x", "y"])
@pytest.mark.parametrize("key", sorted(AGGREGATES))
def test_aggregates_and_intervals_are_those_of_rliable(name: str, who: str, key: str) -> None:
    found, x, y = case(name)
    scores = x if who == "x" else y
    (rows,) = draws(scores.shape)
    low, high = metrics.interval(AGGREGATES[key](metrics.take(scores, rows)))
    assert [float(AGGREGATES[key](scores)), float(low), float(high)] == pytest.approx(found[f"{who}/{key}"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("who", ["x", "y"])
def test_profiles_are_those_of_rliable(name: str, who: str) -> None:
    found, x, y = case(name)
    scores, thresholds = x if who == "x" else y, np.array(RLIABLE["taus"])
    (rows,) = draws(scores.shape)
    low, high = metrics.interval(metrics.profile(metrics.take(scores, rows), thresholds))
    for mine, theirs in zip((metrics.profile(scores, thresholds), low, high), found[f"{who}/profile"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_probability_of_improvement_is_that_of_rliable(name: str) -> None:
    found, x, y = case(name)
    a, b = draws(x.shape, y.shape)
    low, high = metrics.interval(metrics.improvement(metrics.take(x, a), metrics.take(y, b)))
    assert [float(metrics.improvement(x, y)), float(low), float(high)] == pytest.approx(found["improvement"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_own_draws_give_nearly_the_same_interval(name: str) -> None:
    found, x, _ = case(name)
    mine = metrics.estimate(metrics.iqm, x, reps=4000)
    value, low, high = found["x/iqm"]
    assert mine.value == pytest.approx(value, abs=1e-9)
    assert abs(mine.low - low) < 0.2 * (high - low)
    assert abs(mine.high - high) < 0.2 * (high - low)


# ---------------------------------------------------------------------------------------------------- by hand


def test_aggregates_by_hand() -> None:
    scores = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 6.0]])
    np.testing.assert_array_equal(metrics.task_means(scores), [0.5, 1.0, 4.0])
    assert metrics.mean(scores) == pytest.approx(5.5 / 3)
    assert metrics.median(scores) == 1.0
    assert metrics.iqm(scores) == pytest.approx((1 + 1 + 1 + 2) / 4)  # sorted 0 1 1 1 2 6, one of six cut at each end
    assert metrics.optimality_gap(scores) == pytest.approx(1 - 5 / 6)
    assert metrics.optimality_gap(scores, goal=2.0) == pytest.approx(2 - 7 / 6)
    np.testing.assert_allclose(metrics.profile(scores, np.array([-1.0, 0.0, 1.0, 6.0])), [1, 5 / 6, 2 / 6, 0])


def test_missing_runs_do_not_count() -> None:
    scores = np.array([[0.0, 10.0], [NAN, 20.0], [NAN, 30.0]])
    assert metrics.mean(scores) == 10.0  # mean of 0 and 20
    assert metrics.iqm(scores) == 15.0  # 0 10 20 30 without the ends
    drawn = metrics.resample(scores, reps=50)
    assert np.isfinite(drawn[:, 0, 0]).all() and np.isnan(drawn[:, 1:, 0]).all()
    assert (drawn[:, 0, 0] == 0).all() and set(np.unique(drawn[:, :, 1])) == {10.0, 20.0, 30.0}
    assert np.isfinite(metrics.iqm(drawn)).all()


def test_resamples_keep_to_their_task() -> None:
    scores = np.arange(12.0).reshape(4, 3)
    drawn = metrics.resample(scores, reps=200, seed=3)
    assert drawn.shape == (200, 4, 3)
    for task in range(3):
        assert set(np.unique(drawn[:, :, task])) == set(scores[:, task])
    np.testing.assert_array_equal(drawn, metrics.resample(scores, reps=200, seed=3))
    assert not np.array_equal(drawn, metrics.resample(scores, reps=200, seed=4))


def test_normalise() -> None:
    np.testing.assert_allclose(
        metrics.normalise(np.array([[1.0, 0.0], [3.0, 5.0]]), np.array([1.0, 0.0]), np.array([3.0, 10.0])), [[0, 0], [1, 0.5]]
    )
    with pytest.raises(ValueError, match="cannot be normalised"):
        metrics.normalise(np.zeros((1, 1)), np.array([2.0]), np.array([2.0]))


def test_improvement_by_hand() -> None:
    x, y = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0]])
    assert metrics.improvement(x, y) == pytest.approx((0.5 + 0.5) / 2)
    assert metrics.improvement(x + 5, y) == 1.0
    assert metrics.improvement(np.array([[1.0, NAN], [NAN, NAN]]), y) == 0.0  # the second task has no pair


def test_improvement_of_one_over_the_other_and_back_is_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 4, (3, 5)).astype(float), rng.integers(0, 4, (4, 5)).astype(float)
        assert metrics.improvement(x, y) + metrics.improvement(y, x) == pytest.approx(1.0)


def test_an_estimate_says_what_it_is_of() -> None:
    one = metrics.estimate(metrics.mean, np.array([[1.0, 3.0]]), what="mean, evaluation")
    assert np.isnan(one.low) and not one.known and str(one) == "2 (mean, evaluation; 2 runs of 2 tasks)"
    two = metrics.estimate(metrics.mean, np.array([[1.0, 3.0], [2.0, 4.0]]), what="mean")
    assert two.known and 2 <= two.low <= two.value == 2.5 <= two.high <= 3
    wide = metrics.estimate(metrics.mean, np.arange(12.0).reshape(4, 3), confidence=0.99)
    narrow = metrics.estimate(metrics.mean, np.arange(12.0).reshape(4, 3), confidence=0.5)
    assert wide.low < narrow.low and narrow.high < wide.high


def test_nothing_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="no score"):
        metrics.iqm(np.full((2, 2), NAN))
    with pytest.raises(ValueError, match="miss the same runs"):
        metrics.iqm(np.array([[[1.0], [NAN]], [[NAN], [NAN]]]))


def test_area_by_hand() -> None:
    steps, values = np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 1.0])
    assert metrics.area(steps, values) == pytest.approx(0.75)
    assert metrics.area(steps, values, end=10) == pytest.approx(0.5)
    assert metrics.area(steps, values, end=15) == pytest.approx((5 + 5) / 15)
    assert metrics.area(np.array([0.0, 5.0, 10.0]), np.array([0.0, NAN, 1.0])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two points"):
        metrics.area(steps[:1], values[:1])


def test_paired_by_hand() -> None:
    x, y = np.array([[1.0, 5.0], [2.0, 7.0]]), np.array([[0.0, 5.0], [1.0, 9.0]])
    result = metrics.paired(x, y)
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.difference.value == pytest.approx((1 + -1) / 2)
    assert np.isnan(metrics.paired(x, x).p) and metrics.paired(x, x).difference.value == 0
    same = metrics.paired(np.arange(10.0)[:, None] + 1, np.arange(10.0)[:, None])
    assert same.p == pytest.approx(2 / 2**10)  # all ten signs agree: the exact two-sided probability
    with pytest.raises(ValueError, match="the same seeds"):
        metrics.paired(x, y[:1])
    with pytest.raises(ValueError, match="both have a score"):
        metrics.paired(x, np.full_like(x, NAN))
