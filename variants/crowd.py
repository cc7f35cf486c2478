"""Several networks of one shape in one batched pass, whatever they return, on the same rows or each on rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core.outputs import Binary, Categorical, Normal, Output, Squared, TwoHot

FEW = 64
"""Rows up to which all members answer all of them and the right answer is picked: sorting costs more, and its shapes depend on values."""


class Crowd:
    """E networks of one shape, called at once. Each keeps parameters of its own, see `Members`; this only stacks them for a call.

    Where no graph is wanted the stacks are kept until a parameter changes: a dream calls the same networks at every step.
    """

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        self.nets = list(nets)
        # Convolutions of many members at once are grouped ones, which processors are several times slower at than at one by one.
        self.convolutional = any(isinstance(m, nn.Conv2d) for m in self.nets[-1].modules())
        self._slots: dict[str, list[tuple[nn.Module, str]]] = {}
        self._kept: tuple[Any, dict[str, Tensor]] = (None, {})

    def __call__(self, function: Callable[..., Any], *inputs: Tensor | None, shared: Sequence[int] = ()) -> Any:
        """function(net, *inputs) of every member, each with a leading axis (E, ...): tensors, or outputs and mappings of them.

        inputs: (E, ...), one slice for each; those whose number is in `shared` are the same for all.
        """
        makers: dict[str, Callable[..., Output]] = {}

        def taken(net: nn.Module, *given: Tensor) -> Any:
            found = function(net, *given)
            named = {"": found} if isinstance(found, Output) else found
            if not isinstance(named, dict):
                return found
            pieces = {key: parts(output) for key, output in named.items()}
            makers.update({key: maker for key, (maker, _) in pieces.items()})
            return {key: tensors for key, (_, tensors) in pieces.items()}

        axes = [None if i in shared or x is None else 0 for i, x in enumerate(inputs)]
        call = _Call(self.nets[-1], taken)
        if self.convolutional:
            each = [tuple(x if a is None else x[k] for x, a in zip(inputs, axes, strict=True)) for k in range(len(self.nets))]  # type: ignore[index]
            own = self._parameters()
            found = _stack([functional_call(call, {n: row[k] for n, row in own.items()}, given) for k, given in enumerate(each)])
        else:
            # Compiled pieces cannot be seen through by what batches them.
            for module in self.nets[-1].modules():
                if getattr(module, "compiled", False):
                    module.compiled = False  # type: ignore[assignment]
            found = vmap(lambda own, *given: functional_call(call, own, given), (0, *axes))(self._stacked(), *inputs)
        if not makers:
            return found
        made = {key: makers[key](*tensors) for key, tensors in found.items()}
        return made.get("", made)

    def by_row(self, function: Callable[..., Any], member: Tensor, *inputs: Tensor | None) -> Any:
        """As calling it, on rows (n, ...) that are each one member's: member (n,) int64. Returns rows."""
        if len(member) <= FEW:
            place = torch.arange(len(member), device=member.device)
            found, pick = self(function, *inputs, shared=range(len(inputs))), lambda x: x[member, place]
        else:
            groups = Groups.of(member, len(self.nets))
            found, pick = self(function, *(x if x is None else x[groups.row] for x in inputs)), groups.back
        if isinstance(found, Output):
            return picked(found, pick)
        if isinstance(found, dict):
            return {key: picked(output, pick) for key, output in found.items()}
        return tuple(pick(x) for x in found)

    def _parameters(self) -> dict[str, list[Any]]:
        """Those of all members by name."""
        if not self._slots:
            for name, _ in self.nets[-1].named_parameters():
                path, _, leaf = name.rpartition(".")
                self._slots[f"net.{name}"] = [(net.get_submodule(path), leaf) for net in self.nets]
        return {name: [m._parameters[leaf] for m, leaf in slots] for name, slots in self._slots.items()}

    def _stacked(self) -> dict[str, Tensor]:
        rows = self._parameters()
        every = [p for row in rows.values() for p in row]
        # Tensors that stand in for parameters (torch.func) come and go: only parameters are remembered.
        fixed = not (torch.is_grad_enabled() and any(p.requires_grad for p in every))
        if not fixed or not all(isinstance(p, nn.Parameter) for p in every):
            return {name: torch.stack(row) for name, row in rows.items()}
        version = [(p.data_ptr(), p._version) for p in every]
        if self._kept[0] != version:
            self._kept = version, {name: torch.stack(row).detach() for name, row in rows.items()}
        return self._kept[1]


class _Call(nn.Module):
    """A function of a network, as `functional_call` wants it."""

    def __init__(self, net: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.net, *inputs)


def _stack(found: list[Any]) -> Any:
    """What members found, tensors or mappings of tuples of them, with a leading axis."""
    if isinstance(found[0], dict):
        return {key: _stack([one[key] for one in found]) for key in found[0]}
    if isinstance(found[0], tuple):
        return tuple(torch.stack(column) for column in zip(*found, strict=True))
    return torch.stack(found)


def parts(output: Output) -> tuple[Callable[..., Output], tuple[Tensor, ...]]:
    """What makes an output, and the tensors that it is made of."""
    if isinstance(output, Squared):
        return partial(Squared, dims=output.dims, squash=output.squash), (output.mean,)
    if isinstance(output, Categorical):
        return partial(Categorical, dims=output.dims), (output.log_probs,)
    if isinstance(output, Normal):
        return partial(Normal, squash=output.squash), (output.mean, output.std)
    if isinstance(output, TwoHot):
        return partial(TwoHot, bins=output.bins, space=output.space, compiled=output.compiled), (output.logits,)
    assert isinstance(output, Binary)
    return Binary, (output.logit,)


def picked(output: Output, pick: Callable[[Tensor], Tensor]) -> Output:
    """An output with `pick` done to each tensor that it is made of."""
    maker, tensors = parts(output)
    return maker(*(pick(x) for x in tensors))


class Groups(NamedTuple):
    """Rows sorted by whose they are, all members given the same number of them: surplus places hold row 0 and are never read."""

    row: Tensor  # (E, M), the one at each place
    place: Tensor  # (rows,), the place of each row among E * M

    @staticmethod
    def of(ids: Tensor, members: int) -> Groups:
        """Groups of rows by member numbers (rows,)."""
        counts, order = torch.bincount(ids, minlength=members), ids.argsort(stable=True)
        size = int(counts.max())
        slot = torch.empty_like(ids)
        slot[order] = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[ids[order]]
        place = ids * size + slot
        row = torch.zeros(members * size, dtype=torch.int64, device=ids.device)
        row[place] = torch.arange(len(ids), device=ids.device)
        return Groups(row.view(members, size), place)

    def back(self, x: Tensor) -> Tensor:
        """(E, M, ...) -> (rows, ...)."""
        return x.flatten(0, 1)[self.place]
