"""Windows, bins and published numbers, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polydream.eval.curves import Curve, Window, binned, reference, stack, window_mean


def episodes(*pairs: tuple[int, float]) -> list[dict[str, object]]:
    return [{"step": step, "kind": "episode", "return": score} for step, score in pairs]


def test_published_cartpole_balance_at_50k_is_488() -> None:
    curve = reference("dmc/cartpole_balance")
    assert curve.scores.shape == (5, 49)
    assert curve.steps[[0, 1, -1]].tolist() == [10_000, 20_000, 490_000]
    window = curve.window_mean(50_000)
    # means of each seed's points at 40 000 and 50 000, read from the file by eye
    by_hand = [(406.413 + 368.751) / 2, (568.478 + 522.775) / 2, (461.315 + 512.878) / 2, (474.135 + 553.871) / 2, (518.527 + 493.277) / 2]
    assert window.mean == pytest.approx(sum(by_hand) / 5, abs=1e-3)
    assert round(window.mean) == 488
    assert (window.start, window.end, window.count, window.seeds) == (30_000, 50_000, 10, 5)
    assert window.spread == pytest.approx(np.std(by_hand, ddof=1), abs=1e-3)
    assert str(window) == "488.0 ± 60.0 (10 points, 5 seeds, steps 30,000 to 50,000)"


def test_published_finals_agree_with_known_task_means() -> None:
    # last point per seed, mean over seeds, as tabulated from the same files
    known = {"cartpole_balance": 991, "pendulum_swingup": 785, "reacher_easy": 962, "walker_walk": 881, "hopper_hop": 107}
    for task, mean in known.items():
        assert reference(task).mean[-1] == pytest.approx(mean, abs=0.5)


def test_published_pixels() -> None:
    curve = reference("cartpole_balance", suite="dmc_vision")
    assert curve.scores.shape == (10, 100)
    assert curve.steps[-1] == 1_000_000
    assert 950 < curve.window_mean(1_000_000).mean < 1000
    finals = [reference(task, suite="dmc_vision").window_mean(1_000_000, 100_000).mean for task in ("walker_walk", "hopper_hop")]
    assert 900 < finals[0] < 1000
    assert 100 < finals[1] < 500


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(KeyError, match="did you mean 'cartpole_balance'"):
        reference("dmc/cartpole_balanse")
    with pytest.raises(KeyError, match="dmc_proprio-dreamerv3"):
        reference("cartpole_balance", method="muzero")


def test_window_of_own_episodes_by_hand() -> None:
    rows = [*episodes((10, 1.0), (20, 2.0), (30, 4.0), (40, 8.0)), {"step": 45, "kind": "train", "return": 1e9}]
    window = window_mean(rows, last=20)
    assert (window.mean, window.start, window.end, window.count) == (6.0, 25, 45, 2)
    assert window_mean(rows, last=20, end=40).mean == 6.0  # 20 lies outside (20, 40]
    assert window_mean(rows, last=21, end=40).mean == pytest.approx(14 / 3)
    assert window_mean(rows, last=1000).mean == 3.75
    assert window_mean(rows, last=1000).start == 0
    assert str(window_mean(rows, last=20)) == "6.0 (2 episodes, steps 25 to 45)"
    nothing = window_mean([])
    assert math.isnan(nothing.mean)
    assert nothing.count == 0
    assert str(nothing) == "none in steps 0 to 0"


def test_binned_by_hand() -> None:
    curve = binned([*episodes((1, 1.0), (10, 3.0), (11, 5.0), (40, 7.0), (12, float("nan"))), {"step": 99, "kind": "eval"}], width=10)
    assert curve.steps.tolist() == [10, 20, 30, 40]
    assert curve.scores.shape == (1, 4)
    assert curve.scores[0, [0, 1, 3]].tolist() == [2.0, 5.0, 7.0]
    assert math.isnan(curve.scores[0, 2])
    with pytest.raises(ValueError, match="no episode"):
        binned([], width=10)


def test_bins_hold_every_episode_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = np.sort(rng.integers(0, 1000, rng.integers(1, 60)))
        scores = rng.normal(size=len(steps))
        width = int(rng.integers(1, 300))
        curve = binned(episodes(*zip(steps.tolist(), scores.tolist(), strict=True)), width)
        for x, y in zip(curve.steps, curve.scores[0], strict=True):
            low = -1 if x == width else x - width  # step 0 belongs to the first bin
            inside = scores[(steps > low) & (steps <= x)]
            assert np.isnan(y) if not len(inside) else y == pytest.approx(inside.mean())
        assert curve.steps[-1] >= steps.max()


def test_seeds_on_unequal_grids() -> None:
    curve = stack([([10, 20, 30], [1.0, 2.0, None]), ([5, 15, 25, 35], [3.0, 5.0, float("nan"), 9.0])])
    assert curve.steps.tolist() == [10, 20, 30, 40]
    np.testing.assert_array_equal(curve.scores, [[1, 2, np.nan, np.nan], [3, 5, np.nan, 9]])
    np.testing.assert_array_equal(curve.mean, [2, 3.5, np.nan, 9])
    low, high = curve.band
    np.testing.assert_array_equal(low, [1, 2, np.nan, 9])
    np.testing.assert_array_equal(high, [3, 5, np.nan, 9])
    window = curve.window_mean(40, last=40)
    assert window.mean == pytest.approx((1.5 + 17 / 3) / 2)  # each seed first, so the longer one does not count more
    assert window.seeds == 2


def test_equal_grids_are_left_alone() -> None:
    curve = stack([([3, 7], [1.0, 2.0]), ([3, 7], [3.0, None])])
    assert curve.steps.tolist() == [3, 7]
    np.testing.assert_array_equal(curve.scores, [[1, 2], [3, np.nan]])
    assert stack([([3, 7], [1.0, 2.0])], width=10).steps.tolist() == [10]
    with pytest.raises(ValueError, match="no runs"):
        stack([])


def test_bad_curves_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        Curve(steps=np.array([1, 1]), scores=np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"\(S, K\)"):
        Curve(steps=np.array([1, 2]), scores=np.zeros(2))


def test_window_prints_its_window() -> None:
    assert str(Window(mean=1.25, start=0, end=9, count=3)) == "1.2 (3 episodes, steps 0 to 9)"
