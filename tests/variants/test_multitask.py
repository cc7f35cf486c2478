"""The variant `multitask`: whose gradient moves what, scales, discounts, masks, padding, and one task that is the base agent."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polydream.core.agent import Config, Dreamer
from polydream.core.behavior import CriticConfig
from polydream.core.normalizer import NormConfig
from polydream.core.outputs import Categorical, Normal, Squared
from polydream.core.player import Player
from polydream.core.presets import resolve, sized
from polydream.core.rng import Draws
from polydream.core.specs import Member, Space, Spec
from polydream.eval.contract import check_variant
from polydream.variants.branches import Branches, balance
from polydream.variants.embedding import TaskEmbedding
from polydream.variants.multitask import MultiTask, MultiTaskAgentConfig, MultiTaskConfig
from polydream.variants.padding import Mark, OwnCategorical, OwnNormal, Padding, owned
from polydream.variants.units import Units
from polydream.variants.yardstick import TaskNormalizer, TaskObjective, discount
from tests.fixtures import DISCRETE, VECTOR, batch

ALIKE = Member(obs=VECTOR.obs, action=VECTOR.action, limit=100)
SHORT = Member(
    obs={"pos": Space(shape=(2,))}, action={"action": Space(shape=(1,))}, limit=500
)  # one number less of `pos`, no `height`, one action less
NUMBER = {"task": Space(dtype="int32", classes=2)}
TWINS = replace(VECTOR, extras=NUMBER, tasks={"a": ALIKE, "b": ALIKE})
BODIES = replace(VECTOR, extras=NUMBER, tasks={"big": ALIKE, "small": SHORT})
CLASSES = replace(
    DISCRETE, extras=NUMBER, tasks={"big": Member(obs=DISCRETE.obs, action=DISCRETE.action), "small": Member(obs=DISCRETE.obs, action={})}
)


def config(**multitask: Any) -> MultiTaskAgentConfig:
    cfg = sized(MultiTaskAgentConfig(), 16)
    cfg = replace(cfg, rssm=replace(cfg.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=4)
    # A head that starts at zero would pass no gradient on to what feeds it.
    cfg = replace(cfg, reward=replace(cfg.reward, outscale=1.0))
    return replace(cfg, multitask=MultiTaskConfig(embedding=8, **multitask), optim=replace(cfg.optim, lr=1e-2, warmup=0))


def make(spec: Spec = TWINS, **multitask: Any) -> MultiTask:
    return MultiTask(spec, config(**multitask), 0)


def steps(spec: Spec = TWINS, tasks: tuple[int, ...] = (0, 1, 0), seed: int = 0) -> TensorDict:
    """Replayed steps (rows, 7), one task in each row."""
    data = batch(spec, rows=len(tasks), seed=seed)
    data["task"] = torch.tensor(tasks, dtype=torch.int32)[:, None].expand(-1, 7).clone()
    return data


def losses(agent: Dreamer, data: TensorDict) -> tuple[dict[str, torch.Tensor], TensorDict]:
    state, cut, previous = agent.replay_context(data, 1)
    found, post, _ = agent.losses(cut, state, previous, Draws(0))
    return found, post


def grads(module: torch.nn.Module) -> list[torch.Tensor | None]:
    return [p.grad for p in module.parameters()]


# ---------------------------------------------------------------------------------------------------- whose gradient


def test_a_task_trains_its_own_heads_only() -> None:
    agent = make()
    found, _ = losses(agent, steps(tasks=(0, 0)))
    (found["reward"].mean() + found["cont"].mean()).backward()
    for name in ("reward", "cont", "tasks"):
        mine, other = agent.nets[name]  # type: ignore[misc]
        assert any(g is not None and bool(g.any()) for g in grads(mine)), name
        assert all(g is None for g in grads(other)), name
    assert any(g is not None and bool(g.any()) for g in grads(agent.rssm))


def test_an_absent_task_does_not_move_by_momentum() -> None:
    agent = make()
    optimizer = agent.optimizer()
    for step in range(3):
        agent.update(steps(), optimizer, Draws(0, step))
    other = {f"{n}.{k}": v.clone() for n in ("reward", "cont", "tasks") for k, v in agent.nets[n][1].state_dict().items()}  # type: ignore[index]
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items() if k != "step"} for p in agent.nets["reward"][1].parameters()}  # type: ignore[index]
    before = agent.nets["reward"][0].out.weight.clone()  # type: ignore[index]
    agent.update(steps(tasks=(0, 0, 0)), optimizer, Draws(0, 3))
    after = {f"{n}.{k}": v for n in ("reward", "cont", "tasks") for k, v in agent.nets[n][1].state_dict().items()}  # type: ignore[index]
    assert other and all(torch.equal(other[k], after[k]) for k in other)
    assert all(torch.equal(v, optimizer.state[p][k]) for p, kept in moments.items() for k, v in kept.items())
    assert not torch.equal(before, agent.nets["reward"][0].out.weight)  # type: ignore[index]


def test_dreams_do_not_train_the_embedding() -> None:
    agent = make()
    found, _ = losses(agent, steps())
    (found["policy"].mean() + found["value"].mean()).backward()
    assert all(g is None for g in grads(agent.nets["tasks"]))
    agent.zero_grad()
    found, _ = losses(agent, steps())
    found["repval"].mean().backward()
    assert any(g is not None for g in grads(agent.nets["tasks"]))


def test_branches_give_each_row_its_own_head() -> None:
    heads = Branches(3, 5, config().cont)
    for k, head in enumerate(heads):
        for p in head.parameters():
            torch.nn.init.constant_(p, 0.1 * (k + 1))
    x, ids = torch.randn(4, 2, 5), torch.tensor([[2, 0], [0, 2], [2, 2], [0, 0]])
    want = torch.stack([heads[int(i)](row[None]).pred()[0] for row, i in zip(x.flatten(0, 1), ids.flatten(), strict=True)]).reshape(4, 2)
    torch.testing.assert_close(heads(x, ids).pred(), want)


def test_embeddings_have_length_one_and_are_told_apart() -> None:
    table = TaskEmbedding(3, 4)
    for k, row in enumerate(table):
        torch.nn.init.constant_(row.weight, 0.0)  # type: ignore[arg-type]
        row.weight.data[k] = 10.0 ** (k + 1)  # type: ignore[index, union-attr, operator]
    assert table(torch.tensor([[2, 0]])).tolist() == [[[0, 0, 1, 0], [1, 0, 0, 0]]]
    assert float(table[2].weight.detach().norm()) == 1000.0, "reading leaves the weights alone"


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_given_vectors_are_heard_and_stay(tmp_path: Path, suffix: str) -> None:
    path, words = tmp_path / f"words.{suffix}", {"b": [0.0, 3.0] + 6 * [0.0], "a": [4.0] + 7 * [0.0], "c": [1.0]}
    if suffix == "npz":
        np.savez(path, **{k: np.array(v) for k, v in words.items()})
    else:
        path.write_text(json.dumps(words))
    agent = make(vectors=str(path))
    assert agent.nets["tasks"](torch.tensor([1, 0]))[:, :2].tolist() == [[0, 1], [1, 0]]
    assert not list(agent.nets["tasks"].parameters())
    optimizer, data = agent.optimizer(), steps()
    before = agent.nets["tasks"].state_dict()
    agent.update(data, optimizer, Draws(0))
    assert all(torch.equal(v, before[k]) for k, v in agent.nets["tasks"].state_dict().items())
    other = make(vectors=str(path))
    other.nets["tasks"][0].given.neg_()  # type: ignore[index, union-attr, operator]
    first, second = (losses(a, data)[0]["reward"] for a in (make(vectors=str(path)), other))
    same = data["task"][:, : first.shape[1]] == 1
    assert not torch.equal(first[~same], second[~same]) and torch.equal(first[same], second[same])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"b": 8 * [1.0], "aa": 8 * [1.0]}, "has no vector of 'a', only of 'aa'"),
        ({"a": 8 * [1.0], "b": [1.0]}, r"that of 'b' has shape \(1,\), not \(8,\): set multitask.embedding"),
        ({"a": 8 * [0.0], "b": 8 * [1.0]}, "that of 'a' has no direction"),
        (None, "is no .npz or .json file"),
    ],
)
def test_given_vectors_that_do_not_fit_are_named(tmp_path: Path, words: dict[str, list[float]] | None, message: str) -> None:
    path = tmp_path / "words.json"
    if words is not None:
        path.write_text(json.dumps(words))
    with pytest.raises(ValueError, match=message):
        make(vectors=str(path))


def test_given_vectors_that_nobody_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="multitask.vectors: 'words.json' would be read by nobody: name readers in multitask.reads"):
        make(vectors="words.json", reads=())


# ---------------------------------------------------------------------------------------------------- scales and discounts


def advantages(scale: float) -> torch.Tensor:
    """Of 20 dreams, the first 10 of task 0 with its rewards times `scale`."""
    objective = TaskObjective(3, CriticConfig(), mark=Mark(2, 2), discounts=(0.9, 0.9), scales=True, replay=None)
    generator = torch.Generator().manual_seed(0)
    reward = 50 * torch.randn(20, 7, generator=generator)
    ids = torch.arange(20)[:, None].expand(-1, 7) // 10
    reward = torch.where(ids == 0, reward * scale, reward)
    value = Squared(torch.zeros(20, 7), 0)
    value.ids = ids  # type: ignore[attr-defined]
    for _ in range(3):
        judged = objective.judge(value, value, reward, torch.full((20, 7), 0.9))
    return judged.advantage


def test_one_tasks_rewards_leave_the_others_advantages_alone() -> None:
    plain, loud = advantages(1.0), advantages(100.0)
    torch.testing.assert_close(plain[10:], loud[10:], rtol=0, atol=1e-6)
    torch.testing.assert_close(plain[:10], loud[:10], rtol=1e-3, atol=1e-3)  # and its own keep their size


def test_the_critic_predicts_in_each_tasks_unit() -> None:
    units = Units(2)
    units.meet(torch.tensor([[0, 0, 1]]), torch.tensor([[0.5, -0.2, 3.0]]))
    units.meet(torch.tensor([[1, 1, 0]]), torch.tensor([[-10.0, 2.0, 0.9]]))
    with torch.no_grad():
        units.meet(torch.tensor([0]), torch.tensor([50.0]))  # only looked at
    assert units.of(torch.tensor([[0, 1]])).tolist() == [[1.0, 10.0]], "the largest met, at least 1"
    known = {"mark": Mark(2, 2), "discounts": (0.9, 0.9), "scales": True, "replay": None, "units": units.of}
    objective = TaskObjective(3, CriticConfig(slow_weight=0.0, lam=0.5), **known)  # type: ignore[arg-type]
    value = Squared(torch.tensor([[1.0, 2, 3]] * 2), 0)
    value.ids = torch.tensor([[0] * 3, [1] * 3])  # type: ignore[attr-defined]
    reward, cont = torch.tensor([[0.0, 10, 20]] * 2), torch.full((2, 3), 0.5)
    judged = objective.judge(value, value, reward, cont)
    # By hand, value v in raw units: ret_1 = 20 + 0.5 v_2, ret_0 = 10 + 0.5 (0.5 v_1 + 0.5 ret_1).
    want = torch.tensor([[10 + 0.25 * 2 + 0.25 * 21.5, 21.5], [10 + 0.25 * 20 + 0.25 * 35, 35.0]])
    torch.testing.assert_close(judged.returns, want)
    said = torch.stack([want[0], want[1] / 10])
    torch.testing.assert_close(judged.loss, value.loss(torch.cat([said, torch.zeros(2, 1)], 1))[:, :-1])
    no = torch.zeros(2, 3, dtype=torch.bool)
    loss, ret = objective.judge_replay(value, value, reward, want[:, :1].expand(2, 3), no, no)
    said = ret / torch.tensor([[1.0], [10.0]])
    torch.testing.assert_close(loss, value.loss(torch.cat([said, torch.zeros(2, 1)], 1))[:, :-1])


def test_an_agent_meets_the_rewards_it_learns_from() -> None:
    agent, data = make(BODIES), steps(BODIES)
    data["reward"] = torch.where(data["task"] == 1, -40.0, 0.5)
    losses(agent, data)
    assert [float(u.largest) for u in agent.nets["units"]] == [1.0, 40.0]  # type: ignore[union-attr]
    assert make(BODIES, returns="shared").main.terms()["extrinsic"].units is None  # type: ignore[union-attr]


def test_a_scale_waits_for_enough_returns() -> None:
    norm = TaskNormalizer(NormConfig(rate=1.0, limit=1e-3), 2)
    x, ids = torch.arange(40.0).reshape(10, 4), torch.tensor([0] * 8 + [1] * 2)  # 32 and 8 returns
    offset, scale = norm(x, ids)
    assert offset.shape == scale.shape == (10, 1)
    torch.testing.assert_close(scale[:, 0], torch.tensor([31 * 0.9] * 8 + [1e-3] * 2))
    torch.testing.assert_close(offset[:, 0], torch.tensor([31 * 0.05] * 8 + [0.0] * 2))


def test_discounts_follow_the_length_of_episodes() -> None:
    assert [discount(n, 0.99) for n in (500, 50, 5000, None)] == [0.99, 0.95, 0.995, 0.99]
    assert discount(200, 0.9) == 0.975


def test_replayed_returns_take_each_tasks_discount() -> None:
    objective = TaskObjective(3, CriticConfig(lam=0.8), mark=Mark(2, 2), discounts=(0.5, 0.9), scales=False, replay=None)
    reward, boot = torch.tensor([[0.0, 1, 2, 3]] * 2), torch.tensor([[5.0, 6, 7, 8]] * 2)
    value = Squared(torch.zeros(2, 4), 0)
    value.ids = torch.tensor([[0] * 4, [1] * 4])  # type: ignore[attr-defined]
    no = torch.zeros(2, 4, dtype=torch.bool)
    _, found = objective.judge_replay(value, value, reward, boot, no, no)
    want = np.zeros((2, 3))
    for row, gamma in enumerate((0.5, 0.9)):
        ret = 8.0
        for t in (2, 1, 0):
            ret = reward[row, t + 1].item() + gamma * (0.2 * boot[row, t + 1].item() + 0.8 * ret)
            want[row, t] = ret
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)


def test_the_continuation_learns_each_tasks_discount_once() -> None:
    agent = make(BODIES, discount="length")
    data = steps(BODIES)
    data["is_terminal"] = torch.zeros_like(data["is_terminal"])
    found, post = losses(agent, data)
    gamma = torch.tensor([0.95, 0.99])[data["task"][:, 1:].long()]
    torch.testing.assert_close(found["cont"], agent.predict("cont", post).loss(gamma))
    with pytest.raises(ValueError, match="contdisc"):
        MultiTask(BODIES, replace(config(discount="length"), critic=CriticConfig(contdisc=False)), 0)


def test_mean_over_tasks_of_their_means() -> None:
    ids, loss = torch.tensor([[0, 0, 0], [2, 0, 0]]), torch.tensor([[1.0, 2, 3], [100, 4, 5]])
    assert float((loss * balance(ids, 3)).mean()) == pytest.approx((3 + 100) / 2)


# ---------------------------------------------------------------------------------------------------- masks and padding


def test_missing_actions_are_zero_and_weigh_nothing() -> None:
    agent = make(BODIES)
    data = steps(BODIES)
    found, post = losses(agent, data)
    start = post.exclude("logits").detach().reshape(-1)
    with torch.no_grad():
        dream = agent.imagine(start, Draws(1))
    small = dream["task"] == 1
    assert small.any() and (dream["action", "action"][small][:, 1] == 0).all()
    assert (dream["action", "action"][~small][:, 1] != 0).all()
    seen = agent.view(dream)
    one = agent.main.policy(seen)["action"]
    for part in agent.main.policy.outs["action"].values():  # type: ignore[operator, union-attr]
        part.bias.data[1] += 3.0
    other = agent.main.policy(seen)["action"]
    action = dream["action", "action"]
    for before, after in ((one.logp(action), other.logp(action)), (one.entropy(), other.entropy())):
        assert torch.equal(before[small], after[small]) and not torch.equal(before[~small], after[~small])
    assert found["policy"].isfinite().all()


def test_own_normal_is_the_normal_of_its_own_elements() -> None:
    mean, std = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    mask = torch.tensor([True, True, False]).expand(5, 3)
    mine, want = OwnNormal(Normal(mean, std), mask), Normal(mean[:, :2], std[:, :2])
    x = torch.randn(5, 3)
    torch.testing.assert_close(mine.logp(x), want.logp(x[:, :2]))
    torch.testing.assert_close(mine.entropy(), want.entropy())
    assert (mine.sample(Draws(0), "x")[:, 2] == 0).all() and (mine.pred()[:, 2] == 0).all()


def test_own_classes_are_the_only_ones_drawn() -> None:
    mask = torch.tensor([True, True, False]).expand(5000, 3)
    mine = OwnCategorical(Categorical(torch.tensor([0.0, 0.0, 9.0]).expand(5000, 3), 0, 0.5), mask)
    drawn = mine.sample(Draws(0), "x")
    assert (drawn[:, 2] == 0).all() and (drawn.sum(-1) == 1).all()
    torch.testing.assert_close(mine.entropy(), torch.full((5000,), float(np.log(2))))
    torch.testing.assert_close(mine.logp(drawn), torch.full((5000,), float(-np.log(2))))
    alone = OwnCategorical(Categorical(torch.randn(4, 3), 0, 0.1), torch.tensor([True, False, False]).expand(4, 3))
    assert alone.entropy().tolist() == [0.0] * 4


def test_a_task_without_an_action_does_class_zero() -> None:
    agent = make(CLASSES)
    _, post = losses(agent, steps(CLASSES))
    with torch.no_grad():
        dream = agent.imagine(post.exclude("logits").detach().reshape(-1), Draws(1))
    small = dream["task"] == 1
    assert (dream["action", "action"][small].argmax(-1) == 0).all()
    assert (dream["action", "action"][~small].argmax(-1) > 0).any()


def test_padded_observations_cost_nothing() -> None:
    agent = make(BODIES)
    data = steps(BODIES, tasks=(1, 1, 0))
    data["obs", "pos"][:2, :, 2] = 0
    data["obs", "height"][:2] = 0
    found, _ = losses(agent, data)
    assert (found["rec/height"][:2] == 0).all() and (found["rec/height"][2] != 0).any()
    found["rec/pos"][:2].mean().backward(retain_graph=True)
    layer = agent.decoder.outs["pos"]
    assert layer.weight.grad[:2].any() and not layer.weight.grad[2].any()  # type: ignore[union-attr, index]
    own = Padding(BODIES.obs, [t.obs for t in BODIES.tasks.values()])
    mask = own.of("pos", torch.tensor([0, 1]))
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    output = owned(Squared(torch.full((2, 3), 2.0), 1), mask)
    assert output.loss(torch.zeros(2, 3)).tolist() == [12.0, 8.0]


# ---------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("tasks", [{}, {"only": ALIKE}])
def test_one_task_is_the_base_agent(tasks: dict[str, Member]) -> None:
    spec = replace(VECTOR, tasks=tasks, extras={"task": Space(dtype="int32", classes=1)} if tasks else {})
    cfg = config()
    plain = Dreamer(spec, Config(**{f: getattr(cfg, f) for f in Config.__dataclass_fields__}), 0)
    agents = [MultiTask(spec, cfg, 0), plain]
    optimizers = [a.optimizer() for a in agents]
    for step in range(3):
        data = steps(spec, tasks=(0, 0, 0), seed=step)
        one, two = (a.update(data, o, Draws(0, step))[0] for a, o in zip(agents, optimizers, strict=True))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6, msg=name)


def test_the_task_is_that_of_every_step() -> None:
    agent, data = make(), steps()
    data["task"][0, 4:] = 1  # where the fixture begins another episode
    _, post = losses(agent, data)
    assert post["task"].tolist() == data["task"][:, 1:].tolist()
    other = data.clone()
    other["task"][0, 4:] = 0
    with torch.no_grad():
        tokens, changed = agent.encode(data), agent.encode(other)
    assert torch.equal(tokens[0, :4], changed[0, :4]) and not torch.equal(tokens[0, 4:], changed[0, 4:])


def test_dreams_may_be_dreamt_under_another_task() -> None:
    spec = replace(TWINS, extras={"task": Space(dtype="int32", classes=3)}, tasks={"a": ALIKE, "b": ALIKE, "small": SHORT})
    agent = make(spec, swap=1.0)
    assert "repval" not in agent.scales()
    _, post = losses(agent, steps(spec, tasks=(0, 1, 2)))
    assert post["task"][:, 0].tolist() == [0, 1, 2], "replay keeps its own"
    with torch.no_grad():
        dream = agent.imagine(post.exclude("logits").detach().reshape(-1), Draws(1))
    own = post["task"].reshape(-1)
    assert dream["task"][:, 0].tolist() == [{0: 1, 1: 0, 2: 2}[i] for i in own.tolist()]
    assert (dream["task"] == dream["task"][:, :1]).all()


def test_a_step_without_its_task_is_refused() -> None:
    player = Player(make())
    obs = {"pos": np.zeros(3, np.float32), "height": np.float32(0)}
    with pytest.raises(KeyError, match="which of a, b"):
        player.act(obs)
    actions = []
    for task in (0, 0, 1):
        player.initial(1)  # begins the noise anew
        actions.append(player.act(obs | {"task": np.int32(task)}, mode="mode")[0]["action"])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert (actions[0] != actions[2]).any(), "it acts as its task says"


def test_dynamics_hear_the_task_only_when_asked() -> None:
    for reads, hears in ((("encoder", "behavior"), False), (("dynamics",), True)):
        agent = make(reads=reads)
        state = agent.rssm.initial(2).set("task", torch.tensor([0, 1]))
        with torch.no_grad():
            after = agent.rssm.step(state, torch.zeros(2, 2), Draws(0))
        assert torch.equal(after["deter"][0], after["deter"][1]) != hears


def test_the_front_door_trains_on_a_suite() -> None:
    assert resolve({"variant": "multitask"}).task == "suite/world-grid4"
    assert resolve({"variant": "multitask", "suite": "dmc-walker"}).task == "suite/dmc-walker"
    assert resolve({"variant": "multitask", "task": "dmc/walker_walk"}).task == "dmc/walker_walk"
    assert resolve({"variant": "multitask", "preset": "demo"}).task == "suite/world-grid4"
    with pytest.raises(ValueError, match="exclude"):
        resolve({"suite": "dmc-walker", "task": "dmc/walker_walk"})


@pytest.mark.slow
def test_contract() -> None:
    assert check_variant("multitask") == []
