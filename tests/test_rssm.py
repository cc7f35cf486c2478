"""The recurrent core: acting equals training, resets, noise, recomputation."""

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from polydream.core.nets import initialize
from polydream.core.rng import Draws
from polydream.core.rssm import RSSM, Latents, RSSMConfig

SMALL = RSSMConfig(deter=16, hidden=8, stoch=3, classes=4, blocks=4)


def build(cell: str = "block_gru", **changes: object) -> RSSM:
    rssm = RSSM(cell, 2, 5, replace(SMALL, **changes))  # type: ignore[arg-type]
    initialize(rssm, 0)
    return rssm


def inputs(rows: int = 2, steps: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(rows, steps, dtype=torch.bool)
    first[1, 3] = True
    return torch.randn(rows, steps, 5, generator=generator), torch.randn(rows, steps, 2, generator=generator), first


@pytest.mark.parametrize("cell", ["block_gru", "gru"])
@pytest.mark.parametrize("absolute", [False, True])
def test_step_by_step_equals_at_once(cell: str, absolute: bool) -> None:
    rssm = build(cell, absolute=absolute, post_layers=2)
    tokens, action, first = inputs()
    modes = {"posterior": 0.0}
    whole = rssm.observe(tokens, action, first, rssm.initial(2), Draws(0, modes=modes))
    state = rssm.initial(2)
    for t in range(tokens.shape[1]):
        state = rssm.observe(tokens[:, t : t + 1], action[:, t : t + 1], first[:, t : t + 1], state, Draws(0, modes=modes))[:, 0]
        for key in ("deter", "stoch", "logits"):
            torch.testing.assert_close(state[key], whole[key][:, t], rtol=1e-5, atol=1e-5)


def test_a_first_step_forgets_everything_before() -> None:
    rssm = build()
    tokens, action, first = inputs()
    draws = lambda: Draws(0, modes={"posterior": 0.0})  # noqa: E731
    other = action.clone()
    other[:, :4] += 1.0
    changed = tokens.clone()
    changed[:, :3] += 1.0
    start = TensorDict({"deter": torch.ones(2, 16), "stoch": torch.ones(2, 3, 4)}, [2])
    a, b = rssm.observe(tokens, action, first, rssm.initial(2), draws()), rssm.observe(changed, other, first, start, draws())
    assert torch.equal(a["deter"][1, 3:], b["deter"][1, 3:]), "row 1 begins an episode at step 3: nothing earlier may matter"
    assert not torch.equal(a["deter"][0, 3:], b["deter"][0, 3:])


def test_recomputing_the_scan_changes_no_gradient() -> None:
    tokens, action, first = inputs()
    grads = []
    for pieces in (0, 1, 4):
        rssm = build(checkpoint=pieces)
        post = rssm.observe(tokens, action, first, rssm.initial(2), Draws(3))
        losses, _ = rssm.kl(post)
        (losses["dyn"].sum() + losses["rep"].sum() + post["deter"].square().sum()).backward()
        grads.append({n: p.grad for n, p in rssm.named_parameters()})
    for name, grad in grads[0].items():
        for other in grads[1:]:
            torch.testing.assert_close(other[name], grad, rtol=1e-5, atol=1e-6)


def test_large_actions_count_as_one() -> None:
    rssm = build()
    state = rssm.initial(1)
    draws = lambda: Draws(0, modes={"prior": 0.0})  # noqa: E731
    a = rssm.step(state, torch.tensor([[7.0, -0.5]]), draws())
    b = rssm.step(state, torch.tensor([[1.0, -0.5]]), draws())
    torch.testing.assert_close(a["deter"], b["deter"])


def test_free_nats_bound_the_losses_from_below() -> None:
    tokens, action, first = inputs()
    for free in (0.0, 100.0):
        rssm = build(free_nats=free)
        losses, _ = rssm.kl(rssm.observe(tokens, action, first, rssm.initial(2), Draws(0)))
        assert bool((losses["dyn"] == 100.0).all()) if free else bool((losses["dyn"] < 100).all())
        assert torch.equal(losses["dyn"], losses["rep"]), "one divergence, and only its gradients differ"


def test_unknown_dynamics_name_the_choices() -> None:
    with pytest.raises(ValueError, match="block_gru, gru"):
        build("lstm")


@pytest.mark.parametrize("graph", [False, True])
def test_a_rollouts_latents_lie_step_after_step(graph: bool) -> None:
    parts = [(torch.randn(3, 4), torch.randn(3, 2)) for _ in range(5)]
    parts[1][0].requires_grad_()
    latents = Latents(5)
    with torch.set_grad_enabled(graph):
        steps = [latents.add(*pair) for pair in parts]
        whole = latents.all()
    wanted = torch.stack([torch.cat(pair, -1) for pair in parts], 1)
    assert torch.equal(whole, wanted) and all(torch.equal(step, wanted[:, t]) for t, step in enumerate(steps))
    assert whole.transpose(0, 1).is_contiguous() and all(step.is_contiguous() for step in steps)
    assert whole.requires_grad is graph
    if graph:
        whole[:, 1].sum().backward()
        assert parts[1][0].grad is not None and parts[1][0].grad.eq(1).all()
    else:
        assert steps[2].data_ptr() == whole[:, 2].data_ptr(), "written where it stays"
