"""A policy step compiled as a whole equals the plain one.

Tracing and cutting the graph is ours, generating code is not: most tests run the traced graph as it is (stance force_eager).
"""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from polydream.core import acting
from polydream.core.agent import Dreamer
from polydream.core.promises import promises_of
from polydream.core.registry import registered, task, variant
from polydream.core.rng import Draws
from polydream.eval.trial import Trial
from tests.fixtures import DISCRETE, IMAGE, VECTOR, agent, batch, tiny


def lively(made: Dreamer) -> Dreamer:
    """Weights away from their start, where outputs are zero."""
    noise = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise)
    return made


def step(spec, t: int, n: int = 3) -> TensorDict:  # type: ignore[no-untyped-def]
    data = batch(spec, n, 9, seed=1)[:, t]
    return data.select("obs", "is_first")


def near(one: TensorDict, other: TensorDict) -> None:
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key in one.keys(True, True):
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [VECTOR, DISCRETE, IMAGE], ids=["numbers", "classes", "images"])
@pytest.mark.parametrize("modes", [{}, {"action": 0.0}], ids=["drawn", "most likely"])
def test_equals_the_plain_step(spec, modes) -> None:  # type: ignore[no-untyped-def]
    plain, fast = lively(agent(spec)), lively(agent(spec))
    fast.accelerate("float32", "steps")
    states = [plain.initial(3), fast.initial(3)]
    with torch.compiler.set_stance("force_eager"):
        for t in range(6):
            data = step(spec, t)
            (acted, states[0]), (quick, states[1]) = (
                one.policy(data, state, Draws(0, t, modes=modes)) for one, state in zip((plain, fast), states, strict=True)
            )
            near(acted, quick)
            near(states[0], states[1])


@pytest.mark.parametrize("name", sorted(registered("polydream.variants")))
def test_equals_the_plain_step_for_every_variant(name: str) -> None:
    world = promises_of(variant(name)).home or "world/fourrooms"
    trial = Trial(variant(name), lambda: task(world), {})
    plain, fast = lively(trial.agent()), lively(trial.agent())
    fast.accelerate("float32", "steps")
    states = [plain.initial(2), fast.initial(2)]
    assert len(trial.record.steps) > 5
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("error")  # one that cannot be traced would say so
        for t, data in enumerate(trial.record.steps):
            states = [one.policy(data, state, Draws(0, t))[1] for one, state in zip((plain, fast), states, strict=True)]
            near(*states)


def test_follows_the_weights() -> None:
    """Casts and layouts are kept between steps: an optimizer's step, loading and rescaling must each reach them."""
    quick = replace(tiny().optim, lr=1e-2, warmup=0)
    fast, plain = agent(optim=quick), agent(optim=quick)
    fast.accelerate("float32", "steps")
    optimizer, data, start = fast.optimizer(), step(VECTOR, 1), fast.initial(3)
    start["deter"] += 0.5
    with torch.compiler.set_stance("force_eager"):
        seen = [fast.policy(data, start, Draws(0))[1]]
        fast.update(batch(VECTOR), optimizer, Draws(0))
        seen.append(fast.policy(data, start, Draws(0))[1])
        fast.load_state_dict(lively(agent(seed=5, optim=quick)).state_dict())
        seen.append(fast.policy(data, start, Draws(0))[1])
    for before, after in zip(seen, seen[1:], strict=False):
        assert not torch.equal(before["deter"], after["deter"])
    plain.load_state_dict(fast.state_dict())
    near(seen[-1], plain.policy(data, start, Draws(0))[1])


def test_evaluation_acts_plainly_and_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a loaded agent repeats an evaluation of the run exactly. Collecting acts in bfloat16 where the scan does: in wide models."""
    fast, plain, wide = (lively(agent()) for _ in range(3))
    fast.accelerate("bfloat16", "steps")
    wide.accelerate("bfloat16", "steps")
    wide.rssm.scan_dtype = torch.bfloat16
    data, start, draws = step(VECTOR, 0), plain.initial(3), {"posterior": 0.0}
    exact = plain.policy(data, start, Draws(0, modes=draws))[1]
    for one in (fast, wide):
        near(one.eval().policy(data, start, Draws(0, modes=draws))[1], exact)
    with torch.compiler.set_stance("force_eager"):
        near(fast.train().policy(data, start, Draws(0, modes=draws))[1], exact)
        short = wide.train().policy(data, start, Draws(0, modes=draws))[1]
    assert 0 < (short["deter"] - exact["deter"]).abs().max() < 0.05


def test_a_step_that_branches_on_a_value_is_taken_as_it_is_and_told() -> None:
    class Branching(Dreamer):
        def act(self, state: TensorDict, draws: Draws) -> TensorDict:
            return super().act(state, draws) if state["deter"].sum() < 1e9 else state

    plain, fast = (Branching(VECTOR, agent().cfg) for _ in range(2))
    fast.accelerate("float32", "steps")
    data = step(VECTOR, 0)
    with torch.compiler.set_stance("force_eager"):
        with pytest.warns(UserWarning, match="Branching acts uncompiled.*torch.where"):
            first = fast.policy(data, fast.initial(3), Draws(0))[1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fast.policy(data, fast.initial(3), Draws(0))
    near(first, plain.policy(data, plain.initial(3), Draws(0))[1])


def test_a_state_that_gains_keys_in_its_first_step_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clocked(Dreamer):
        def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
            return super().context(data, state, draws).set("clock", torch.zeros(state.batch_size, dtype=torch.int64))

        def act(self, state: TensorDict, draws: Draws) -> TensorDict:
            state = super().act(state, draws)
            return state.set("clock", state["clock"] + 1)

    traced: list[object] = []
    trace = acting.make_fx
    monkeypatch.setattr(acting, "make_fx", lambda *args, **options: traced.append(args) or trace(*args, **options))
    plain, fast = (Clocked(VECTOR, agent().cfg) for _ in range(2))
    fast.accelerate("float32", "steps")
    states = [plain.initial(3), fast.initial(3)]
    with torch.compiler.set_stance("force_eager"):
        for t in range(5):
            states = [one.policy(step(VECTOR, t), state, Draws(0, t))[1] for one, state in zip((plain, fast), states, strict=True)]
            near(*states)
            assert len(traced) == min(t, 1), "nothing to trace before the state has all its keys, and nothing anew afterwards"


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiling needs a C++ compiler")
def test_generated_code_equals_the_plain_step() -> None:
    plain, fast = lively(agent()), lively(agent())
    fast.accelerate("float32", "steps")
    states = [plain.initial(3), fast.initial(3)]
    for t in range(3):
        states = [one.policy(step(VECTOR, t), state, Draws(0, t))[1] for one, state in zip((plain, fast), states, strict=True)]
        near(*states)
