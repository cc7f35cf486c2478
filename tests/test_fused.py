"""Operations with a backward pass of their own against the plain ones that autograd differentiates."""

import pytest
import torch
import torch.nn.functional as F

from polydream.core import fused, maths, twohot
from polydream.core.fused import max_pool, normed_silu


def plainly(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return F.silu(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-4) * scale).to(x.dtype)


@pytest.mark.parametrize("piece", [64, 2**19])
@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16), (40, 16)])
def test_norm_and_silu_equal_the_plain_ones(shape: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PIECE", piece)
    torch.manual_seed(0)
    x, scale, grad = torch.randn(shape, requires_grad=True), torch.rand(16, requires_grad=True), torch.randn(shape)
    for mine, plain in zip(
        (normed_silu(x, scale), *torch.autograd.grad(normed_silu(x, scale), [x, scale], grad)),
        (plainly(x, scale), *torch.autograd.grad(plainly(x, scale), [x, scale], grad)),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(normed_silu(x, scale), plainly(x, scale))


def test_short_numbers_are_normed_in_long_ones() -> None:
    """A row of 300s overflows no bfloat16, but its mean square has 3 digits only unless it is computed in float32."""
    x = torch.tensor([[300.0, 301.0, 299.0, 1.0]], dtype=torch.bfloat16)
    out = normed_silu(x, torch.ones(4))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plainly(x.float(), torch.ones(4)), rtol=2**-8, atol=2**-8)


def test_gradients_pass_a_vectorising_map() -> None:
    """Members of an ensemble are evaluated by torch.func.vmap."""
    torch.manual_seed(0)
    x, scale = torch.randn(3, 5, 8), torch.rand(3, 8)
    loss = lambda x, s: normed_silu(x, s).square().sum()  # noqa: E731
    mapped = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(x, scale)
    for i in range(3):
        for got, alone in zip(mapped, torch.func.grad(loss, argnums=(0, 1))(x[i], scale[i]), strict=True):
            torch.testing.assert_close(got[i], alone)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("piece", [1, 300, 2**23], ids=["one by one", "in twos", "all at once"])
def test_pooling_sends_gradients_where_the_plain_one_does(layout: torch.memory_format, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "POOLED", piece)
    torch.manual_seed(0)
    # Few values, so that there are ties.
    x = torch.randint(0, 3, (5, 3, 8, 6)).float().contiguous(memory_format=layout).requires_grad_()
    mine, plain = max_pool(x), F.max_pool2d(x, 2)
    grad = torch.randn_like(plain)
    assert torch.equal(mine, plain) and mine.is_contiguous(memory_format=layout)
    assert torch.equal(*(torch.autograd.grad(out, x, grad)[0] for out in (mine, plain)))


def test_pooling_finds_its_place_in_large_images() -> None:
    x = torch.zeros(1, 1, 256, 256)
    x[0, 0, 255, 255] = 1.0
    (grad,) = torch.autograd.grad(max_pool(x.requires_grad_()).max(), x)
    assert grad.nonzero().tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("piece", [256, 2**19])
def test_cross_entropy_against_several_targets_equals_its_definition(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twohot, "PIECE", piece)
    torch.manual_seed(0)
    bins = maths.symexp_bins(51)
    logits, targets, grad = torch.randn(3, 7, 51, requires_grad=True), torch.randn(2, 3, 7) * 1e4, torch.randn(2, 3, 7)

    def defined(target: torch.Tensor) -> torch.Tensor:
        below, above, share = maths.twohot_place(target, bins)
        wanted = share[..., None] * F.one_hot(below, 51) + (1 - share)[..., None] * F.one_hot(above, 51)
        return -(wanted * torch.log_softmax(logits, -1)).sum(-1)

    plain = torch.stack([defined(t) for t in targets])
    mine = twohot.loss(logits, targets, bins)
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(twohot.loss(logits, targets[1], bins), mine[1])
    a, b = (torch.autograd.grad(x, logits, grad)[0] for x in (mine, plain))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        mean = twohot.mean(logits, bins)
    torch.testing.assert_close(mean, maths.twohot_mean(torch.softmax(logits, -1), bins))
    torch.testing.assert_close(twohot.mean(logits, bins), mean)
