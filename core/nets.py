"""Layers: linear, block-linear, convolution, norms, multi-layer perceptron. Parameters are initialised by name, not by order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import EPS, normed_silu
from .rng import seed_for

Norm = Literal["rms", "layer", "none"]
Activation = Literal["silu", "relu", "elu", "mish", "tanh", "gelu", "none"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "elu": F.elu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "none": lambda x: x,
}


def initialize(module: nn.Module, seed: int) -> None:
    """Initialise every layer that has `reset(generator)` from a generator derived from (seed, the layer's name).

    A layer's start values depend on nothing else, so adding a module to an agent leaves all others as they were.
    """
    for name, layer in module.named_modules():
        if callable(reset := getattr(layer, "reset", None)):
            reset(torch.Generator().manual_seed(seed_for(seed, f"init/{name}", 0)))


def _truncated_normal(weight: Tensor, fan_in: int, outscale: float, generator: torch.Generator) -> None:
    """Normal truncated at two standard deviations, rescaled to variance outscale^2 / fan_in (`trunc_normal_in`)."""
    with torch.no_grad():
        sample = nn.init.trunc_normal_(torch.empty(weight.shape), 0.0, 1.0, -2.0, 2.0, generator=generator)
        weight.copy_(sample * (1.1368 * outscale / math.sqrt(fan_in)))


def swapped(x: Tensor) -> bool:
    """Whether states (N, T, F) lie in memory as (T, N, F), one step of all of them after the other, as dreams do."""
    return x.ndim == 3 and not x.is_contiguous() and x.transpose(0, 1).is_contiguous()


class Linear(nn.Linear):
    """Affine map (*, inputs) -> (*, outputs) with bias; `outscale` multiplies the initial weights (0 starts at zero)."""

    def __init__(self, inputs: int, outputs: int, outscale: float = 1.0) -> None:
        self.outscale = outscale
        super().__init__(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if swapped(x):
            return self(x.transpose(0, 1)).transpose(0, 1)
        # Of states cut out of sequences torch would make one product per sequence, each with its own copy of the weight.
        return super().forward(x.contiguous())

    def reset_parameters(self) -> None:
        """Nothing at construction: `initialize` does it once names are known."""

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start values."""
        _truncated_normal(self.weight, self.in_features, self.outscale, generator)
        nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """Block-diagonal affine map: the input is cut into `blocks` equal slices, each with its own matrix.

    (*, inputs) -> (*, outputs). The weight is (blocks, inputs / blocks, outputs / blocks); start values use the fan-in of
    the whole input, as in the released implementation.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"widths {inputs} and {outputs} are not divisible into {blocks} blocks")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start values."""
        _truncated_normal(self.weight, self.weight.shape[0] * self.weight.shape[1], 1.0, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        slices = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)
        return torch.bmm(slices, self.weight).transpose(0, 1).reshape(*lead, -1) + self.bias

    def joint(self, own: Tensor, shared: Tensor) -> Tensor:
        """As `forward` on blocks that each see their slice of `own` (n, I) and then all of `shared` (n, J), never building that input.

        The shared part is the same for every block, so it is one dense product.
        """
        width = own.shape[-1] // self.blocks
        slices = own.reshape(-1, self.blocks, width).transpose(0, 1)
        mine = torch.bmm(slices, self.weight[:, :width]).transpose(0, 1).flatten(1)
        dense = self.weight[:, width:].transpose(0, 1).flatten(1)
        return mine + torch.addmm(self.bias, shared, dense)


class Conv(nn.Conv2d):
    """Convolution of (n, channels, height, width) with 'same' padding as XLA pads it; `up` enlarges twofold first.

    stride 2 halves the resolution with the asymmetric padding of the released implementation (one before, two after for
    kernel 5). up="nearest" repeats every pixel 2 x 2 before the convolution; up="zeros" puts the pixel at the odd
    position and zeros elsewhere (a transposed convolution).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, up: str = "no") -> None:
        if stride > 1 and up != "no":
            raise ValueError("a convolution either shrinks (stride) or enlarges (up), not both")
        self.up = up
        super().__init__(inputs, outputs, kernel, stride)
        if up == "nearest":
            self.register_buffer("fold", _fold(kernel), persistent=False)
        elif stride == 1 and up == "no" and kernel % 2:
            self.register_buffer("spread", _spread(kernel), persistent=False)

    fold: Tensor
    spread: Tensor

    def reset_parameters(self) -> None:
        """Nothing at construction: `initialize` does it once names are known."""

    def reset(self, generator: torch.Generator) -> None:
        """Draw the start values."""
        _truncated_normal(self.weight, self.in_channels * self.kernel_size[0] * self.kernel_size[1], 1.0, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.up == "nearest":
            return self._subpixel(x)
        if self.up == "zeros":
            x = _zero_stuffed(x)
        size, kernel, stride = x.shape[-2:], self.kernel_size[0], self.stride[0]
        pads = [max((math.ceil(s / stride) - 1) * stride + kernel - s, 0) for s in size]
        (top, left) = (p // 2 for p in pads)
        if pads[0] == pads[1] == kernel - 1 and kernel % 2:
            return convolve(x, self.weight, self.bias, stride, kernel // 2)
        return convolve(F.pad(x, (left, pads[1] - left, top, pads[0] - top)), self.weight, self.bias, stride)

    def _subpixel(self, x: Tensor) -> Tensor:
        """Nearest upsampling and a kernel of k equal a smaller kernel to four times the channels and a pixel shuffle.

        Each output parity (a, b) sees only a few distinct input pixels; the taps that fall on the same one are added.
        The result is the same sum, with 9 taps instead of 25 at a quarter of the positions.
        """
        outputs, reach = self.out_channels, self.fold.shape[1]
        weight = torch.einsum("adu,bev,oiuv->oabide", self.fold, self.fold, self.weight)
        weight = weight.reshape(outputs * 4, self.in_channels, reach, reach)
        bias = None if self.bias is None else self.bias.repeat_interleave(4)
        return F.pixel_shuffle(convolve(x, weight, bias, padding=reach // 2), 2)

    def pooled(self, x: Tensor) -> Tensor:
        """This convolution and a 2 x 2 max-pool after it, for stride 1: (n, c, h, w) -> (n, o, h / 2, w / 2).

        The pixels of a 2 x 2 block become channels, and so do the four outputs that the pool compares: a smaller kernel, more channels and
        a quarter of the places are what a GPU multiplies fast, and the pool looks at channels of one place.
        """
        outputs, reach = self.out_channels, self.spread.shape[2]
        weight = torch.einsum("apmu,bqnv,ocuv->abocpqmn", self.spread, self.spread, self.weight)
        weight = weight.reshape(4 * outputs, 4 * self.in_channels, reach, reach)
        bias = None if self.bias is None else self.bias.repeat(4)
        one, two, three, four = convolve(F.pixel_unshuffle(x, 2), weight, bias, padding=reach // 2).chunk(4, 1)
        # The first of equals, as the pool takes it.
        upper, lower = torch.where(one >= two, one, two), torch.where(three >= four, three, four)
        return torch.where(upper >= lower, upper, lower)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """F.conv2d, on a GPU with channels `filled`."""
    return (filled if x.is_cuda else F.conv2d)(x, weight, bias, stride, padding)


def filled(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """F.conv2d with channels filled up to multiples of 8 with zeros: tensor cores take no other."""
    inputs, outputs = -weight.shape[1] % 8, -weight.shape[0] % 8
    if not (inputs or outputs):
        return F.conv2d(x, weight, bias, stride, padding)
    x, wide = F.pad(x, (0, 0, 0, 0, 0, inputs)), F.pad(weight, (0, 0, 0, 0, 0, inputs, 0, outputs))
    return F.conv2d(x, wide, None if bias is None else F.pad(bias, (0, outputs)), stride, padding)[:, : len(weight)]


def _fold(kernel: int) -> Tensor:
    """(2, reach, kernel) of 0/1: which kernel taps land on which input pixel, for even and odd output positions."""
    half = kernel // 2
    reach = (half + 1) // 2
    fold = torch.zeros(2, 2 * reach + 1, kernel)
    for parity in range(2):
        for tap in range(-half, half + 1):
            fold[parity, (parity + tap) // 2 + reach, tap + half] = 1
    return fold


def _spread(kernel: int) -> Tensor:
    """(2, 2, reach, kernel) of 0/1: from which input parity and block a kernel's tap reads, for even and odd output positions."""
    half = kernel // 2
    reach = (half + 1) // 2
    spread = torch.zeros(2, 2, 2 * reach + 1, kernel)
    for parity in range(2):
        for tap in range(kernel):
            block, source = divmod(parity + tap - half, 2)
            spread[parity, source, block + reach, tap] = 1
    return spread


def _zero_stuffed(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, c, 2h, 2w) with the values at odd positions and zeros between."""
    out = x.new_zeros(*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2)
    out[..., 1::2, 1::2] = x
    return out


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-4) * scale over the last axis, or over axis 1 of images. Computed in float32."""

    def __init__(self, size: int, axis: int = -1) -> None:
        super().__init__()
        self.axis, self.compiled = axis, False
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = self.scale if self.axis == -1 else self.scale[:, None, None]
        return (wide * torch.rsqrt(wide.square().mean(self.axis, keepdim=True) + EPS) * scale).to(x.dtype)

    def silu(self, x: Tensor) -> Tensor:
        """This norm and SiLU after it, in one."""
        compiled = self.compiled and self.training
        if self.axis == -1:
            return normed_silu(x, self.scale, compiled)
        # Channels are last in memory already, so nothing moves.
        return normed_silu(x.movedim(1, -1), self.scale, compiled).movedim(-1, 1)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-4) * scale + shift over the last axis, or over axis 1 of images. Computed in float32."""

    eps = 1e-4

    def __init__(self, size: int, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float().movedim(self.axis, -1)
        return F.layer_norm(wide, self.scale.shape, self.scale, self.shift, self.eps).movedim(-1, self.axis).to(x.dtype)


def norm(kind: str, size: int, axis: int = -1) -> nn.Module:
    """A norm layer by name: rms, layer or none."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "rms": lambda: RMSNorm(size, axis),
        "layer": lambda: LayerNorm(size, axis),
        "none": nn.Identity,
    }
    if kind not in kinds:
        raise ValueError(f"no norm {kind!r}: choose one of {', '.join(kinds)}")
    return kinds[kind]()


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation function by name."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def affine(bias: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix + bias, for matrices (n, I) x (I, O) or stacks of them (G, n, I) x (G, I, O)."""
    if torch.compiler.is_compiling():
        return x @ matrix + bias  # the sum becomes part of what follows
    return torch.addmm(bias, x, matrix) if x.ndim == 2 else torch.baddbmm(bias, x, matrix)


class DenseWeights(NamedTuple):
    """A dense unit as a function: matrix (inputs, outputs), bias and norm scale (outputs,)."""

    matrix: Tensor
    bias: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return normed_silu(affine(self.bias, x, self.matrix), self.scale)


class Dense(nn.Module):
    """linear -> norm -> activation: the unit all perceptrons are made of. (*, inputs) -> (*, outputs)."""

    def __init__(self, inputs: int, outputs: int, norm_kind: str = "rms", act: str = "silu") -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = norm(norm_kind, outputs)
        self.act = activation(act)
        self.fused = norm_kind == "rms" and act == "silu"

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.linear(x))

    def weights(self, dtype: torch.dtype = torch.float32) -> DenseWeights:
        """The weights in a type, laid out for products from the left. The scale stays: norms are computed in float32."""
        scale: Tensor = self.norm.scale  # type: ignore[assignment]
        return DenseWeights(self.linear.weight.t().to(dtype), self.linear.bias.to(dtype), scale)

    def part(self, x: Tensor, start: int) -> Tensor:
        """This layer's linear contribution of the input columns from `start` on, without bias: hoists what a loop need not repeat."""
        return F.linear(x, self.linear.weight[:, start : start + x.shape[-1]])

    def finish(self, x: Tensor) -> Tensor:
        """Norm and activation of a complete linear output."""
        return self.norm.silu(x) if self.fused else self.act(self.norm(x))  # type: ignore[operator]


def member(key: str) -> str:
    """What a ModuleDict can call the part that belongs to a key: the key, unless the dict has such an attribute or torch refuses it.

    Names of weights, and so checkpoints, depend on it. Keys of other people's spaces are anything: `observation.state`, `items`.
    """
    if key and "." not in key and key[0] != "~" and not hasattr(_EMPTY, key):
        return key
    return "~" + key.replace("~", "~0").replace(".", "~1")


_EMPTY = nn.ModuleDict()


class MLP(nn.Sequential):
    """`layers` dense units of one width. (*, inputs) -> (*, units), or the input itself with no layers."""

    def __init__(self, inputs: int, units: int, layers: int, norm_kind: str = "rms", act: str = "silu") -> None:
        super().__init__(*(Dense(inputs if i == 0 else units, units, norm_kind, act) for i in range(layers)))
        self.width = units if layers else inputs

    def __call__(self, x: Tensor) -> Any:
        # Each step's states stay together, so nothing has to be copied.
        return super().__call__(x.transpose(0, 1)).transpose(0, 1) if swapped(x) else super().__call__(x)
