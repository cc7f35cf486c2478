"""Recurrent cells of the world model, and the block-diagonal one as a function of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .fused import normed_silu
from .nets import Activation, BlockLinear, Dense, DenseWeights, Linear, Norm, affine, norm


@dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Recurrent state-space model (PlaNet, Hafner et al. 2019; block form of DreamerV3, 2024). Sizes set the first five."""

    deter: int = 512  # D, width of the deterministic state
    hidden: int = 64  # width of the layers around it
    stoch: int = 32  # S, groups of the categorical latent
    classes: int = 4  # C, classes per group
    blocks: int = 8  # of the block_gru cell
    cell_layers: int = 1  # block-linear layers before the gates of block_gru
    prior_layers: int = 2  # dense units of the prior
    post_layers: int = 1  # dense units of the posterior
    unimix: float = 0.01  # share of uniform mixed into prior and posterior
    free_nats: float = 1.0  # KL below this, summed over groups, costs nothing
    absolute: bool = False  # the posterior sees only the tokens, not the deterministic state
    norm: Norm = "rms"  # of the layers
    act: Activation = "silu"  # of the layers
    checkpoint: int = 0  # recompute the scan in pieces of this many steps when differentiating; 0 keeps everything


class CellWeights(NamedTuple):
    """A block-diagonal cell, laid out for products from the left. G blocks, h hidden units, Z = S * C."""

    from_deter: DenseWeights  # (D, h)
    from_stoch: DenseWeights  # (Z, h)
    from_action: DenseWeights  # (A, h)
    own: Tensor  # (G, D / G, D / G), of each block's slice of the state
    shared: Tensor  # (3 * h, D), of the embedded state, latent and action
    hidden_bias: Tensor  # (D,)
    hidden_scale: Tensor
    gates: Tensor  # (G, D / G, 3 * D / G): reset, candidate, update
    gates_bias: Tensor  # (3 * D,)


def blocks(x: Tensor, count: int) -> Tensor:
    """(n, D) -> (G, n, D / G)."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


def joined(x: Tensor) -> Tensor:
    """(G, n, D / G) -> (n, D)."""
    return x.transpose(0, 1).flatten(1)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent. Compiled, it goes by way of the sigmoid, whose exponential is vectorised (error below 1e-7)."""
    return 2 * torch.sigmoid(2 * x) - 1 if torch.compiler.is_compiling() else torch.tanh(x)


def cell_step(w: CellWeights, deter: Tensor, stoch: Tensor, action: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Next state (n, D) from deter (n, D), stoch (n, Z) and the embedded action (n, h); and the values on the way to it.

    Every block sees its own slice of the state and all of the embedded state, latent and action (DreamerV3, 2024, Methods).
    The embedded part is the same for all blocks, so it is one dense product.
    """
    count = w.own.shape[0]
    from_deter = affine(w.from_deter.bias, deter, w.from_deter.matrix)
    from_stoch = affine(w.from_stoch.bias, stoch, w.from_stoch.matrix)
    shared = torch.cat([normed_silu(from_deter, w.from_deter.scale), normed_silu(from_stoch, w.from_stoch.scale), action], -1)
    slices = blocks(deter, count)
    hidden = affine(w.hidden_bias, shared, w.shared) + joined(torch.bmm(slices, w.own))
    active = normed_silu(hidden, w.hidden_scale)
    gates = affine(w.gates_bias.view(count, 1, -1), blocks(active, count), w.gates)
    reset, candidate, update = gates.chunk(3, -1)
    after = torch.lerp(slices, tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1))
    return joined(after), (from_deter, from_stoch, shared, hidden, active, gates)


class BlockGRU(nn.Module):
    """Gated recurrent cell of block-diagonal matrices, fed by three dense input layers (dreamerv3, 2024)."""

    def __init__(self, cfg: RSSMConfig, action: int) -> None:
        super().__init__()
        self.blocks = cfg.blocks
        self.from_deter = Dense(cfg.deter, cfg.hidden, cfg.norm, cfg.act)
        self.from_stoch = Dense(cfg.stoch * cfg.classes, cfg.hidden, cfg.norm, cfg.act)
        self.from_action = Dense(action, cfg.hidden, cfg.norm, cfg.act)
        if not cfg.cell_layers:
            raise ValueError("rssm.cell_layers must be at least 1")
        self.hidden, self.norms = nn.ModuleList(), nn.ModuleList()
        width = cfg.deter + cfg.blocks * 3 * cfg.hidden
        for _ in range(cfg.cell_layers):
            self.hidden.append(BlockLinear(width, cfg.deter, cfg.blocks))
            self.norms.append(norm(cfg.norm, cfg.deter))
            width = cfg.deter
        self.gates = BlockLinear(width, 3 * cfg.deter, cfg.blocks)
        self.act = self.from_deter.act
        self.plain = cfg.cell_layers == 1 and self.from_deter.fused

    def weights(self, dtype: torch.dtype = torch.float32) -> CellWeights:
        """The weights in a type and laid out for `cell_step`; for a plain cell: one layer, RMSNorm, SiLU."""
        layer: BlockLinear = self.hidden[0]  # type: ignore[assignment]
        slices = self.from_deter.linear.in_features // self.blocks
        return CellWeights(
            self.from_deter.weights(dtype),
            self.from_stoch.weights(dtype),
            self.from_action.weights(dtype),
            layer.weight[:, :slices].to(dtype),
            layer.weight[:, slices:].transpose(0, 1).flatten(1).to(dtype),
            layer.bias.to(dtype),
            self.norms[0].scale,  # type: ignore[arg-type]
            self.gates.weight.to(dtype),
            self.gates.bias.to(dtype),
        )

    def embed(self, action: Tensor) -> Tensor:
        """What the cell reads of an action (*, A): (*, hidden). Independent of the state, so done once for a sequence."""
        return self.from_action(action)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (n, D), stoch (n, S * C), embedded action (n, hidden) -> next deter (n, D); any depth, norm and activation."""
        rows = deter.shape[0]
        shared = torch.cat([self.from_deter(deter), self.from_stoch(stoch), action], -1)
        slices = deter.reshape(rows, self.blocks, -1)
        x = deter
        for i, (layer, scale) in enumerate(zip(self.hidden, self.norms, strict=True)):
            x = self.act(scale(layer(x) if i else layer.joint(x, shared)))  # type: ignore[operator]
        reset, candidate, update = self.gates(x).reshape(rows, self.blocks, 3, -1).unbind(2)
        update = torch.sigmoid(update - 1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return _between(slices, candidate, update).flatten(1)


def _between(before: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """The state after a gate, in the type of the one before: under an autocast the three need not have one."""
    kind = torch.promote_types(before.dtype, candidate.dtype)
    return torch.lerp(before.to(kind), candidate.to(kind), update.to(kind)).to(before.dtype)


class GRU(nn.Module):
    """Dense gated recurrent cell on an embedding of latent and action (DreamerV1 to the 2023 paper, with its update bias of -1)."""

    plain = False

    def __init__(self, cfg: RSSMConfig, action: int) -> None:
        super().__init__()
        self.inputs = Linear(cfg.stoch * cfg.classes + action, cfg.hidden)
        self.norm = norm(cfg.norm, cfg.hidden)
        self.gates = Linear(cfg.hidden + cfg.deter, 3 * cfg.deter)
        self.gate_norm = norm(cfg.norm, 3 * cfg.deter)
        self.act = Dense(1, 1, cfg.norm, cfg.act).act

    def embed(self, action: Tensor) -> Tensor:
        """The cell reads the action as it is."""
        return action

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """deter (n, D), stoch (n, S * C), action (n, A) -> next deter (n, D)."""
        x = self.act(self.norm(self.inputs(torch.cat([stoch, action], -1))))
        reset, candidate, update = self.gate_norm(self.gates(torch.cat([x, deter], -1))).chunk(3, -1)
        return _between(deter, torch.tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1))


CELLS: dict[str, Callable[[RSSMConfig, int], nn.Module]] = {"block_gru": BlockGRU, "gru": GRU}
Cell = Literal["block_gru", "gru"]
