"""Bad configurations and bad steps: one clear error each, and nothing is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polydream.core.replay import Replay, ReplayConfig
from polydream.core.specs import Space, Spec
from tests.replays import SPEC, fill, make, steps


def test_bad_configurations_name_the_key() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"capacity": 0}, "replay.capacity must be at least 1, got 0"),
        ({"context": -1}, "replay.context must be at least 0"),
        ({"latents": "halve"}, "replay.latents='halve': did you mean 'half'?"),
        ({"sampler": "prioritised"}, "replay.sampler='prioritised': did you mean 'priority'?"),
        ({"sampler": "zzz"}, "choose from priority, recency, uniform"),
        ({"half_life": 0.0}, "replay.half_life must be above 0"),
        ({"exponent": -0.1}, "replay.exponent must be at least 0"),
        ({"blend": 1.5}, "replay.blend must lie between 0 and 1"),
    ]
    for options, match in bad:
        with pytest.raises(ValueError, match=match.replace("?", r"\?")):
            ReplayConfig(**options)
    with pytest.raises(ValueError, match="2 streams of sequences of 6 steps need at least 12"):
        make(2, capacity=11)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        make(batch=0)
    with pytest.raises(ValueError, match="extra may not be called 'latent'"):
        Replay(Spec(obs={}, action={}, extras={"latent": Space()}), {}, ReplayConfig(), batch=1, length=1, streams=1)
    with pytest.raises(ValueError, match="'stoch' has 300 classes"):
        Replay(SPEC, {"stoch": Space(dtype="int32", classes=300)}, ReplayConfig(), batch=1, length=1, streams=1)
    with pytest.raises(RuntimeError, match="no stream holds a sequence of 6 steps yet"):
        fill(make(), 5).sample()


def test_bad_steps_name_the_key_and_change_nothing() -> None:
    replay = fill(make(), 10)
    state = replay.state_dict()
    good = steps([0, 1], [10, 10])
    obs, latent = good["obs"], good["latent"]
    cases: list[tuple[type[Exception], dict[str, Any], str]] = [
        (KeyError, {k: v for k, v in good.items() if k != "reward"}, "needs the step key 'reward'"),
        (KeyError, good | {"rewards": good["reward"]}, "no step key 'rewards'; did you mean 'reward'"),
        (KeyError, good | {"obs": obs | {"img": obs["image"]}}, "no obs key 'img'; did you mean 'image'"),
        (KeyError, good | {"latent": {"deter": latent["deter"]}}, "needs the latent key 'stoch'"),
        (ValueError, good | {"obs": obs | {"id": obs["id"][:, :1]}}, r"'obs/id' has shape \(2, 1\); \(2, 2\) wanted"),
        (ValueError, good | {"reward": np.zeros(3, np.float32)}, r"'reward' has shape \(3,\)"),
        (TypeError, good | {"obs": obs | {"image": obs["image"].astype(np.float32)}}, "'obs/image' has dtype float32; uint8 wanted"),
        (TypeError, good | {"is_first": np.zeros(2)}, "'is_first' has dtype float64; bool wanted"),
        (
            ValueError,
            good | {"latent": latent | {"stoch": np.full((2, 3), 256)}},
            "'latent/stoch' reaches from 256 to 256; uint8 holds 0 to 255",
        ),
        (ValueError, good | {"obs": obs | {"image": np.full((2, 2, 2, 3), -1)}}, "'obs/image' reaches from -1"),
    ]
    for error, bad, match in cases:
        with pytest.raises(error, match=match):
            replay.add(bad)
    for streams in ([0, 0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="different numbers from 0 to 1"):
            replay.add(good, streams=streams)
    with pytest.raises(KeyError, match="needs the latent key 'deter'"):
        replay.write(np.array([[0, 1]]), {"stoch": np.zeros((1, 3), int)})
    assert replay.state_dict() == state


def test_a_tensor_step_is_stored_like_an_array_step() -> None:
    one, two = make(), make()
    for t in range(12):
        step = steps([0, 1], [t, t])
        one.add(step)
        two.add(
            {
                k: {n: torch.from_numpy(v.copy()) for n, v in g.items()} if isinstance(g, dict) else torch.from_numpy(g)
                for k, g in step.items()
            }
        )
    a, b = one.sample(), two.sample()
    assert all(torch.equal(a[k], b[k]) for k in a.keys(True, True))
