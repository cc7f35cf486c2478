"""Parts of the variant `goal`: relabelling, distance, rewards, goals as observations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polydream.core import maths
from polydream.core.behavior import CriticConfig
from polydream.core.heads import HeadConfig
from polydream.core.nets import initialize
from polydream.core.outputs import Squared
from polydream.core.specs import Space, Spec
from polydream.tasks import world
from polydream.variants import arrival, hindsight
from polydream.variants.aims import Aims, choose
from polydream.variants.distance import Distance, fit, misfit, pairs
from polydream.variants.goal import GoalConfig

SHARES = (0.5, 0.3, 0.2)


def firsts(*rows: str) -> torch.Tensor:
    """is_first (B, T) from rows of | and ."""
    return torch.tensor([[mark == "|" for mark in row] for row in rows])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- hindsight


def test_remaining_steps_stop_at_the_next_episode() -> None:
    found = hindsight.remaining(firsts("|...|..", ".|.||..", "......."))
    assert found.tolist() == [[3, 2, 1, 0, 2, 1, 0], [0, 1, 0, 0, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0]]


def test_steps_ahead_are_geometric_and_cut_off() -> None:
    left = torch.tensor([0, 1, 2, 5])
    assert hindsight.ahead(left, torch.zeros(4), 3.0).tolist() == [0, 1, 1, 1]
    assert hindsight.ahead(left, torch.full((4,), 1 - 1e-6), 3.0).tolist() == [0, 1, 2, 5]
    assert hindsight.ahead(left, torch.full((4,), 0.9), 1.0).tolist() == [0, 1, 1, 1], "a mean of 1 is the next step"
    # With success probability 1/3, cut off at 2: P(1) = (1/3) / (1/3 + 2/9) = 0.6.
    assert hindsight.ahead(torch.tensor([2, 2]), torch.tensor([0.59, 0.61]), 3.0).tolist() == [1, 2]
    many = hindsight.ahead(torch.full((20_000,), 1000), noise(20_000), 5.0).float()
    assert abs(float(many.mean()) - 5.0) < 3 * math.sqrt(20.0 / 20_000)


@pytest.mark.parametrize(
    ("left", "commands", "expected"),
    [(9, True, (0.5, 0.3, 0.2)), (9, False, (0.5, 0.5, 0.0)), (0, True, (0.0, 0.8, 0.2)), (0, False, (0.0, 1.0, 0.0))],
)
def test_sources_come_in_their_shares(left: int, commands: bool, expected: tuple[float, ...]) -> None:
    n = 10_000
    source = hindsight.sources(noise(1, n), SHARES, torch.full((1, n), left), commands)
    for which, share in zip((hindsight.FUTURE, hindsight.RANDOM, hindsight.COMMANDED), expected, strict=True):
        assert abs(float((source == which).float().mean()) - share) <= 3 * math.sqrt(share * (1 - share) / n)


def test_goals_stay_in_their_episode_and_come_from_allowed_steps() -> None:
    is_first = firsts(*["|....|..|......."] * 40)
    shape = is_first.shape
    allowed = noise(*shape, seed=4) < 0.7
    left = hindsight.remaining(is_first)
    source = hindsight.sources(noise(*shape), SHARES, left, True)
    index = hindsight.steps_of(source, left, noise(*shape, seed=1), noise(*shape, seed=2), allowed, 4.0)
    own = torch.arange(is_first.numel()).reshape(shape)
    episode = is_first.flatten().cumsum(0)
    future = (source == hindsight.FUTURE) & (episode[index] == episode[own]) & (index > own)
    assert torch.equal(index[source == hindsight.COMMANDED], own[source == hindsight.COMMANDED])
    assert bool(allowed.flatten()[index[source != hindsight.COMMANDED]].all())
    certain = hindsight.steps_of(torch.zeros_like(source), left, noise(*shape, seed=1), noise(*shape), torch.ones_like(allowed), 4.0)
    inside = left > 0
    assert bool((episode[certain] == episode[own])[inside].all()) and bool((certain > own)[inside].all())
    assert float(future.sum()) > 0.25 * future.numel(), "0.5 of the goals, of 13 / 16 of the starts, 0.7 of which are allowed"
    none = hindsight.steps_of(source, left, noise(*shape), noise(*shape), torch.zeros_like(allowed), 4.0)
    assert torch.equal(none, own), "where nothing is allowed every step names itself"


def test_random_goals_are_uniform_over_allowed_steps() -> None:
    allowed = torch.zeros(100, 100, dtype=torch.bool)
    allowed[0, [3, 50, 77]] = True
    source = torch.full((100, 100), hindsight.RANDOM)
    index = hindsight.steps_of(source, torch.zeros_like(source), noise(100, 100), noise(100, 100, seed=1), allowed, 2.0)
    counts = torch.bincount(index.flatten(), minlength=100)[[3, 50, 77]]
    assert int(counts.sum()) == 10_000 and bool(((counts - 10_000 / 3).abs() < 3 * math.sqrt(10_000 * 2 / 9)).all())


def test_the_pool_keeps_the_newest() -> None:
    pool = hindsight.Pool({"x": Space(shape=(2,))}, 4)
    pick, kind = torch.tensor([0.0, 0.5, 0.99]), torch.zeros(3, dtype=torch.int64)
    nothing, there = pool.draw(pick, kind)
    assert nothing["x"].tolist() == [[0.0, 0.0]] * 3 and not there.any()
    batch = {"x": torch.arange(12.0).reshape(2, 3, 2)}
    pool.add(batch, pick, torch.zeros(2, 3, dtype=torch.int64))
    assert pool.draw(pick, kind)[0]["x"].tolist() == [[0.0, 1.0], [6.0, 7.0], [10.0, 11.0]]
    pool.add({"x": batch["x"] + 100}, pick, torch.zeros(2, 3, dtype=torch.int64))
    assert pool.state_dict()["goal0"][:, 0].tolist() == [106.0, 110.0, 10.0, 100.0] and int(pool.state_dict()["count"]) == 6


def test_the_pool_gives_goals_of_the_task_that_asks() -> None:
    pool = hindsight.Pool({"x": Space()}, 8)
    kind = torch.tensor([[0, 0, 0], [1, 1, 1]])
    pool.add({"x": torch.tensor([[0.0, 1, 2], [10, 11, 12]])}, torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 0.99]), kind)
    pick = torch.rand(90, generator=torch.Generator().manual_seed(0))
    given, there = pool.draw(pick, torch.arange(3).repeat(30))
    assert [sorted(set(given["x"][k::3].tolist())) for k in range(3)] == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [0.0]]
    assert there.tolist() == [True, True, False] * 30, "of the third task there is nothing yet"


def test_a_random_goal_is_of_the_same_task_and_each_allowed_step_of_it_as_likely() -> None:
    kind = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    allowed = torch.tensor([[True, True, False, False], [True, True, False, True]])
    source = torch.full((2, 4), hindsight.RANDOM)
    left, picked = torch.zeros_like(source), torch.zeros(8, 8)
    for seed in range(3000):
        index = hindsight.steps_of(source, left, noise(2, 4), noise(2, 4, seed=seed), allowed, 4.0, kind)
        picked[torch.arange(8), index.flatten()] += 1 / 3000
    shares = torch.zeros(8, 8)
    shares[[0, 5]] = torch.tensor([0.5, 0, 0, 0, 0, 0.5, 0, 0])
    shares[[1, 2, 4, 7]] = torch.tensor([0, 1 / 3, 0, 0, 1 / 3, 0, 0, 1 / 3])
    shares[3, 3] = shares[6, 6] = 1  # no step of task 2 may be a goal: each names itself
    torch.testing.assert_close(picked, shares, rtol=0, atol=0.035)  # 4 standard errors


# ---------------------------------------------------------------------------------------------------- distance


def distance(inputs: int = 3, seed: int = 0) -> Distance:
    net = Distance(inputs, 16, 2)
    initialize(net, seed)
    return net


def test_distance_is_zero_at_the_goal_and_obeys_the_triangle_inequality() -> None:
    net = distance()
    a, b, c = noise(3, 200, 3).mul(4).unbind(0)
    assert float(net(a, a).detach().abs().max()) == 0.0
    assert float(net(a, b).min()) > 0 and not torch.allclose(net(a, b), net(b, a)), "one way may be longer"
    assert bool((net(a, c) <= net(a, b) + net(b, c) + 1e-5).all())


def test_a_distance_is_the_mean_of_ways_or_leans_to_the_short_ones() -> None:
    """Four ways of 1, 1, 1 and 5 steps: the mean is 2. The expectile e is where e times what is above equals 1 - e times what is below."""
    steps = torch.tensor([1.0, 1.0, 1.0, 5.0])
    guess = torch.tensor(2.0, requires_grad=True)
    for expectile, wanted in ((0.5, 2.0), (0.1, 1 + 4 * 0.1 / 2.8), (0.9, 1 + 4 * 0.9 / 1.2)):
        (slope,) = torch.autograd.grad(misfit(guess - 2 + wanted, steps, expectile).mean(), guess)
        assert float(slope) == pytest.approx(0, abs=1e-6), expectile
    assert torch.equal(misfit(steps, steps.flip(0), 0.5), (steps - steps.flip(0)).square())
    with pytest.raises(ValueError, match="goal.expectile"):
        GoalConfig(expectile=1.0)


def test_pairs_are_labelled_by_their_steps_and_negatives_by_one() -> None:
    left = hindsight.remaining(firsts("|...|.", "......"))
    ones, zeros = torch.full((2, 6), 1 - 1e-6), torch.zeros(2, 6)
    index, label = pairs(left, 2, 0.0, ones, zeros, zeros)
    assert index.tolist() == [[2, 3, 3, 3, 5, 5], [8, 9, 10, 11, 11, 11]]
    assert label.tolist() == [[1.0, 1.0, 0.5, 0.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0, 0.5, 0.0]]
    index, label = pairs(left, 2, 1.0, ones, zeros, noise(2, 6))
    assert bool((index // 6 == torch.tensor([[1], [0]])).all()) and bool((label == 1).all())
    index, label = pairs(left[:1], 2, 1.0, zeros[:1], zeros[:1], zeros[:1])
    assert index.tolist() == [[0, 1, 2, 3, 4, 5]] and bool((label == 0).all()), "one sequence has no other"


def test_the_loss_of_a_step_is_the_mean_over_its_partners() -> None:
    """Beside the formula pair by pair: the network of both embeddings, on partners that are drawn one after another."""
    net, seen, left = distance(), noise(2, 6, 3), hindsight.remaining(firsts("|...|.", "......"))
    pairing, cfg = noise(2, 6, 4, 3, seed=1), GoalConfig(reach=2, negatives=0.3, expectile=0.2)
    one_by_one = []
    for p in range(4):
        index, label = pairs(left, 2, 0.3, *pairing[:, :, p].unbind(-1))
        one_by_one.append(misfit(net(seen, seen.flatten(0, 1)[index]), label, 0.2))
    assert not torch.equal(one_by_one[0], one_by_one[1])
    torch.testing.assert_close(fit(net, seen, left, pairing, cfg), torch.stack(one_by_one).mean(0))


def test_distance_learned_from_random_walks_orders_cells_by_steps() -> None:
    from scipy.stats import spearmanr

    task = world.make("fourrooms")
    free, spots = task._free, task._spots
    ways = np.stack([_steps_away(free, s)[tuple(spots.T)] for s in spots])
    rng = np.random.default_rng(0)
    walks = np.zeros((64, 64, 2), int)
    walks[:, 0] = spots[rng.integers(len(spots), size=64)]
    for t in range(1, 64):
        there = walks[:, t - 1] + np.array(world.MOVES)[rng.integers(5, size=64)]
        walks[:, t] = np.where(free[tuple(there.T)][:, None], there, walks[:, t - 1])
    hot = torch.cat([torch.nn.functional.one_hot(torch.as_tensor(walks[..., i]), 11).float() for i in (0, 1)], -1)
    net = Distance(22, 64, 2)
    initialize(net, 0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    is_first = torch.zeros(64, 64, dtype=torch.bool)
    for step in range(300):
        index, label = pairs(hindsight.remaining(is_first), 15, 0.1, *noise(3, 64, 64, seed=step).unbind(0))
        loss = (net(hot, hot.flatten(0, 1)[index]) - label).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cells = torch.cat([torch.nn.functional.one_hot(torch.as_tensor(spots[:, i]), 11).float() for i in (0, 1)], -1)
    with torch.no_grad():
        found = net(cells[:, None].expand(-1, 68, -1), cells[None].expand(68, -1, -1)).numpy()
    near = ways <= 15
    assert spearmanr(found.ravel(), ways.ravel())[0] >= 0.7 and spearmanr(found[near], ways[near])[0] >= 0.7
    means = [found[ways == k].mean() for k in (0, 1, 4, 8)]
    assert means == sorted(means) and means[0] == 0.0


def _steps_away(free: np.ndarray, cell: np.ndarray) -> np.ndarray:
    far = np.full(free.shape, 10**6)
    far[tuple(cell)] = 0
    for _ in range(40):
        for row, column in world.MOVES[1:]:
            far = np.where(free, np.minimum(far, np.roll(far, (row, column), (0, 1)) + 1), 10**6)
    return far


# ---------------------------------------------------------------------------------------------------- arrival


def test_every_reward_is_one_at_the_goal_and_in_the_unit_interval() -> None:
    goal = maths.symlog(torch.tensor([[0.0, 1.0, 0.0], [2.0, -3.0, 10.0]]))
    assert arrival.match(goal, goal, 0.0).tolist() == [1.0, 1.0]
    off = maths.symlog(maths.symexp(goal) + torch.tensor([0.3, 0.0, 0.39]))
    assert arrival.match(off, goal, 0.5).tolist() == [1.0, 1.0] and arrival.match(off, goal, 0.49).tolist() == [0.0, 0.0]
    a, b = noise(2, 500, 7).sub(0.5).unbind(0)
    near = arrival.cosine(a, b)
    torch.testing.assert_close(arrival.cosine(a, a), torch.ones(500), rtol=0, atol=1e-5)
    torch.testing.assert_close(arrival.cosine(a, -a), torch.zeros(500), rtol=0, atol=1e-5)
    assert bool(((near >= 0) & (near <= 1)).all())
    assert arrival.nearness(torch.tensor([0.0, 0.25, 1.0, 7.0])).tolist() == [1.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("contdisc", [True, False])
def test_the_goal_ends_the_return_and_has_its_own_discount(contdisc: bool) -> None:
    cfg = CriticConfig(contdisc=contdisc, horizon=100, lam=1.0)
    reward, value = torch.tensor([[9.0, 0.0, 1.0, 1.0]]), torch.full((1, 4), 5.0)
    cont = torch.full((1, 4), cfg.discount if contdisc else 1.0)
    ends = arrival.GoalObjective(3, cfg, 2, 1.0, absorbing=True)
    torch.testing.assert_close(ends.returns(reward, cont, value, value)[0], torch.tensor([[0.5, 1.0, 1.0]]))
    stays = arrival.GoalObjective(3, cfg, 2, 1.0, absorbing=False)
    # From the last: 1 + 5/2, then 1 + 3.5/2, then 0 + 2.75/2.
    torch.testing.assert_close(stays.returns(reward, cont, value, value)[0], torch.tensor([[1.375, 2.75, 3.5]]))


def test_what_a_dream_does_after_arriving_teaches_nothing() -> None:
    cfg = CriticConfig(head=HeadConfig(dist="mse"), slow_weight=0.0)
    reward = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    value, cont = torch.full((2, 5), 0.25), torch.ones(2, 5)
    for absorbing, going in ((True, [[True, True, False, False], [True] * 4]), (False, [[True] * 4] * 2)):
        objective = arrival.GoalObjective(3, cfg, 33, 1.0, absorbing=absorbing)
        judged = objective.judge(Squared(value, 0), Squared(value, 0), reward, cont)
        assert (judged.loss > 0).tolist() == (judged.advantage != 0).tolist() == going


# ---------------------------------------------------------------------------------------------------- aims

SPEC = Spec(
    obs={
        "pos": Space(shape=(2,)),
        "room": Space(dtype="int32", classes=3),
        "image": Space(shape=(4, 4, 3), dtype="uint8"),
        "goal_pos": Space(shape=(2,)),
        "goal_room": Space(dtype="int32", classes=3),
        "goal_else": Space(),
    },
    action={"action": Space(shape=(1,))},
)


def test_goal_keys_follow_gymnasium_or_name_their_observation() -> None:
    assert SPEC.goals == {"goal_pos": "pos", "goal_room": "room"}, "goal_else has no observation beside it"
    env = Spec(obs={k: Space(shape=(2,)) for k in ("observation", "achieved_goal", "desired_goal")}, action=SPEC.action)
    assert env.goals == {"desired_goal": "achieved_goal"}
    other = Spec(obs={"x": Space(shape=(2,)), "goal_x": Space(shape=(3,))}, action=SPEC.action)
    assert other.goals == {}, "a goal of another shape cannot be achieved"


def steps(**obs: torch.Tensor) -> TensorDict:
    return TensorDict({"obs": obs}, [2])


def test_a_goal_is_reached_within_the_tolerance_over_all_its_keys() -> None:
    aims = Aims(SPEC)
    data = steps(
        pos=torch.tensor([[0.3, 0.4], [0.3, 0.4]]),
        room=torch.tensor([1, 1]),
        goal_pos=torch.zeros(2, 2),
        goal_room=torch.tensor([1, 2]),
    )
    assert aims.reached(data, 0.5001).tolist() == [True, False] and aims.reached(data, 0.49).tolist() == [False, False]
    assert aims.reached(data, 1.6).tolist() == [True, True], "another class is sqrt(2) away, sqrt(2.25) in all"
    with pytest.raises(KeyError, match="the goal 'goal_room' is missing"):
        aims.desired(steps(pos=torch.zeros(2, 2), goal_pos=torch.zeros(2, 2)))


def test_goals_as_numbers_and_as_sights() -> None:
    aims = Aims(SPEC)
    goal = {"pos": torch.tensor([[math.e - 1, 0.0], [0.0, 1 - math.e]]), "room": torch.tensor([2, 0])}
    torch.testing.assert_close(aims.vector(goal), torch.tensor([[1.0, 0, 0, 0, 1], [0.0, -1, 1, 0, 0]]))
    assert aims.width == 5 and not aims.imaged
    seen = aims.sight(goal, steps(pos=torch.zeros(2, 2), room=torch.zeros(2), image=torch.ones(2, 4, 4, 3)))["obs"]
    assert torch.equal(seen["pos"], goal["pos"]) and int(seen["image"].sum()) == 0 and torch.isneginf(seen["goal_else"]).all()
    mixed = choose(torch.tensor([True, False]), goal, {"pos": torch.zeros(2, 2), "room": torch.ones(2).long()})
    assert mixed["room"].tolist() == [2, 1] and mixed["pos"][1].tolist() == [0.0, 0.0]
    whole = Aims(Spec(obs={"image": SPEC.obs["image"], "pos": SPEC.obs["pos"]}, action=SPEC.action))
    assert set(whole.spaces) == {"image", "pos"} and whole.imaged and not whole.commands
