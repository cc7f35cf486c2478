"""Collecting beside learning (`env.ahead`): what is counted, what acts, that both happen at once, and that timing decides nothing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.callback import callback_handler

from polydream.core.config import ConfigError
from polydream.core.faults import FILE
from polydream.core.log import read_metrics
from polydream.core.rng import Draws
from polydream.core.train import Trainer
from polydream.core.worker import EnvError
from polydream.eval.judge import Judge
from tests.faults.harness import contents, rows, same_rows, tiny

PATIENCE = 60.0
"""Seconds to wait for what must happen at once; only a failure takes so long."""


def ran(place: Path, beside: bool = True, **options: Any) -> str:
    """Fingerprint of a run with evaluations. beside: whether flights run beside updates, or each is waited for before them."""
    with Trainer(tiny(place, **{"steps": 80, "eval__every": 40, "eval__episodes": 1} | options), Judge()) as trainer:
        if not beside:
            start = trainer.flight.start  # type: ignore[union-attr]
            trainer.flight.start = lambda rows, decisions, beside=False: start(rows, decisions, False)  # type: ignore[method-assign, union-attr]
        trainer.run()
        return contents(trainer)


def test_timing_decides_nothing_and_how_far_ahead_decides_what_is_learned(tmp_path: Path) -> None:
    short: dict[str, Any] = {"env__ahead": 2, "precision": "bfloat16"}  # the harder case: casts of weights are kept for all threads
    beside, waited = ran(tmp_path / "beside", **short), ran(tmp_path / "waited", beside=False, **short)
    assert beside == waited and same_rows(rows(tmp_path / "beside"), rows(tmp_path / "waited"))
    assert len({beside, ran(tmp_path / "less", **short | {"env__ahead": 1}), ran(tmp_path / "in turn", **short | {"env__ahead": 0})}) == 3


@pytest.mark.parametrize("ahead", [1, 3])
def test_updates_lag_behind_the_train_ratio_by_one_flight(ahead: int, tmp_path: Path) -> None:
    """Half an update per row from the first update on; rows of the flight in the air are not stored yet and do not count."""
    with Trainer(tiny(tmp_path / "run", env__ahead=ahead, env__count=2, steps=120)) as trainer:
        learn, stored, first = trainer.learn, [], []

        def noted() -> None:
            first.append(trainer.count.rows)
            learn()
            stored.append((trainer.count.rows, trainer.count.updates))

        trainer.learn = noted  # type: ignore[method-assign]
        trainer.run()
        flight = 2 * ahead
        assert trainer.count.rows % flight == 0 and trainer.replay.steps == trainer.count.rows
        assert all(updates <= 1 + (at - first[0]) * 0.5 for at, updates in stored)
        assert trainer.count.updates == 1 + (trainer.count.rows - flight - first[0]) // 2
        assert int(trainer.agent.updates) == trainer.count.updates
        assert trainer.step < 120 + flight


def test_a_flight_acts_with_the_weights_it_took_off_with(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", env__ahead=3, ratio=16.0, steps=120)) as trainer:
        assert trainer.flight is not None
        acting, learner = trainer.collector.agent, trainer.agent
        assert acting is not learner
        assert not {p.data_ptr() for p in acting.parameters()} & {p.data_ptr() for p in learner.parameters()}
        third = trainer._made()
        step, start, learn, policy = trainer.collector.step, trainer.flight.start, trainer.learn, acting.policy
        weights: list[dict[str, torch.Tensor]] = []
        acted: list[int] = []
        learned = threading.Event()

        def started(*arguments: Any, **options: Any) -> None:
            weights.append({k: v.clone() for k, v in learner.state_dict().items()})
            learned.clear()
            start(*arguments, **options)

        def stepped(at: int, decisions: int) -> Any:
            if trainer.count.updates:  # from the first update on there are some in every flight
                assert learned.wait(PATIENCE)
            row = step(at, decisions)
            acted.append(int(acting.updates))
            return row

        def chosen(data: Any, state: Any, draws: Draws) -> Any:
            third.load_state_dict(weights[-1])
            _, expected = third.policy(data, state, Draws(draws.root, draws.step))
            action, after = policy(data, state, draws)
            assert bool((after == expected).all())
            return action, after

        def noted() -> None:
            learn()
            learned.set()

        trainer.flight.start, trainer.collector.step, trainer.learn = started, stepped, noted  # type: ignore[method-assign]
        acting.policy = chosen  # type: ignore[misc]
        trainer.run()
        takeoffs = [int(w["updates"]) for w in weights]
        assert acted == [u for u in takeoffs for _ in range(3)] and takeoffs[-1] > 20
        assert takeoffs == sorted(takeoffs) and int(learner.updates) > takeoffs[-1]


def test_environments_are_stepped_while_an_update_is_made(tmp_path: Path) -> None:
    """Each waits for the other to have begun, so in turn neither would end."""
    with Trainer(tiny(tmp_path / "run", env__ahead=1, ratio=16.0, steps=80)) as trainer:
        step, update = trainer.envs.step, trainer.agent.update
        stepping, updating, met = threading.Event(), threading.Event(), []

        def slow(actions: Any) -> Any:
            if trainer.count.updates:
                stepping.set()
                assert updating.wait(PATIENCE)
                updating.clear()
            return step(actions)

        def met_by(*arguments: Any) -> Any:
            if trainer.count.updates:
                updating.set()
                assert stepping.wait(PATIENCE)
                stepping.clear()
                met.append(trainer.count.updates)
            return update(*arguments)

        trainer.envs.step, trainer.agent.update = slow, met_by  # type: ignore[method-assign]
        trainer.run()
        assert len(met) == trainer.count.updates - 1 > 30


def test_a_flight_leaves_the_learners_casts_alone(tmp_path: Path) -> None:
    """Torch keeps an autocast's casts for all threads, and any thread that leaves its outermost autocast drops them. A weight that is
    used twice would then be cast twice, and its gradients summed in another precision."""
    weight, rows_ = torch.nn.Parameter(torch.ones(4, 4)), torch.ones(2, 4)
    with Trainer(tiny(tmp_path / "run", env__ahead=1, precision="bfloat16")) as trainer:
        with torch.autocast("cpu", torch.bfloat16):
            before = torch.mm(rows_, weight)
            trainer.collect()
            trainer.land()
            after = torch.mm(rows_, weight)
        assert trainer.count.rows == 1
    casts = [[n for n, _ in out.grad_fn.next_functions if n] for out in (before, after)]  # type: ignore[union-attr]
    assert len(casts[0]) == 1 and casts[0][0] is casts[1][0]


def test_what_a_flight_says_is_told_when_it_lands(tmp_path: Path) -> None:
    """A worker that is killed is replaced in the air; what the learner says meanwhile comes first, whatever happened first."""
    with Trainer(tiny(tmp_path / "run", env__ahead=4, ratio=16.0, steps=80, env__count=2, env__restarts=5)) as trainer:
        note, learn, step = trainer.faults.note, trainer.learn, trainer.collector.step
        killed, noted, said = threading.Event(), threading.Event(), threading.Event()

        def heard(who: str, error: Exception) -> None:
            note(who, error)
            noted.set()

        def stepped(at: int, decisions: int) -> Any:
            if trainer.count.rows > 40 and not killed.is_set():
                killed.set()
                os.kill(trainer.envs._envs[1]._process.pid, signal.SIGKILL)  # type: ignore[union-attr, arg-type]
            return step(at, decisions)

        def learned() -> None:
            if trainer.count.rows > 40 and not said.is_set():
                assert noted.wait(PATIENCE)
                trainer.guard.say("from the learner")
                said.set()
            learn()

        trainer.faults.note, trainer.learn, trainer.collector.step = heard, learned, stepped  # type: ignore[method-assign]
        trainer.run()
        assert trainer.faults.total == 1
        segments = trainer.replay.segments
        held = segments.rows(np.array(1), np.arange(segments.first[1], segments.end[1]))
        first, last = segments.arrays["is_first",][held], segments.arrays["is_last",][held]
        assert (last[:-1] == first[1:]).all() and first.sum() >= 2
    told = [r["warning"] for r in read_metrics(tmp_path / "run") if r["kind"] == "health"]
    assert [text.startswith("environment 1 ") for text in told[told.index("from the learner") :]][:2] == [False, True]


def test_a_budget_of_faults_that_is_spent_in_the_air_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"environment 0 .* and the budget is spent") as error:
        with Trainer(tiny(tmp_path / "run", env__ahead=2, env__restarts=0, steps=10**6)) as trainer:
            learn = trainer.learn

            def learned() -> None:
                learn()
                if trainer.count.updates == 5:
                    os.kill(trainer.envs._envs[0]._process.pid, signal.SIGKILL)  # type: ignore[union-attr, arg-type]

            trainer.learn = learned  # type: ignore[method-assign]
            trainer.run()
    assert "\n" not in str(error.value) and (tmp_path / "run" / FILE).is_file()
    assert not any(t.name.startswith("flight") for t in threading.enumerate())


def test_an_error_of_the_learner_ends_the_flight_at_its_next_step(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Trainer(tiny(tmp_path / "run", env__ahead=10**6, steps=10**7)) as trainer:
        stepping = threading.Event()
        step = trainer.collector.step

        def stepped(*arguments: int) -> Any:
            stepping.set()
            return step(*arguments)

        def fail() -> None:
            assert stepping.wait(PATIENCE)
            raise ZeroDivisionError

        trainer.collector.step, trainer.learn = stepped, fail  # type: ignore[method-assign]
        trainer._due = lambda: 1  # type: ignore[method-assign]
        trainer.run()
    assert not any(t.name.startswith("flight") for t in threading.enumerate())
    assert trainer.count.rows == 0, "what never landed is not stored"


@pytest.mark.slow
def test_nothing_is_compiled_beside_a_flight(tmp_path: Path) -> None:
    """Tracing patches torch for all threads: until the learner has compiled, flights are waited for."""
    with Trainer(tiny(tmp_path / "run", env__ahead=2, ratio=16.0, compile="steps", steps=80)) as trainer:
        begun = watched(trainer)
        trainer.run()
    assert begun["learn"][0] is False and all(begun["learn"][2:]) and len(begun["learn"]) > 20
    assert begun["compile"] and not any(begun["compile"])


def watched(trainer: Trainer) -> dict[str, list[bool]]:
    """For every update and every compilation, whether the flight of that moment was beside it or over; filled in as the run goes on."""
    assert trainer.flight is not None
    start, learn, found = trainer.flight.start, trainer.learn, {"start": [False], "learn": list[bool](), "compile": list[bool]()}

    def started(at: int, decisions: int, beside: bool) -> None:
        found["start"].append(beside)
        start(at, decisions, beside)

    def learned() -> None:
        found["learn"].append(found["start"][-1])
        learn()

    def compiled(event: object) -> None:
        found["compile"].append(found["start"][-1])

    trainer.flight.start, trainer.learn = started, learned  # type: ignore[method-assign]
    callback_handler.register_start_callback(compiled)
    trainer.exits.callback(callback_handler.start_callbacks.remove, compiled)
    return found


def test_the_first_screen_says_so_and_less_than_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(tmp_path / "run", env__ahead=2, steps=10)
    assert "1 environment, action repeat 1, stepped 2 ahead of the learner" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="env.ahead must be at least 0, got -1"):
        tiny(tmp_path / "no", env__ahead=-1)
