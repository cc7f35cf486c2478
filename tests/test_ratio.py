"""The train ratio: updates due, exactly and for ever."""

import json
from fractions import Fraction

import pytest

from polydream.core.ratio import TrainRatio


def test_the_first_call_gives_one_update_and_makes_up_for_nothing() -> None:
    assert [TrainRatio(0.5)(1000), TrainRatio(8)(1000)] == [1, 1]


def test_updates_due_by_hand() -> None:
    ratio = TrainRatio(0.5)
    assert [ratio(step) for step in (10, 11, 12, 13, 20)] == [1, 0, 1, 0, 4]
    assert [TrainRatio(2)(0)] + [due for r in [TrainRatio(2)] for due in (r(5), r(6), r(6), r(9))] == [1, 1, 2, 0, 6]


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.29, 32 / 1024, 512 / 1024, 1.7, 3.0])
def test_nothing_is_lost_however_steps_arrive(ratio: float) -> None:
    exact = Fraction(ratio).limit_denominator(1_000_000)
    for stride in (1, 3, 16, 100):
        counter = TrainRatio(ratio)
        assert counter(0) == 1
        done = 0
        for step in range(stride, 5000 + stride, stride):
            done += counter(step)
            assert done == step * exact.numerator // exact.denominator


def test_zero_trains_never() -> None:
    ratio = TrainRatio(0)
    assert [ratio(step) for step in (0, 1000, 10**9)] == [0, 0, 0]


def test_a_saved_counter_goes_on_with_its_credit() -> None:
    for cut in range(12):
        whole, first = TrainRatio(0.3), TrainRatio(0.3)
        expected = [whole(step) for step in range(100, 124)]
        got = [first(step) for step in range(100, 100 + cut)]
        state = json.loads(json.dumps(first.state_dict()))
        second = TrainRatio(0.3)
        second.load_state_dict(state)
        got += [second(step) for step in range(100 + cut, 124)]
        assert got == expected


def test_credit_in_the_state() -> None:
    ratio = TrainRatio(0.3)
    ratio(0), ratio(5)
    assert ratio.state_dict() == {"step": 5, "credit": [1, 2]}


def test_bad_input() -> None:
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="train ratio must be at least 0"):
            TrainRatio(bad)
    with pytest.raises(ValueError, match="use 0 to switch training off"):
        TrainRatio(1e-9)
    ratio = TrainRatio(1)
    ratio(7)
    with pytest.raises(ValueError, match="from 7 to 6"):
        ratio(6)
