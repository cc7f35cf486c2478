"""Which number belongs to which step: in what is stored, what is trained on, what is dreamed on, what is held out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from polydream.core import openloop, saving
from polydream.core.heldout import Heldout
from polydream.core.rng import Draws
from polydream.core.train import Trainer
from polydream.tasks import world
from tests.faults.harness import tiny
from tests.fixtures import DISCRETE, IMAGE, agent, batch


@pytest.mark.parametrize("context", [0, 1, 3])
def test_a_sequence_begins_with_the_latent_and_the_action_before_it(context: int) -> None:
    dreamer, data = agent(DISCRETE), batch(DISCRETE)
    state, cut, previous = dreamer.replay_context(data, context)
    taken = torch.nn.functional.one_hot(data["action", "action"].long(), 3).float()
    if context:
        assert torch.equal(previous, taken[:, context - 1 : -1]) and torch.equal(cut["reward"], data["reward"][:, context:])
        assert torch.equal(state["deter"], data["latent", "deter"][:, context - 1])
    else:
        assert not previous[:, 0].any() and torch.equal(previous[:, 1:], taken[:, :-1]) and not state["deter"].any()


def kept(trainer: Trainer, stream: int, step: int) -> np.ndarray:
    """The stored deterministic state of a step."""
    held = trainer.replay.segments
    return held.arrays["latent", "deter"][held.rows(np.array([stream]), np.array([step]))][0]


def test_every_step_is_stored_with_its_own_latent_and_gets_its_own_fresh_one_and_priority(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=10**6, replay__sampler="priority")) as trainer:
        for _ in range(40):
            trainer.collect()
            newest = int(trainer.replay.segments.end[0]) - 1
            assert np.array_equal(kept(trainer, 0, newest), trainer.collector.state["deter"][0].half().numpy()), "after it was seen"
        seen: dict[str, Tensor] = {}
        update, prioritise = trainer.agent.update, trainer.replay.prioritise

        def watched(data: TensorDict, *rest: Any) -> Any:
            metrics, latents = update(data, *rest)
            seen.update(ids=data["stepid"].clone(), deter=latents["deter"].clone(), priority=latents["priority"].clone())
            return metrics, latents

        def noted(ids: Any, values: Any) -> None:
            seen.update(prioritised=torch.as_tensor(ids).clone(), values=torch.as_tensor(values).clone())
            prioritise(ids, values)

        trainer.agent.update, trainer.replay.prioritise = watched, noted  # type: ignore[method-assign, assignment]
        trainer.learn()
        trained = seen["ids"][:, 1:]
        last = {tuple(i): v for row, values in zip(trained.tolist(), seen["deter"], strict=True) for i, v in zip(row, values, strict=True)}
        assert len(last) > 8
        for (stream, step), value in last.items():
            assert np.array_equal(kept(trainer, stream, step), value.half().numpy())
        assert torch.equal(seen["prioritised"], trained) and torch.equal(seen["values"], seen["priority"])


def test_an_open_loop_dream_sees_nothing_after_its_start_and_follows_the_actions() -> None:
    dreamer, data = agent(IMAGE), batch(IMAGE, rows=2, steps=8)
    data["is_first"][:, 1:] = False
    seen = openloop.context_steps(data)

    def model(of: TensorDict) -> Tensor:
        return openloop.open_loop(dreamer, of, Draws(0))[1]["image"]["model"]

    usual, blind, other = model(data), data.clone(), data.clone()
    blind["obs", "image"][:, seen:] = 255 - blind["obs", "image"][:, seen:]
    assert torch.equal(model(blind), usual)
    other["action", "action"][:, seen] = (other["action", "action"][:, seen] + 1) % 3
    changed = (model(other) != usual).flatten(2).any(-1).any(0)
    assert not changed[: seen + 1].any() and changed[seen + 1]


def test_held_out_steps_have_the_action_that_was_taken_in_them() -> None:
    task = world.make("chain", length=6)
    held = Heldout(task.spec, 5)
    recorder = held.recording(lambda: task)()
    step, told = recorder.reset(0), []
    while not step["is_last"]:
        told.append(int(np.random.default_rng(len(told)).integers(2)))
        step = recorder.step({"action": np.int32(told[-1])})
    assert set(told) == {0, 1}
    assert [int(s["action"]["action"]) for s in held.episodes[0]] == [*told, 0]


def test_the_slow_critic_begins_as_the_critic() -> None:
    for objective in agent(seed=3).objectives():
        slow = objective.slow.state_dict()
        assert slow and all(torch.equal(v, slow[k]) for k, v in objective.critic.state_dict().items())


def test_process_wide_generators_are_put_back() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    state = saving.generators()
    first = drawn()
    assert first != drawn()
    saving.set_generators(state)
    assert drawn() == first
