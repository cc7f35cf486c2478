"""Warnings: each symptom is reported when it lasts, once, and not otherwise."""

from __future__ import annotations

import math

import pytest

from polydream.core.health import PATIENCE, Health
from tests.fixtures import DISCRETE, VECTOR, tiny

FINE = {"loss/dyn": 3.0, "loss/rep": 3.0, "adv_mag": 0.2, "ret_scale": 2.0, "grad_norm/actor": 0.1, "ent/action": 0.5, "opt/loss": 9.0}

SICK = {
    "posterior collapse": {"loss/dyn": 1.0, "loss/rep": 1.0},
    "actor gets no gradient": {"grad_norm/actor": 0.0},
    "policy stays random": {"ent/action": math.log(3), "adv_mag": 0.3},
    "advantages vanish": {"adv_mag": 1e-6, "ret_scale": 1.0},
    "not a number": {"opt/loss": math.nan},
    "reward head fails on extremes": {"reward_extreme_error": 0.9},
    "world model overfits": {"overfit": 0.8},
}


def test_every_symptom_has_a_test() -> None:
    assert {s.name for s in Health(tiny(), DISCRETE).symptoms} == set(SICK)


@pytest.mark.parametrize("name", sorted(SICK))
def test_a_lasting_symptom_is_reported_once(name: str) -> None:
    health = Health(tiny(), DISCRETE)
    assert not any(health.check(FINE) for _ in range(2 * PATIENCE))
    found = [health.check(FINE | SICK[name]) for _ in range(3 * PATIENCE)]
    assert [len(f) for f in found] == [0] * (PATIENCE - 1) + [1] + [0] * (2 * PATIENCE)
    assert found[PATIENCE - 1][0].startswith(f"{name}: ")
    health.check(FINE | ({k: 0.0 for k in SICK[name] if k in ("reward_extreme_error", "overfit")}))
    assert any(health.check(FINE | SICK[name]) for _ in range(PATIENCE)), "reported again after it went away"


def test_one_bad_row_is_no_illness() -> None:
    health = Health(tiny(), DISCRETE)
    rows = [FINE | SICK["posterior collapse"], FINE] * PATIENCE
    assert not any(health.check(row) for row in rows)


def test_continuous_policies_have_no_uniform_to_compare_with() -> None:
    health = Health(tiny(), VECTOR)
    assert not any(health.check(FINE | {"ent/action": 99.0}) for _ in range(2 * PATIENCE))


@pytest.mark.parametrize("name", ["actor gets no gradient", "policy stays random"])
def test_a_policy_that_was_told_to_wait_is_no_trouble(name: str) -> None:
    health = Health(tiny(), DISCRETE)
    assert not any(health.check(FINE | SICK[name] | {"asleep": 1.0}) for _ in range(2 * PATIENCE))
