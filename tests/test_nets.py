"""Layers: rewritten convolutions equal the plain ones, start values depend on names only."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from polydream.core.nets import MLP, BlockLinear, Conv, Dense, Linear, activation, filled, initialize, member, norm, swapped
from polydream.core.rng import Draws
from polydream.core.specs import Space, Spec
from tests.fixtures import agent, batch


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_subpixel_equals_upsampling_and_convolving(kernel: int) -> None:
    conv = Conv(3, 4, kernel, up="nearest")
    initialize(conv, 0)
    conv.bias.data.normal_()  # type: ignore[union-attr]
    x = torch.randn(2, 3, 5, 6, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, conv.bias, padding=kernel // 2)
    ours = conv(x)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad((out * out).sum(), [x, conv.weight, conv.bias]) for out in (ours, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_pooling_over_channels_equals_convolving_and_pooling(kernel: int) -> None:
    conv = Conv(3, 4, kernel)
    initialize(conv, 0)
    conv.bias.data.normal_()  # type: ignore[union-attr]
    x, grad = torch.randn(2, 3, 8, 12, requires_grad=True), torch.randn(2, 4, 4, 6)
    both = conv.pooled(x), F.max_pool2d(conv(x), 2)
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(out, [x, conv.weight, conv.bias], grad) for out in both), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_of_equals_the_first_gets_the_gradient_as_in_a_pool() -> None:
    conv = Conv(2, 3, 5)
    with torch.no_grad():  # whole numbers, so that sums are exact and many are equal
        conv.weight.copy_(torch.randint(-1, 2, conv.weight.shape))
        conv.bias.zero_()  # type: ignore[union-attr]
    x, grad = torch.randint(0, 2, (4, 2, 12, 12)).float().requires_grad_(), torch.randn(4, 3, 6, 6)
    dense = conv(x).unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert (dense == dense.amax(-1, keepdim=True)).sum() > 1.1 * dense[..., 0].numel()
    both = (torch.autograd.grad(out, x, grad)[0] for out in (conv.pooled(x), F.max_pool2d(conv(x), 2)))
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs, outputs", [(3, 12), (8, 5), (3, 8)])
def test_channels_filled_up_for_tensor_cores_change_nothing(inputs: int, outputs: int) -> None:
    x, weight, bias = torch.randn(2, inputs, 6, 7), torch.randn(outputs, inputs, 3, 3), torch.randn(outputs)
    for given in (bias, None):
        torch.testing.assert_close(filled(x, weight, given, 2, 1), F.conv2d(x, weight, given, 2, 1), rtol=1e-4, atol=1e-5)


def test_dense_parts_add_up() -> None:
    layer = Dense(7, 5)
    initialize(layer, 0)
    layer.linear.bias.data.normal_()
    x = torch.randn(3, 7)
    torch.testing.assert_close(layer.finish(layer.part(x[:, :4], 0) + layer.part(x[:, 4:], 4) + layer.linear.bias), layer(x))


def test_block_linear_is_block_diagonal() -> None:
    layer = BlockLinear(6, 4, 2)
    initialize(layer, 0)
    x = torch.randn(5, 6)
    dense = torch.block_diag(*layer.weight)
    torch.testing.assert_close(layer(x), x @ dense + layer.bias)
    with pytest.raises(ValueError, match="not divisible into 4 blocks"):
        BlockLinear(6, 4, 4)


def test_joint_block_input_equals_the_one_built_by_hand() -> None:
    layer = BlockLinear(8 + 2 * 3, 6, 2)
    initialize(layer, 0)
    layer.bias.data.normal_()
    own, shared = torch.randn(5, 8), torch.randn(5, 3)
    built = torch.cat([torch.cat([own[:, :4], shared], 1), torch.cat([own[:, 4:], shared], 1)], 1)
    torch.testing.assert_close(layer.joint(own, shared), layer(built))


def test_start_values_depend_on_names_not_on_order() -> None:
    one = torch.nn.ModuleDict({"a": Linear(3, 4), "b": Linear(3, 4)})
    two = torch.nn.ModuleDict({"b": Linear(3, 4), "extra": MLP(3, 8, 2), "a": Linear(3, 4)})
    initialize(one, 1)
    initialize(two, 1)
    assert all(torch.equal(one[k].weight, two[k].weight) for k in "ab")
    assert not torch.equal(one["a"].weight, one["b"].weight)
    initialize(two, 2)
    assert not torch.equal(one["a"].weight, two["a"].weight)


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="rms, layer, none"):
        norm("batch", 3)
    with pytest.raises(ValueError, match="silu"):
        activation("swish")


def test_states_cut_out_of_sequences_are_one_product() -> None:
    """Not one for each sequence, each with its own copy of the weight."""

    class Products(TorchDispatchMode):
        seen: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, cut = Linear(4, 3), torch.randn(5, 9, 4)[:, ::4]
    initialize(layer, 0)
    with Products() as products:
        found = layer(cut)
    assert torch.equal(found, layer(cut.contiguous()))
    assert any("addmm" in name for name in products.seen) and not any("bmm" in name for name in products.seen)


def test_states_that_lie_step_after_step_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    net, out = MLP(6, 8, 2), Linear(8, 3)
    initialize(torch.nn.ModuleList([net, out]), 0)
    x = torch.randn(5, 4, 6).transpose(0, 1)
    assert swapped(x) and swapped(x[:, :-1]) and not swapped(x.contiguous()) and not swapped(x[:-1]) and not swapped(x[0])
    wanted = out(net(x.contiguous()))
    got = out(net(x))
    torch.testing.assert_close(got, wanted)
    assert swapped(got)
    seen = []
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: seen.append(x.data_ptr()) or torch.nn.functional.linear(x, self.weight))
    net(x[:, :-1])
    assert seen[0] == x.data_ptr(), "the memory itself is multiplied"


def test_keys_that_are_no_names_of_parts_get_one_and_the_others_keep_theirs() -> None:
    keys = ["pos", "arm/left", "action/0", "a b", "items", "type", "values", "robot.pos", "robot~pos", "~", "", "training", "robot~1pos"]
    names = [member(key) for key in keys]
    assert names[:4] == keys[:4], "checkpoints depend on it"
    assert len(set(names)) == len(keys)
    parts = nn.ModuleDict({name: nn.Identity() for name in names})
    assert list(parts) == names
    spec = Spec(
        obs={"items": Space(shape=(3,)), "robot.pos": Space(), "type": Space(dtype="int32", classes=3)},
        action={"pop": Space(shape=(2,)), "arm.left": Space(dtype="int32", classes=4)},
    )
    dreamer = agent(spec)
    assert dreamer.update(batch(spec), dreamer.optimizer(), Draws(0))[0]["opt/skipped"] == 0
