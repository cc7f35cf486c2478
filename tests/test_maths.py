"""Formulas against hand-made numbers; the recorded values are in tests/conformance."""

import math

import pytest
import torch

from polydream.core import maths, twohot


def test_lambda_return_by_hand() -> None:
    reward, boot = torch.tensor([[99.0, 1.0, 1.0, 1.0]]), torch.zeros(1, 4)
    assert maths.lambda_return(reward, boot, torch.ones(1, 4), 1.0).tolist() == [[3.0, 2.0, 1.0]]
    boot = torch.tensor([[99.0, 10.0, 20.0, 30.0]])
    one_step = maths.lambda_return(reward, boot, torch.full((1, 4), 0.5), 0.0)
    assert one_step.tolist() == [[1 + 5.0, 1 + 10.0, 1 + 15.0]]


def test_lambda_return_stops_where_the_chain_is_cut() -> None:
    reward, boot = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([0.0, 10.0, 20.0, 40.0])
    ended = torch.tensor([1.0, 1.0, 0.0, 1.0])  # a terminal state: nothing comes after it
    assert maths.lambda_return(reward, boot, ended, 1.0).tolist() == [1 + 2.0, 2.0, 4 + 40.0]
    cut = torch.tensor([1.0, 1.0, 0.0, 1.0])  # a time limit: its value counts, what follows does not
    assert maths.lambda_return(reward, boot, torch.ones(4), cut).tolist() == [1 + 2 + 20.0, 2 + 20.0, 4 + 40.0]


@pytest.mark.parametrize("count", [5, 6, 255])
def test_bins_are_mirrored_and_uniform_predicts_zero(count: int) -> None:
    bins = maths.symexp_bins(count)
    assert len(bins) == count and bool((bins == -bins.flip(0)).all()) and bool((bins.diff() >= 0).all())
    assert float(maths.twohot_mean(torch.full((count,), 1 / count), bins)) == 0.0


@pytest.mark.parametrize("compiled", [False, True])
def test_the_mean_over_bins_is_float32_where_products_are_bfloat16(compiled: bool) -> None:
    """A value of 90.2 must not become 90: a step's reward is lost in that, and it is what advantages are made of."""
    bins = maths.symexp_bins(255)
    below = int((bins < 90.2).sum()) - 1
    share = (bins[below + 1] - 90.2) / (bins[below + 1] - bins[below])
    logits = torch.full((7, 255), -60.0)
    logits[:, below], logits[:, below + 1] = share.log(), (1 - share).log()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = twohot.mean(logits, bins, compiled)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((7,), 90.2), rtol=1e-5, atol=0)
    logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert twohot.mean(logits, bins).dtype == torch.float32, "nor where there is a gradient"


def test_twohot_loss_by_hand() -> None:
    bins, logits = torch.tensor([-2.0, 0.0, 2.0, 6.0]), torch.zeros(4)
    logits[2] = 1.0
    logp = torch.log_softmax(logits, 0)
    assert [float(x) for x in maths.twohot_place(torch.tensor(3.0), bins)] == [2, 3, 0.75]
    for target, expected in {3.0: -(0.75 * logp[2] + 0.25 * logp[3]), 2.0: -logp[2], 100.0: -logp[3], -100.0: -logp[0]}.items():
        assert float(twohot.loss(logits, torch.tensor(target), bins)) == pytest.approx(float(expected), rel=1e-6)


def test_sampling_inverts_the_distribution_function() -> None:
    probs = torch.tensor([0.2, 0.5, 0.3]).expand(5, 3)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.9999999])
    assert maths.sample_onehot(probs, uniform).argmax(-1).tolist() == [0, 0, 1, 1, 2]
    assert maths.sample_onehot(probs, None).argmax(-1).tolist() == [1] * 5
    drawn = maths.sample_onehot(probs[:1].expand(40_000, 3), torch.rand(40_000, generator=torch.Generator().manual_seed(0)))
    assert bool((drawn.sum(-1) == 1).all())
    assert drawn.mean(0).tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.01)


def test_unimix_keeps_every_class_possible() -> None:
    logp = maths.mixed_log_probs(torch.tensor([1000.0, 0.0, 0.0, 0.0]), 0.01)
    assert float(logp[1]) == pytest.approx(math.log(0.01 / 4), rel=1e-5) and float(logp.exp().sum()) == pytest.approx(1.0)


def test_straight_through_passes_the_gradient_of_the_probabilities() -> None:
    probs = torch.tensor([0.2, 0.8], requires_grad=True)
    value = maths.straight_through(torch.tensor([0.0, 1.0]), probs)
    assert value.tolist() == [0.0, 1.0]
    (value * torch.tensor([3.0, 5.0])).sum().backward()
    assert probs.grad.tolist() == [3.0, 5.0]  # type: ignore[union-attr]
