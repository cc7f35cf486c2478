"""Acting with a trained agent: forms of observations and actions, repeatability."""

from __future__ import annotations

import numpy as np
import pytest

from polydream.core.agent import Dreamer
from polydream.core.player import Player
from polydream.core.specs import Space, Spec
from tests.fixtures import DISCRETE, VECTOR, agent, tiny


def test_a_bare_observation_gives_an_action_in_the_environments_units() -> None:
    spec = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(shape=(2,), low=(0.0, -2.0), high=(10.0, 2.0))})
    player = Player(Dreamer(spec, tiny()))
    action, state = player.act(np.zeros(4))
    assert action.shape == (2,)
    many = []
    for _ in range(100):
        action, state = player.act(np.zeros(4), state)
        many.append(action)
    lowest, highest = np.min(many, 0), np.max(many, 0)
    assert (lowest >= [0, -2]).all() and (highest <= [10, 2]).all() and highest[0] > 6 and lowest[1] < -1
    named, _ = Player(player.agent).act({"vector": np.zeros(4, np.float32)}, mode="mode")
    bare, _ = Player(player.agent).act(np.zeros(4), mode="mode")
    np.testing.assert_allclose((named["action"] + 1) / 2 * [10, 4] + [0, -2], bare, rtol=1e-5)


def test_class_indices_begin_where_the_environment_begins() -> None:
    spec = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(dtype="int32", classes=3, low=5.0)})
    player = Player(Dreamer(spec, tiny()))
    seen, state = set(), None
    for _ in range(60):
        action, state = player.act(np.zeros(4), state)
        seen.add(int(action))
    assert seen == {5, 6, 7}


def test_leading_axes_are_kept_and_noise_repeats() -> None:
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    player = Player(agent(DISCRETE))
    together, _ = player.act({"vector": obs}, mode="mode")
    alone, state = Player(agent(DISCRETE)).act(obs[0], mode="mode")
    assert together["action"].shape == (3,) and int(together["action"][0]) == int(alone) and alone.shape == () and state.batch_size == (1,)

    def play() -> list[int]:
        state, actions = player.initial(1), []
        for _ in range(20):
            action, state = player.act({"vector": obs[:1]}, state, is_first=np.zeros(1, bool))
            actions.append(int(action["action"][0]))
        return actions

    assert play() == play(), "initial() begins the noise anew"


def test_bad_observations_are_named() -> None:
    player = Player(agent(VECTOR))
    with pytest.raises(KeyError, match="'height' is missing"):
        player.act({"pos": np.zeros(3)})
    with pytest.raises(ValueError, match=r"'pos' has shape \(2,\)"):
        player.act({"pos": np.zeros(2), "height": np.zeros(())})
    with pytest.raises(ValueError, match="2 obs keys"):
        player.act(np.zeros(3))
    with pytest.raises(ValueError, match="choose sample or mode"):
        player.act({"pos": np.zeros(3), "height": 0.0}, mode="best")
