"""Encoder and decoder: observations to tokens and back. Images are (height, width, channels) bytes outside, NCHW inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from tensordict import TensorDict
from torch import Tensor, nn

from . import maths
from .fused import max_pool
from .nets import ACTIVATIONS, MLP, Activation, BlockLinear, Conv, Linear, Norm, RMSNorm, activation, member, norm
from .outputs import Categorical, Output, Squared
from .rng import Draws
from .specs import Space

BLOCKS = 8
"""Blocks of the layer that spreads the deterministic state over the decoder's smallest image."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Both directions; sizes set `depth` and `units`."""

    depth: int = 4  # channels are this times mults
    mults: tuple[int, ...] = (2, 3, 4, 4)  # one stage, one halving of the resolution, each
    kernel: int = 5  # of every convolution, odd
    down: Literal["pool", "stride"] = "pool"  # how stages shrink: 2x2 max-pool, or stride 2 (and zero-stuffing upwards)
    outer: bool = False  # first stage (last of the decoder) keeps the resolution
    layers: int = 3  # dense units for vectors
    units: int = 64  # width of each
    symlog: bool = True  # squash float observations and predict them squashed; False leaves them as they are
    norm: Norm = "rms"  # of the layers
    act: Activation = "silu"  # of the layers


def split(obs: Mapping[str, Space]) -> tuple[dict[str, Space], dict[str, Space]]:
    """(vectors, images) of an observation: images are byte arrays of three axes, all else of up to two axes is vectors."""
    images = {k: s for k, s in obs.items() if s.image}
    vectors = {k: s for k, s in obs.items() if k not in images}
    if deep := [k for k, s in vectors.items() if len(s.shape) > 2]:
        raise ValueError(
            f"observation {deep[0]!r} has shape {vectors[deep[0]].shape}: numbers may have up to two axes, images must be uint8"
        )
    return vectors, images


def flat(spaces: Mapping[str, Space], values: Mapping[str, Tensor], squash: bool) -> Tensor:
    """Concatenate values (*, *shape) by sorted key into (*, width): one-hot where discrete, else symlog if `squash`.

    A key marked missing in a step (any -inf in a float, any -1 in an integer) is all zeros there: parts of goals that say nothing
    are, steps of environments cannot be (`Vector` refuses both).
    """
    parts = []
    for key in sorted(spaces):
        space, value = spaces[key], values[key]
        lead = value.shape[: value.ndim - len(space.shape)]
        value = value.reshape(*lead, -1)
        if space.discrete:
            index = value.long()
            missing = (index < 0).any(-1, keepdim=True)
            part = F.one_hot(index.clamp(min=0), space.classes or 1).float().flatten(-2)
        else:
            value = value.float()
            missing = torch.isneginf(value).any(-1, keepdim=True)
            part = maths.symlog(value) if squash else value
        parts.append(torch.where(missing, 0.0, part))
    return torch.cat(parts, -1)


def joined(spaces: Mapping[str, Space], actions: TensorDict) -> Tensor:
    """Actions by key in model form -> (*, A), keys sorted."""
    return torch.cat([actions[k] for k in sorted(spaces)], -1)


def model_actions(spaces: Mapping[str, Space], actions: TensorDict) -> TensorDict:
    """Environment form -> model form: class indices (*, *shape) become one-hot (*, width), numbers (*, width)."""
    return TensorDict({k: flat({k: s}, {k: actions[k]}, False) for k, s in spaces.items()}, actions.batch_size, device=actions.device)


def env_actions(spaces: Mapping[str, Space], actions: TensorDict) -> TensorDict:
    """Model form (*, width) -> environment form (*, *shape): class indices int32, numbers float32."""
    lead = actions.batch_size
    out = {}
    for key, space in spaces.items():
        value = actions[key].detach()
        if space.discrete:
            value = value.reshape(*lead, *space.shape, space.classes or 1).argmax(-1).int()
        out[key] = value.reshape(*lead, *space.shape)
    return TensorDict(out, lead, device=actions.device)


def random_shift(obs: TensorDict, images: list[str], draws: Draws, pad: int = 4) -> TensorDict:
    """Shift the images of each sequence by up to `pad` pixels, edges repeated (DrQ, Kostrikov et al. 2020, eq. 4).

    obs (B, T). One shift per sequence and key, so that motion within a sequence stays true; the decoder sees the same.
    """
    obs = obs.copy()
    count, steps = obs.batch_size
    for key in images:
        image = rearrange(obs[key], "b t h w c -> b (t c) h w").float()
        height, width = image.shape[-2:]
        image = F.pad(image, (pad, pad, pad, pad), mode="replicate")
        noise = draws.uniform("augment", 2, count)
        assert noise is not None
        top, left = (noise * (2 * pad + 1)).long()
        rows = top[:, None] + torch.arange(height, device=image.device)
        columns = left[:, None] + torch.arange(width, device=image.device)
        image = image.gather(2, rows[:, None, :, None].expand(-1, image.shape[1], -1, image.shape[3]))
        image = image.gather(3, columns[:, None, None, :].expand(-1, image.shape[1], height, -1))
        obs[key] = rearrange(image, "b (t c) h w -> b t h w c", t=steps).to(torch.uint8)
    return obs


class Encoder(nn.Module):
    """Observations (*) -> tokens (*, width): vectors through an MLP, images through convolutions, concatenated."""

    def __init__(self, obs: Mapping[str, Space], cfg: CodecConfig) -> None:
        super().__init__()
        self.cfg, self.compiled = cfg, False
        self.vectors, self.images = split(obs)
        self.width = 0
        if self.vectors:
            self.mlp = MLP(sum(s.width for s in self.vectors.values()), cfg.units, cfg.layers, cfg.norm, cfg.act)
            self.width += self.mlp.width
        if self.images:
            height, width, channels = _picture(self.images)
            self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
            for i, mult in enumerate(cfg.mults):
                stride = 2 if cfg.down == "stride" and not (cfg.outer and i == 0) else 1
                self.convs.append(Conv(channels, cfg.depth * mult, cfg.kernel, stride))
                channels = cfg.depth * mult
                self.norms.append(norm(cfg.norm, channels, axis=1))
            shrink = _shrink(cfg)
            if not all(3 <= side // shrink <= 16 and side % shrink == 0 for side in (height, width)):
                raise ValueError(
                    f"images of {height}x{width} shrink {shrink}-fold to less than 3 or more than 16 pixels: resize them to 64x64"
                )
            self.width += channels * (height // shrink) * (width // shrink)
        if not self.width:
            raise ValueError("the task offers no observation that the encoder may see")
        self.act = activation(cfg.act)

    def forward(self, obs: Mapping[str, Tensor] | TensorDict) -> Tensor:
        parts = []
        if self.vectors:
            parts.append(self.mlp(flat(self.vectors, obs, self.cfg.symlog)))
        if self.images:
            parts.append(self._see(torch.cat([obs[k] for k in sorted(self.images)], -1)))
        return torch.cat(parts, -1)

    def _see(self, image: Tensor) -> Tensor:
        return _compiled(Encoder._convolve)(self, image) if self.compiled and self.training and image.is_cuda else self._convolve(image)

    def _convolve(self, image: Tensor) -> Tensor:
        lead = image.shape[:-3]
        # Pixels arrive channels-last in memory, which is the layout convolutions like best: the permute moves nothing.
        x = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).float() / 255 - 0.5
        for i, (conv, scale) in enumerate(zip(self.convs, self.norms, strict=True)):
            pool = self.cfg.down == "pool" and not (self.cfg.outer and i == 0)
            # In one where it is a matter of arithmetic only, and in two where the processor's own convolutions are faster.
            x = conv.pooled(x) if pool and x.is_cuda else max_pool(conv(x)) if pool else conv(x)  # type: ignore[operator]
            x = _finish(scale, self.act, x)
        return x.permute(0, 2, 3, 1).reshape(*lead, -1)


class Decoder(nn.Module):
    """Latents (deter (*, D), stoch (*, S, C)) -> one `Output` per observation key."""

    def __init__(self, obs: Mapping[str, Space], deter: int, stoch: int, cfg: CodecConfig) -> None:
        super().__init__()
        self.cfg, self.compiled = cfg, False
        self.vectors, self.images = split(obs)
        self.act = activation(cfg.act)
        if self.vectors:
            self.mlp = MLP(stoch + deter, cfg.units, cfg.layers, cfg.norm, cfg.act)
            self.outs = nn.ModuleDict({member(k): Linear(self.mlp.width, s.width) for k, s in self.vectors.items()})
        if self.images:
            self._build_images(deter, stoch)

    def _build_images(self, deter: int, stoch: int) -> None:
        cfg = self.cfg
        height, width, channels = _picture(self.images)
        self.grid = (height // _shrink(cfg), width // _shrink(cfg))
        depths = [cfg.depth * m for m in cfg.mults]
        size = self.grid[0] * self.grid[1] * depths[-1]
        if depths[-1] % BLOCKS or deter % BLOCKS:
            raise ValueError(
                f"the decoder spreads deter {deter} over {depths[-1]} channels (depth x last of mults): both must divide by {BLOCKS}"
            )
        self.spread = BlockLinear(deter, size, BLOCKS)
        self.hidden = nn.Sequential(Linear(stoch, 2 * cfg.units), norm(cfg.norm, 2 * cfg.units))
        self.place = Linear(2 * cfg.units, size)
        self.start = norm(cfg.norm, depths[-1], axis=1)
        up = "nearest" if cfg.down == "pool" else "zeros"
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for below, above in zip(depths[:0:-1], depths[-2::-1], strict=True):
            self.convs.append(Conv(below, above, cfg.kernel, up=up))
            self.norms.append(norm(cfg.norm, above, axis=1))
        self.image = Conv(depths[0], channels, cfg.kernel, up="no" if cfg.outer else up)

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Output]:
        stoch = stoch.flatten(-2)
        outputs: dict[str, Output] = {}
        if self.vectors:
            x = self.mlp(torch.cat([stoch, deter], -1))
            for key, space in self.vectors.items():
                outputs[key] = self._vector(space, self.outs[member(key)](x))
        if self.images:
            picture = self._draw(deter, stoch)
            # Channels follow the task's order of keys, unlike the encoder, which sorts.
            pieces = picture.split([s.shape[-1] for s in self.images.values()], -1)
            outputs |= {k: Squared(p, 3, _unit) for k, p in zip(self.images, pieces, strict=True)}
        return outputs

    def _vector(self, space: Space, x: Tensor) -> Output:
        if space.discrete:
            return Categorical(x.unflatten(-1, (*space.shape, space.classes or 1)), len(space.shape))
        return Squared(
            x.unflatten(-1, space.shape) if space.shape else x.squeeze(-1), len(space.shape), maths.symlog if self.cfg.symlog else None
        )

    def _draw(self, deter: Tensor, stoch: Tensor) -> Tensor:
        if self.compiled and self.training and deter.is_cuda:
            return _compiled(Decoder._unfold)(self, deter, stoch)
        return self._unfold(deter, stoch)

    def _unfold(self, deter: Tensor, stoch: Tensor) -> Tensor:
        lead = deter.shape[:-1]
        deter, stoch = deter.reshape(-1, deter.shape[-1]), stoch.reshape(-1, stoch.shape[-1])
        height, width = self.grid
        # Channels last in memory, which is the layout convolutions and norms like best.
        x = rearrange(self.spread(deter), "n (g h w c) -> n h w (g c)", g=BLOCKS, h=height, w=width)
        y = self.place(self.act(self.hidden(stoch)))
        x = (x + rearrange(y, "n (h w c) -> n h w c", h=height, w=width)).permute(0, 3, 1, 2)
        x = _finish(self.start, self.act, x)
        for conv, scale in zip(self.convs, self.norms, strict=True):
            x = _finish(scale, self.act, conv(x))
        x = torch.sigmoid(self.image(x))
        return x.permute(0, 2, 3, 1).reshape(*lead, *x.shape[-2:], x.shape[1])


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """On a GPU images wait for memory, not for products: what can be fused with a convolution is. On a processor it gains nothing."""
    return torch.compile(function, dynamic=False)


def _finish(scale: nn.Module, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Norm and activation of images (n, channels, height, width)."""
    return scale.silu(x) if isinstance(scale, RMSNorm) and act is ACTIVATIONS["silu"] else act(scale(x))


def _unit(image: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return image.float() / 255


def _shrink(cfg: CodecConfig) -> int:
    return int(2 ** (len(cfg.mults) - cfg.outer))


def _picture(images: Mapping[str, Space]) -> tuple[int, int, int]:
    """(height, width, total channels); all images of a task must agree in size."""
    sizes = {s.shape[:2] for s in images.values()}
    if len(sizes) > 1:
        raise ValueError(f"images of one task must have one size, found {[s.shape for s in images.values()]}")
    height, width = sizes.pop()
    return height, width, sum(s.shape[-1] for s in images.values())
