"""Recorded parameter names and layouts, translated to ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

MODULES = {
    "enc": "nets.encoder",
    "dyn": "nets.rssm",
    "dec": "nets.decoder",
    "rew": "nets.reward",
    "con": "nets.cont",
    "pol": "behaviors.main.policy",
    "val": "behaviors.main.objectives.extrinsic.critic",
    "slowval": "behaviors.main.objectives.extrinsic.slow",
}
"""Recorded module -> ours, inside an agent."""

RULES = [
    (r"mlp/linear(\d+)", r"mlp.\1.linear"),
    (r"mlp/norm(\d+)", r"mlp.\1.norm"),
    (r"enc/mlp(\d+)norm", r"enc/mlp.\1.norm"),
    (r"enc/mlp(\d+)", r"enc/mlp.\1.linear"),
    (r"enc/cnn(\d+)norm", r"enc/norms.\1"),
    (r"enc/cnn(\d+)", r"enc/convs.\1"),
    (r"dec/vec/(\w+)/(?:pred|logits)", r"dec/outs.\1"),
    (r"dec/spnorm", r"dec/start"),
    (r"dec/sp1norm", r"dec/hidden.1"),
    (r"dec/sp0", r"dec/spread"),
    (r"dec/sp1", r"dec/hidden.0"),
    (r"dec/sp2", r"dec/place"),
    (r"dec/imgout", r"dec/image"),
    (r"dyn/dynin0norm", r"dyn/cell.from_deter.norm"),
    (r"dyn/dynin1norm", r"dyn/cell.from_stoch.norm"),
    (r"dyn/dynin2norm", r"dyn/cell.from_action.norm"),
    (r"dyn/dynin0", r"dyn/cell.from_deter.linear"),
    (r"dyn/dynin1", r"dyn/cell.from_stoch.linear"),
    (r"dyn/dynin2", r"dyn/cell.from_action.linear"),
    (r"dyn/dynhid(\d+)norm", r"dyn/cell.norms.\1"),
    (r"dyn/dynhid(\d+)", r"dyn/cell.hidden.\1"),
    (r"dyn/dyngru", r"dyn/cell.gates"),
    (r"dyn/obslogit", r"dyn/post_out"),
    (r"dyn/obs(\d+)norm", r"dyn/post.\1.norm"),
    (r"dyn/obs(\d+)", r"dyn/post.\1.linear"),
    (r"dyn/priorlogit", r"dyn/prior_out"),
    (r"dyn/prior(\d+)norm", r"dyn/prior.\1.norm"),
    (r"dyn/prior(\d+)", r"dyn/prior.\1.linear"),
    (r"head/(\w+)/stddev", r"outs.\1.std"),
    (r"head/(\w+)/(mean|logits)", r"outs.\1.\2"),
    (r"head/(?:logits|logit)", r"out"),
]


def ours(name: str, stages: int = 3) -> str:
    """Our name of a recorded parameter, inside its module: "enc/mlp0/kernel" -> "mlp.0.linear.weight"."""
    path, leaf = name.rsplit("/", 1)
    # The released decoder numbers its convolutions by stage, the deepest first to run; ours are numbered as they run.
    if found := re.fullmatch(r"dec/conv(\d+)(norm)?", path):
        path = f"dec/{'norms' if found[2] else 'convs'}.{stages - 1 - int(found[1])}"
    else:
        for pattern, replacement in RULES:
            renamed, count = re.subn(rf"{pattern}$", replacement, path)
            if count:
                path = renamed
                break
        else:
            raise KeyError(f"unknown recorded parameter {name!r}")
    leaf = {"kernel": "weight", "bias": "bias", "scale": "scale", "shift": "shift"}[leaf]
    return f"{path.split('/', 1)[1]}.{leaf}"


def layout(name: str, array: Tensor) -> Tensor:
    """A recorded array in our layout: linear (out, in), block-linear (G, in, out), convolution (out, in, h, w)."""
    if name.endswith("/kernel"):
        if array.ndim == 2:
            return array.T
        if array.ndim == 4:
            return array.permute(3, 2, 0, 1)
    return array


def qualified(name: str) -> str:
    """Our full name, in an agent, of a recorded parameter."""
    return f"{MODULES[name.split('/')[0]]}.{ours(name)}"


def load(module: nn.Module, recorded: dict[str, Tensor], whole_agent: bool = False) -> None:
    """Set all parameters of a module from recorded ones. Every parameter must be there, and no other."""
    names = {qualified(k) if whole_agent else ours(k): layout(k, v) for k, v in recorded.items()}
    parameters = dict(module.named_parameters())
    assert names.keys() == parameters.keys(), sorted(names.keys() ^ parameters.keys())
    with torch.no_grad():
        for name, value in names.items():
            assert parameters[name].shape == value.shape, (name, parameters[name].shape, value.shape)
            parameters[name].copy_(value)
