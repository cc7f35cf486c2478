"""The measurement of subgoals: who pursues what, and which segments count."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.subgoals import WORLDS, Play, measure, visited
from polydream.core import registry
from polydream.eval.trial import Trial

PINPAD = partial(registry.task, "world/pinpad3")
"""Episodes of 2000 steps."""


def agent():  # type: ignore[no-untyped-def]
    """Subgoals are held for 5 steps."""
    return Trial(registry.variant("hierarchical"), PINPAD, {}).agent()


def test_segments_count_that_were_seen_to_their_end() -> None:
    made = agent()
    states, ends = Play(made, PINPAD, 0).run(21)
    assert states.shape == (WORLDS, 21, made.cfg.rssm.deter) and ends.shape == (4 * WORLDS,), "they end at 5, 10, 15 and 20"
    short = partial(registry.task, "world/pinpad3", limit=6)  # seven steps an episode: one segment, and two steps of the next
    assert Play(made, short, 0).run(21)[1].shape == (3 * WORLDS,)


def test_subgoals_are_those_that_were_asked_for_and_the_agent_is_left_as_it_was() -> None:
    made = agent()
    states, own = Play(made, PINPAD, 0).run(11)
    rows = states.flatten(0, 1)
    one, same, other = (Play(made, PINPAD, 0).run(11, visited(made, rows, seed))[1] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, own)
    assert torch.equal(Play(made, PINPAD, 0).run(11)[1], own), "its manager is back"


def test_random_actions_are_scored_against_the_same_subgoals() -> None:
    made = agent()
    states, _ = Play(made, PINPAD, 0).run(11)
    asked: list[torch.Tensor] = []

    def noted(choose, state, noise):  # type: ignore[no-untyped-def]
        found = choose(state, noise)
        asked.append(found["subgoal"])
        return found

    walks = [Play(made, PINPAD, 0).run(11, partial(noted, visited(made, states.flatten(0, 1), 1)), random)[0] for random in (False, True)]
    half = len(asked) // 2
    assert all(torch.equal(a, b) for a, b in zip(asked[:half], asked[half:], strict=True))
    assert torch.equal(walks[0][:, 0], walks[1][:, 0]) and not torch.equal(walks[0], walks[1])


def test_the_gap_is_told_in_standard_errors() -> None:
    found = measure(agent(), PINPAD, 11, 0)
    assert (
        found["target"] == pytest.approx(0.75 * 16.6355, rel=1e-3) and found["closeness_segments"] == found["random_segments"] == 2 * WORLDS
    )
    assert found["gap"] == pytest.approx(found["closeness"] - found["random"])
    assert found["gap_in_errors"] == pytest.approx(found["gap"] / (found["closeness_error"] ** 2 + found["random_error"] ** 2) ** 0.5)
