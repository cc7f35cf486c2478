"""Recorded behaviour around the agent: how actions reach the environment."""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance.golden import Case, near


def check_action_wrapper(case: Case) -> None:
    from polydream.tasks.base import scale_action

    bounds = case.arrays["env_low__maynan"], case.arrays["env_high__maynan"]
    for ours_in, theirs in zip(case.arrays["agent_action"], case["env_action"], strict=True):
        near(scale_action(ours_in, *bounds), theirs, 1e-5, 1e-6, "action")


CHECKS: dict[str, Callable[[Case], None]] = {"action_wrapper": check_action_wrapper}
"""Topic -> check."""
