"""The constrained and the language-conditioned example: outside the package, short, and sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from examples.careful import Careful, CarefulConfig, Constrained, Cost, Road
from examples.instructed import BUCKETS, LENGTH, SIDES, VERBS, Instructed, InstructedConfig, Told, words
from polydream.core import registry
from polydream.core.behavior import CriticConfig
from polydream.core.config import leaves, override
from polydream.core.heads import Head, HeadConfig
from polydream.core.rng import Draws
from polydream.eval.contract import check_variant
from polydream.tasks.check import check_task
from tests.fixtures import batch, tiny

ROOT = Path(__file__).parent.parent


def test_examples_are_short_and_import_no_more_than_a_stranger_could() -> None:
    for name in ("careful", "instructed"):
        assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize("task", [Road, Told])
def test_their_tasks_pass_the_check(task: Any) -> None:
    assert check_task(task(), steps=60) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["careful:Careful", "instructed:Instructed"])
def test_they_keep_their_promises(name: str) -> None:
    task = "examples.careful:Road" if "Careful" in name else "examples.instructed:Told"
    assert check_variant(f"examples.{name}", task=task) == []


def little(config: type, **changes: Any) -> Any:
    """A variant's configuration at the size of `tiny`."""
    cfg = config()
    for path, value in {**leaves(tiny()), **changes}.items():
        cfg = override(cfg, path, value)
    return cfg


# ---------------------------------------------------------------------------------------------------- constrained


def judged(cost: Cost, reward: torch.Tensor, update: bool = True) -> None:
    head = Head(3, HeadConfig(outscale=0.0))
    for linear in (m for m in head.modules() if isinstance(m, torch.nn.Linear)):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    value = head(torch.zeros(*reward.shape, 3))
    cost.judge(value, value, reward, torch.ones_like(reward), update)


def test_the_multiplier_follows_the_cost_above_the_limit() -> None:
    cost = Cost(3, CriticConfig(), limit=0.25, rate=0.1)
    reward = torch.tensor([[9.0, 1.0, 0.5], [9.0, 0.0, 1.5]])  # the mean without index 0 is 0.75
    judged(cost, reward)
    assert float(cost.multiplier) == pytest.approx(0.05)
    judged(cost, reward, update=False)
    assert float(cost.multiplier) == pytest.approx(0.05)
    judged(cost, torch.zeros(2, 3))
    assert float(cost.multiplier) == pytest.approx(0.025)
    for _ in range(2):
        judged(cost, torch.zeros(2, 3))
    assert float(cost.multiplier) == 0.0, "never below 0: staying under the limit is not rewarded"


def test_the_combined_advantage_by_hand() -> None:
    main = Careful(Road().spec, little(CarefulConfig)).main
    assert isinstance(main, Constrained)
    main.objectives["cost"].multiplier.fill_(3.0)
    gain = main.combine({"extrinsic": torch.tensor([[2.0]]), "cost": torch.tensor([[-1.0]])})
    assert float(gain) == (2.0 + 3.0 * 1.0) / 4.0


def test_the_road() -> None:
    road = Road()
    road.reset(0)
    rows = [road.step({"action": np.array([1.0], np.float32)}) for _ in range(20)]
    assert [round(float(r["reward"]), 3) for r in rows[:5]] == [0.3, 0.6, 0.9, 1.0, 1.0]
    assert [round(float(r["cost"]), 3) for r in rows[:4]] == [0.09, 0.36, 0.81, 1.0]
    assert rows[-1]["is_last"] and not rows[-1]["is_terminal"] and not rows[-2]["is_last"]


# ---------------------------------------------------------------------------------------------------- language


def test_words_are_numbered_by_themselves() -> None:
    one, other = words("go to the left end"), words("Walk to the LEFT end")
    assert (one[1:5] == other[1:5]).all() and one[0] != other[0]
    assert (one[5:] == BUCKETS).all() and len(one) == LENGTH
    assert len(words("a b c d e f g h i j")) == LENGTH and (words("") == BUCKETS).all()
    heard = {int(words(w)[0]) for w in (*VERBS, *SIDES, "to", "the", "end")}
    assert len(heard) == len(VERBS) + len(SIDES) + 3, "no two words of the toy share a bucket"


def agent(**changes: Any) -> Instructed:
    return Instructed(Told().spec, little(InstructedConfig, **changes), 0)


def test_a_sentence_is_a_bag_of_fixed_words() -> None:
    dreamer = agent()
    said = [dreamer.said(TensorDict({"obs": {"instruction": torch.as_tensor(words(s))[None]}}, [1])) for s in ("a b", "b a", "a", "b", "")]
    torch.testing.assert_close(said[0], said[1])
    torch.testing.assert_close(said[0], said[2] + said[3])
    assert bool((said[4] == 0).all())
    assert not any(p.requires_grad for p in dreamer.nets["words"].parameters())
    torch.testing.assert_close(
        agent(loudness=0.9).said(TensorDict({"obs": {"instruction": torch.as_tensor(words("a"))}}, [])), 3.0 * said[2][0]
    )


def test_what_is_said_reaches_heads_and_actor_and_not_the_model_of_the_world() -> None:
    dreamer = agent()
    data = batch(dreamer.spec, cfg=dreamer.cfg)
    other = data.clone()
    other["obs", "instruction"] = (data["obs", "instruction"] + 1) % BUCKETS
    (one, post), (two, later) = (run(dreamer, d) for d in (data, other))
    assert torch.equal(post["deter"], later["deter"]) and torch.equal(post["logits"], later["logits"])
    assert all(torch.equal(one[k], two[k]) for k in one if k.startswith("rec/") or k in ("dyn", "rep"))
    torch.nn.init.normal_(dreamer.reward.out.weight)
    assert not torch.equal(dreamer.reward(dreamer.latent(post)).pred(), dreamer.reward(dreamer.latent(later)).pred())
    assert not torch.equal(dreamer.view(post), dreamer.view(later))


def run(dreamer: Instructed, data: TensorDict) -> tuple[dict[str, torch.Tensor], TensorDict]:
    state, cut, previous = dreamer.replay_context(data, 1)
    losses, post, _ = dreamer.losses(cut, state, previous, Draws(0))
    return losses, post


def test_the_corridor() -> None:
    task = Told(0)
    seen = set()
    for seed in range(8):
        sentence = task.reset(seed)["obs"]["instruction"]
        side = int((sentence == words("go to the right end"))[3])
        rows = [task.step({"action": np.array(1, np.int32)}) for _ in range(3)]
        assert [float(r["reward"]) for r in rows] == [0.0, 0.0, 1.0 if side else -1.0]
        assert rows[-1]["is_terminal"] and not rows[-2]["is_last"]
        seen.add(side)
    assert seen == {0, 1}


def test_held_out_sentences_are_never_said_in_training() -> None:
    heard: dict[bool, set[bytes]] = {}
    for held in (False, True):
        task = Told(0, held)
        heard[held] = {task.reset(seed)["obs"]["instruction"].tobytes() for seed in range(200)}
    assert not heard[False] & heard[True]
    assert (len(heard[False]), len(heard[True])) == (4, 2)
    single = {word for sentence in heard[False] for word in np.frombuffer(sentence, np.int32)}
    assert {word for sentence in heard[True] for word in np.frombuffer(sentence, np.int32)} <= single, "every word of them is known"


def test_they_combine_with_other_variants() -> None:
    combined = registry.variant("examples.instructed:Instructed+examples.careful:Careful+examples.thrifty:Thrifty")
    assert combined.__name__ == "CarefulInstructedThrifty"
    assert {"limit", "loudness", "price"} <= leaves(combined.Config()).keys()
