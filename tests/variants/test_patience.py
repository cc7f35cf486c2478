"""A policy of several tasks waits until the heads of rewards know what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polydream.core.openloop import inspect
from polydream.core.rng import Draws
from polydream.variants.multitask import MultiTask
from polydream.variants.patience import PatienceConfig, Trust
from tests.variants.test_multitask import TWINS, config, steps


def test_what_is_explained_is_one_minus_error_over_variance() -> None:
    trust = Trust(3)
    ids, reward = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0.0, 0, 2, -2, 5, 5])
    trust.watch(ids, reward, torch.tensor([0.0, 0, 1, -1, 7, 7]))
    # Task 0: variance 8 / 4, errors 2 / 4. Task 1 pays a constant. Task 2 never occurred.
    assert trust.explained().tolist() == [0.75, 1.0, 0.0]
    trust.watch(torch.tensor([0]), torch.tensor([0.0]), torch.tensor([0.0]))
    assert trust.moments[:2, 0].tolist() == pytest.approx([4 * 0.96 + 1, 2.0], rel=1e-6), "what does not occur is not forgotten"
    assert float(trust.explained()[0]) == pytest.approx(0.75)


def test_one_size_of_rewards_is_as_good_as_another() -> None:
    found = []
    for factor in (1e-3, 1.0, 1e4):
        trust = Trust(1)
        reward = factor * torch.tensor([0.0, 1.0, -1.0, 3.0])
        trust.watch(torch.zeros(4, dtype=torch.long), reward, 0.9 * reward)
        found.append(float(trust.explained()))
    assert found == pytest.approx(3 * [found[0]], rel=1e-5) and found[0] > 0.9


def lived(trust: float, wait: int = 1000, know: bool = False, updates: int = 3) -> tuple[MultiTask, list[bool]]:
    """After some updates: the agent, and after which of them its policy had moved. know: the heads say what is."""
    agent = MultiTask(TWINS, replace(config(), patience=PatienceConfig(trust=trust, wait=wait)), 0)
    optimizer = agent.optimizer()
    start = [p.detach().clone() for p in agent.main.policy.parameters()]
    moved = []
    for step in range(updates):
        data = steps(seed=step)
        if know:  # what every untrained head of this test's says, give or take
            data["reward"] = torch.zeros_like(data["reward"])
        agent.update(data, optimizer, Draws(0, step))
        moved.append(any(not torch.equal(a, b) for a, b in zip(start, agent.main.policy.parameters(), strict=True)))
    return agent, moved


def test_the_policy_moves_when_the_heads_can_be_trusted_and_not_before() -> None:
    assert lived(0.75)[1] == [False, False, False]
    assert lived(0.75, know=True)[1] == [True, True, True]
    assert lived(0.0)[1] == [True, True, True]
    assert lived(0.75, wait=2)[1] == [False, False, True]


def test_waiting_is_over_for_good_and_looking_on_does_not_end_it() -> None:
    agent, _ = lived(0.75)
    kept = {k: v.clone() for k, v in agent.state_dict().items()}
    inspect(agent, steps(), Draws(1))
    assert all(torch.equal(v, kept[k]) for k, v in agent.state_dict().items())
    agent, _ = lived(0.75, know=True, updates=1)
    agent.update(steps(seed=5), agent.optimizer(), Draws(0, 9))
    assert bool(agent.nets["trust"].over) and agent.main.awake


def test_one_task_waits_for_nothing() -> None:
    agent = MultiTask(replace(TWINS, tasks={}), config(), 0)
    assert "trust" not in agent.nets and agent.main.awake
