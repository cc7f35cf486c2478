"""The variant `goal` and `goexplore`: scopes, hiding, alignment, acting, and the promises that every variant makes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polydream.core import maths, registry
from polydream.core.agent import Dreamer
from polydream.core.config import override
from polydream.core.player import Player
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from polydream.eval.contract import check_variant
from polydream.eval.goals import achieved, attempt, goal_grid
from polydream.tasks import world
from polydream.variants.goal import Goal
from tests.fixtures import DISCRETE, IMAGE, VECTOR, batch, tiny

TOLD = Spec(
    obs={"x": Space(shape=(3,)), "y": Space(shape=(2,)), "goal_x": Space(shape=(3,)), "goal_y": Space(shape=(2,))}, action=DISCRETE.action
)
PICTURED = Spec(obs={**IMAGE.obs, "goal_image": IMAGE.obs["image"]}, action=IMAGE.action)


def make(spec: Spec = TOLD, name: str = "goal", **settings: Any) -> Any:
    """A tiny agent of a variant, with settings by path (`goal__reward` for goal.reward)."""
    cls, base = registry.variant(name), tiny()
    cfg = replace(cls.Config(), **{f.name: getattr(base, f.name) for f in fields(base)})
    for path, value in settings.items():
        cfg = override(cfg, path.replace("__", "."), value)
    return cls(spec, cfg, 0)


def losses(agent: Dreamer, data: TensorDict) -> tuple[dict[str, torch.Tensor], TensorDict]:
    state, cut, previous = agent.replay_context(data, 1)
    found = agent.losses(cut, state, previous, Draws(0))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("variant", "task"),
    [("goal", "world/fourrooms"), ("goal", "world/reach"), ("goexplore", ""), ("goal+goexplore", "world/fourrooms")],
)
def test_the_variants_keep_their_promises(variant: str, task: str) -> None:
    assert check_variant(variant, task=task) == []


# ---------------------------------------------------------------------------------------------------- what the model may know


@pytest.mark.parametrize("spec", [TOLD, PICTURED], ids=["numbers", "images"])
def test_commanded_goals_are_hidden_from_the_model(spec: Spec) -> None:
    agent, data = make(spec), batch(spec)
    other = data.clone()
    for key in spec.goals:
        other["obs", key] = torch.roll(data["obs", key], 1, 0)
    assert not set(spec.goals) & {*agent.encoder.vectors, *agent.encoder.images, *agent.decoder.vectors, *agent.decoder.images}
    (first, post), (second, same) = losses(agent, data), losses(agent, other)
    assert all(torch.equal(post[k], same[k]) for k in ("deter", "stoch", "logits"))
    assert all(torch.equal(first[k], second[k]) for k in first if k.startswith(("rec/", "dyn", "rep", "achieved")))
    assert not torch.equal(post["goal"], same["goal"]), "commanded shares of the dreams follow the command"


def test_the_tasks_reward_teaches_nothing_unless_it_has_a_weight() -> None:
    def weights(reward: float, **settings: Any) -> dict[str, torch.Tensor]:
        agent = make(**settings)
        optimizer, data = agent.optimizer(), batch(TOLD)
        data["reward"] = torch.full_like(data["reward"], reward)
        for step in range(2):
            agent.update(data, optimizer, Draws(0, step))
        return agent.state_dict()

    with_it, without = weights(5.0), weights(0.0)
    assert all(torch.equal(with_it[k], without[k]) for k in with_it)
    with_it, without = weights(5.0, goal__extrinsic=1.0), weights(0.0, goal__extrinsic=1.0)
    assert not all(torch.equal(with_it[k], without[k]) for k in with_it if k.startswith("nets.reward"))


def test_losses_of_achievements_and_distances_touch_only_their_own() -> None:
    agent = make(goal__reward="distance")
    found, _ = losses(agent, batch(TOLD))
    (found["achieved"].mean() + found["distance"].mean()).backward()
    touched = {n.split(".")[1] for n, p in agent.named_parameters() if p.grad is not None}
    assert touched == {"achieved", "distance"}


def test_success_is_a_truncation_unless_asked_otherwise() -> None:
    data = batch(TOLD)
    data["is_terminal"] = torch.zeros_like(data["is_terminal"])
    data["is_terminal"][0, 3] = data["is_terminal"][1, 3] = True
    for goal, now in TOLD.goals.items():
        data["obs", goal][0, 3] = data["obs", now][0, 3]
        data["obs", goal][1, 3] = data["obs", now][1, 3] + 3
    kept = make().prepare(data, Draws(0))["is_terminal"]
    assert kept.nonzero().tolist() == [[1, 3]], "the end by success is gone, the other end stays"
    assert torch.equal(make(goal__success_ends=True).prepare(data, Draws(0))["is_terminal"], data["is_terminal"])
    assert int(data["is_terminal"].sum()) == 2, "the batch itself is left as it was"


# ---------------------------------------------------------------------------------------------------- goals of dreams


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)], ids=["future", "random", "commanded"])
def test_each_dream_pursues_a_goal_of_its_own_start(shares: tuple[float, float, float]) -> None:
    """Every step achieves the number of its place, so a dream's goal says which step it came from."""
    agent = make(goal__future=shares[0], goal__random=shares[1], goal__commanded=shares[2], goal__ahead=2.0)
    rows, steps = 3, 8
    data = batch(TOLD, rows, steps)
    place = torch.arange(rows * steps).reshape(rows, steps).float()
    data["obs", "x"], data["obs", "goal_x"] = place[..., None].expand(-1, -1, 3), -1 - place[..., None].expand(-1, -1, 3)
    starts: list[TensorDict] = []
    imagine = agent.imagine
    agent.imagine = lambda start, draws: starts.append(start) or imagine(start, draws)
    losses(agent, data)
    cut = place[:, 1:].flatten()
    source = maths.symexp(starts[0]["goal"][:, 0]).round()
    if shares[2]:
        assert torch.equal(source, -1 - cut)
    elif shares[0]:
        episode = data["is_first"].flatten().cumsum(0).reshape(rows, steps)
        is_last = torch.cat([episode[:, 1:] != episode[:, :-1], torch.ones(rows, 1, dtype=torch.bool)], 1)
        whose = episode.flatten()
        for own, goal, last in zip(cut.long(), source.long(), is_last[:, 1:].flatten(), strict=True):
            assert last or (whose[own] == whose[goal] and goal > own)
    else:
        assert len(set(source.tolist())) > 5 and not torch.equal(source, cut) and set(source.tolist()) <= set(cut.tolist())


def test_no_dream_starts_at_its_goal() -> None:
    """Half of the steps are in one place: their future is there, too, and what they are told is that place."""
    agent, data = make(goal__random=0.0, goal__commanded=0.5), batch(TOLD, 4, 9)
    data["obs", "y"], data["obs", "goal_y"] = torch.zeros(4, 9, 2), torch.zeros(4, 9, 2)
    data["obs", "x"] = torch.tensor([0.0, 0.0, 1.0, 2.0])[:, None, None].expand(4, 9, 3).clone()
    data["obs", "goal_x"] = data["obs", "x"].clone()
    goal = agent.aims.achieved(data)
    start = torch.stack([agent._relabel(data, Draws(0, i), False)["x"][..., 0] for i in range(20)])
    same = (start == goal["x"][..., 0]).float().mean((0, 2))
    # A random step takes the goal's place, which is the same place with probability 1/2, 1/2, 1/4, 1/4.
    torch.testing.assert_close(same, torch.tensor([0.5, 0.5, 0.25, 0.25]), atol=0.12, rtol=0)


@pytest.mark.parametrize("reward", ["match", "distance", "cosine"])
def test_a_goal_stays_the_same_throughout_a_dream_and_pays_most_there(reward: str) -> None:
    agent = make(goal__reward=reward)
    _, post = losses(agent, batch(TOLD))
    with torch.no_grad():
        dream = agent.imagine(post.exclude("logits").reshape(-1), Draws(0))
        there = dream.copy()
        there["goal"] = agent.nets["achieved"](agent.latent(dream))
        if reward == "cosine":
            there["goal_latent"] = agent.latent(dream)
        paid, most = agent.rewards(dream)["goal"], agent.rewards(there)["goal"]
    assert bool((dream["goal"] == dream["goal"][:, :1]).all())
    torch.testing.assert_close(most, torch.ones_like(most), rtol=0, atol=1e-5)
    assert bool((paid >= 0).all()) and bool((paid <= 1 + 1e-5).all())


def test_a_match_has_no_slope_for_an_actor() -> None:
    with pytest.raises(ValueError, match="goal.reward=match has no slope"):
        make(actor__grad="dynamics")
    with pytest.raises(ValueError, match="goal.future, goal.random and goal.commanded are shares"):
        make(goal__future=-0.1)
    agent = make(actor__grad="dynamics", goal__reward="distance")
    losses(agent, batch(TOLD))[0]["policy"].mean().backward()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_are_goals_and_the_report_shows_attempts(precision: Any) -> None:
    agent = make(PICTURED)
    agent.accelerate(precision)
    assert agent.kind == "distance" and make().kind == "match"
    _, pictures = agent.report(batch(PICTURED), Draws(0))
    shown = pictures["goal/image"]
    seen, dreamed = 3, 4
    assert shown["truth"].shape == shown["model"].shape == (3, seen + dreamed, 64, 64, 3)
    data = batch(PICTURED)
    for row, end in enumerate((3, 6, 6)):  # the first episode of row 0 ends at step 3
        torch.testing.assert_close(shown["truth"][row, 0], data["obs", "image"][row, end].float() / 255)
    assert bool((shown["truth"] == shown["truth"][:, :1]).all()) and float(shown["model"].min()) >= 0
    assert "goal/image" not in make(PICTURED, goal__weight=0.0).report(batch(PICTURED), Draws(0))[1]


# ---------------------------------------------------------------------------------------------------- acting


def step(first: bool, value: float, n: int = 1) -> TensorDict:
    obs = {"x": torch.zeros(n, 3), "y": torch.zeros(n, 2), "goal_x": torch.full((n, 3), value), "goal_y": torch.zeros(n, 2)}
    flags = {"is_first": torch.full((n,), first), "is_last": torch.zeros(n, dtype=torch.bool)}
    return TensorDict({"obs": obs, **flags}, [n])


def test_an_episode_keeps_the_goal_it_was_given() -> None:
    agent, state = make(), make().initial(1)
    told = []
    for t, (first, value) in enumerate([(True, 1.0), (False, 2.0), (True, 3.0), (False, 4.0)]):
        _, state = agent.policy(step(first, value), state, Draws(0, t))
        told.append(round(float(maths.symexp(state["goal"][0, 0])), 4))
    assert told == [1.0, 1.0, 3.0, 3.0]


def test_practice_is_for_training_and_for_tasks_without_goals() -> None:
    agent = make(goal__practice=1.0)
    given = agent.policy(step(True, 7.0), agent.initial(1), Draws(0))[1]["goal"]
    assert float(maths.symexp(given[0, 0])) == pytest.approx(7.0), "nothing to practise yet"
    agent.update(batch(TOLD), agent.optimizer(), Draws(0))
    pooled = {round(float(v), 4) for v in agent.nets["pool"].goal0[:, 0]}
    chosen = agent.policy(step(True, 7.0, 8), agent.initial(8), Draws(0))[1]["goal"]
    assert {round(float(v), 4) for v in maths.symexp(chosen[:, 0])} <= pooled
    task = agent.eval().policy(step(True, 7.0, 8), agent.initial(8), Draws(0))[1]["goal"]
    torch.testing.assert_close(maths.symexp(task[:, 0]), torch.full((8,), 7.0))
    free = make(VECTOR)
    free.update(batch(VECTOR), free.optimizer(), Draws(0))
    obs = {"pos": torch.zeros(4, 3), "height": torch.zeros(4)}
    data = TensorDict({"obs": obs, "is_first": torch.ones(4, dtype=torch.bool)}, [4])
    goals = free.policy(data, free.initial(4), Draws(0))[1]["goal"]
    assert bool((goals.abs().sum(-1) > 0).all())


def test_a_player_passes_goals_on_and_never_practises() -> None:
    player = Player(make(goal__practice=1.0))
    player.agent.update(batch(TOLD), player.agent.optimizer(), Draws(0))
    obs = {"x": np.zeros(3), "y": np.zeros(2), "goal_x": np.full(3, 7.0), "goal_y": np.zeros(2)}
    _, state = player.act(obs)
    assert float(maths.symexp(state["goal"][0, 0])) == pytest.approx(7.0) and player.agent.training
    with pytest.raises(KeyError, match="the goal 'goal_y' is missing"):
        player.act({k: v for k, v in obs.items() if k != "goal_y"})


# ---------------------------------------------------------------------------------------------------- go, then explore


def test_going_ends_at_the_goal_or_in_time_and_only_in_training() -> None:
    agent = make(name="goal+goexplore", go__share=1.0, go__limit=3)
    near = [0.0]
    agent.arrived = lambda state: torch.full(state.batch_size, near[0])
    state, left = agent.initial(1), []
    for t in range(9):
        near[0] = 1.0 if t == 7 else 0.0
        _, state = agent.policy(step(t in (0, 5), 1.0), state, Draws(0, t))
        left.append(int(state["go"]))
    assert left == [3, 2, 1, 0, 0, 3, 2, 0, 0]
    assert int(agent.eval().policy(step(True, 1.0), agent.initial(1), Draws(0))[1]["go"]) == -1
    _, post = losses(agent.train(), batch(TOLD))
    dream = agent.imagine(post.exclude("logits").reshape(-1), Draws(0))
    assert bool((dream["go"] == -1).all()), "dreams only go"


def test_exploring_is_random_or_the_explorers() -> None:
    alone = make(name="goal+goexplore", go__share=1.0, go__limit=0)
    with torch.no_grad():
        alone.main.policy.outs["action"]["logits"].bias[0] = 1e3
    drawn = [int(alone.policy(step(True, 1.0), alone.initial(1), Draws(0, t))[0]["action"]) for t in range(60)]
    assert np.bincount(drawn, minlength=3).min() > 8, "uniform, though the policy would always take 0"
    both = make(name="ensemble+goal+goexplore", go__share=1.0, go__limit=2, ensemble__episodes=0.0)
    state, who = both.initial(1), []
    for t in range(4):
        _, state = both.policy(step(t == 0, 1.0), state, Draws(0, t))
        who.append(bool(state["explore"]))
    assert who == [False, False, True, True]


# ---------------------------------------------------------------------------------------------------- judging


class Walker:
    """Walks in the four rooms straight to its goal, by a table of distances."""

    def __init__(self) -> None:
        self.free = world.make("fourrooms")._free

    def initial(self, n: int) -> None:
        return None

    def act(self, obs: Any, state: Any, *, is_first: np.ndarray, mode: str) -> tuple[dict[str, np.ndarray], None]:
        actions = []
        for row in range(len(is_first)):
            at, to = ((int(obs[p + "y"][row]), int(obs[p + "x"][row])) for p in ("", "goal_"))
            far = self._far(to)
            moves = [far[at[0] + r, at[1] + c] for r, c in world.MOVES]
            actions.append(int(np.argmin(moves)))
        return {"action": np.array(actions)}, None

    def _far(self, cell: tuple[int, int]) -> np.ndarray:
        far = np.where(self.free, 10**5, 10**6)
        far[cell] = 0
        for _ in range(30):
            for r, c in world.MOVES[1:]:
                far = np.where(self.free, np.minimum(far, np.roll(far, (r, c), (0, 1)) + 1), 10**6)
        return far


def test_judging_by_ones_own_goal_whatever_one_was_told() -> None:
    makers = [lambda goal=goal: world.make("fourrooms", goal=goal) for goal in (0, 20, 40, 67)]
    tries = attempt(Walker(), makers, seed=0, pictures=True)
    assert all(t.reached and t.final for t in tries)
    assert goal_grid(tries, 2).shape == (2 * 328, 2 * 328, 3)
    walker = Walker()
    for one in tries:
        at, to = ((int(one.first[p + "y"]), int(one.first[p + "x"])) for p in ("", "goal_"))
        assert one.steps == walker._far(to)[at], "a straight walk takes the fewest steps"
    swapped = attempt(Walker(), makers, seed=0, told=[3, 2, 1, 0])
    assert sum(t.reached for t in swapped) <= 1
    with pytest.raises(ValueError, match="names no goals"):
        achieved(VECTOR, {}, 0.5)


def test_four_rooms_give_goals_as_pictures() -> None:
    task = world.make("fourrooms", obs="pixels", size=11, goal=0, seen=False)
    assert task.spec.goals == {"goal_image": "image"}
    task.reset(0)
    task._cell = np.array([3, 2])
    obs = task.step({"action": np.array(4)})["obs"]
    assert tuple(obs["image"][3, 3]) == world.AGENT and tuple(obs["image"][1, 1]) == world.FLOOR
    assert tuple(obs["goal_image"][1, 1]) == world.AGENT and tuple(obs["goal_image"][3, 3]) == world.FLOOR
    assert isinstance(make(Spec(obs={k: Space(shape=(64, 64, 3), dtype="uint8") for k in obs}, action=DISCRETE.action)), Goal)
