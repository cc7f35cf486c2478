"""Policy steps compiled as a whole: one function of tensors, traced from the agent's own.

A policy step is some two hundred small operations on a few rows; calling them one by one costs more than computing them. The step
is traced once for every shape it is called with again. What depends on weights alone (casts, layouts) is a function of its own, called
again only after the weights have changed; the rest goes to the compiler.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from . import compiler
from .rng import Asked, Draws, Given

Step = Callable[[TensorDict, TensorDict, Draws], tuple[TensorDict, TensorDict]]
aten = torch.ops.aten


class _Untraceable(Exception):
    """A step that cannot be written down without knowing its tensors' values."""


class CompiledPolicy:
    """`step` of an agent: steps (n,) and acting state (n,) -> actions in environment form and the new state, compiled on first use.

    The step has to be a pure function of its arguments, parameters and buffers. One that branches on the value of a tensor cannot
    be traced: it is taken as it is, with a warning. The result equals the plain step's up to rounding.
    """

    def __init__(self, agent: nn.Module, step: Step) -> None:
        compiler.prepare()
        self.agent, self.step = agent, step
        self._traced: dict[Hashable, _Traced | None] = {}

    def __call__(self, data: TensorDict, state: TensorDict, draws: Draws) -> tuple[TensorDict, TensorDict]:
        given = {"data": leaves(data), "state": leaves(state)}
        shapes = tuple((side, k, v.shape, v.dtype) for side, found in given.items() for k, v in found.items())
        key = (self.agent.training, tuple(sorted(draws.modes.items())), shapes)
        if key not in self._traced:
            return self._first(key, data, state, draws)
        traced = self._traced[key]
        return self.step(data, state, draws) if traced is None else traced(given["data"], given["state"], draws)

    def _first(self, key: Hashable, data: TensorDict, state: TensorDict, draws: Draws) -> tuple[TensorDict, TensorDict]:
        """A step of shapes that were not met before: it is taken plainly, and traced for those to come.

        A state that gains keys, as those of variants do in a run's first step, is followed by others than itself: nothing is traced.
        """
        asked = Asked(draws)
        with compiler.paused(self.agent):
            out = self.step(data, state, asked)
            if leaves(out[1]).keys() <= leaves(state).keys():
                self._traced[key] = self._trace(data, state, asked, out)
        return out

    def _trace(self, data: TensorDict, state: TensorDict, asked: Asked, out: tuple[TensorDict, TensorDict]) -> _Traced | None:
        try:
            return _Traced(self.agent, self.step, data, state, asked, out)
        except _Untraceable as error:
            name, why = type(self.agent).__name__, str(error.__cause__).splitlines()[0]
            warnings.warn(f"{name} acts uncompiled: its policy step depends on a tensor's value ({why}); use torch.where", stacklevel=4)
            return None


class _Traced:
    """The step for one set of shapes, given what it asked for and what came out when it was taken with them."""

    def __init__(
        self, agent: nn.Module, step: Step, data: TensorDict, state: TensorDict, asked: Asked, out: tuple[TensorDict, TensorDict]
    ) -> None:
        self.draws = asked
        self.batch_size, self.device = data.batch_size, data.device
        self.names = [tuple(leaves(part)) for part in out]
        weights = dict(agent.named_parameters()) | dict(agent.named_buffers())
        inputs = (list(leaves(data).values()), list(leaves(state).values()), self.draws.values)
        graph = self._graph(agent, step, weights, inputs, data, state)
        before, after, self.kept = _split(graph, len(weights))
        self.weights = [list(weights.values())[i] for i in self.kept]
        self.prepare, self.main = before, torch.compile(after, fullgraph=True, dynamic=False)
        self.version: list[tuple[int, int]] = []
        self.prepared: list[Tensor] = []

    def _graph(
        self, agent: nn.Module, step: Step, weights: Mapping[str, Tensor], inputs: tuple[list[Tensor], ...], *like: TensorDict
    ) -> fx.GraphModule:
        """The step as a graph of tensors: weights, then data, state and noise, to the leaves of actions and of the new state."""

        def flat(weights: list[Tensor], data: list[Tensor], state: list[Tensor], noise: list[Tensor]) -> list[Tensor]:
            given = (_filled(part, values) for part, values in zip(like, (data, state), strict=True))
            arguments = (*given, Given(noise, self.draws.modes, self.draws.device))
            out = functional_call(_Called(agent, step), dict(zip(names, weights, strict=True)), arguments)
            return [v for part in out for v in leaves(part).values()]

        names = [f"agent.{k}" for k in weights]
        values = [v.detach() for v in weights.values()]
        with torch.no_grad():
            try:
                graph = make_fx(functionalize(flat), tracing_mode="fake")(values, *inputs)
            except RuntimeError as error:  # the step itself has just run: it is the tracing that failed
                raise _Untraceable from error
        for node in graph.graph.nodes:
            if node.target is aten.view.default:  # the compiler lays its values out in its own way
                node.target = aten.reshape.default
        graph.graph.eliminate_dead_code()
        return graph

    @torch.no_grad()
    def __call__(self, data: Mapping[Any, Tensor], state: Mapping[Any, Tensor], draws: Draws) -> tuple[TensorDict, TensorDict]:
        version = [(w.data_ptr(), w._version) for w in self.weights]
        if version != self.version:
            self.version, self.prepared = version, self.prepare(*self.weights)
        out = self.main(*self.prepared, *data.values(), *state.values(), *self.draws.again(draws))
        split = len(self.names[0])
        actions, after = (dict(zip(n, v, strict=True)) for n, v in zip(self.names, (out[:split], out[split:]), strict=True))
        return self._nested(actions), self._nested(after)

    def _nested(self, values: dict[Any, Tensor]) -> TensorDict:
        found: dict[str, Any] = {}
        for (*path, last), value in values.items():
            inside = found
            for part in path:
                inside = inside.setdefault(part, {})
            inside[last] = value
        return TensorDict(found, self.batch_size, device=self.device)


class _Called(nn.Module):
    """A function of a module's, as `functional_call` wants it."""

    def __init__(self, agent: nn.Module, step: Step) -> None:
        super().__init__()
        self.agent, self.step = agent, step

    def forward(self, *inputs: Any) -> Any:
        return self.step(*inputs)


def leaves(tree: TensorDict) -> dict[tuple[str, ...], Tensor]:
    """Tensors by path, in a fixed order."""
    found = {k if isinstance(k, tuple) else (k,): v for k, v in tree.items(True, True)}
    return dict(sorted(found.items()))


def _filled(like: TensorDict, values: list[Tensor]) -> TensorDict:
    """A tree of the same paths with other tensors."""
    tree = TensorDict({}, like.batch_size, device=like.device)
    for path, value in zip(leaves(like), values, strict=True):
        tree.set(path, value)
    return tree


def _split(graph: fx.GraphModule, weights: int) -> tuple[fx.GraphModule, fx.GraphModule, list[int]]:
    """Cut a graph whose first `weights` inputs are weights: what needs only those, the rest, and the numbers of those that are used.

    The first part returns what the rest reads of it, weights themselves included; the rest reads that and all other inputs.
    """
    nodes = list(graph.graph.nodes)
    holders = [n for n in nodes if n.op == "placeholder"]
    kept = [i for i, n in enumerate(holders[:weights]) if n.users]
    early = set(holders[:weights])
    for node in nodes:
        if node.op == "get_attr" or (node.op == "call_function" and node.all_input_nodes and early.issuperset(node.all_input_nodes)):
            early.add(node)
    edge = [n for n in nodes if n in early and any(user not in early for user in n.users)]
    first, rest, made = fx.Graph(), fx.Graph(), dict[fx.Node, fx.Node]()
    for i in kept:
        made[holders[i]] = first.placeholder(f"weight_{i}")
    for node in nodes:
        if node in early and node.op != "placeholder":
            made[node] = first.node_copy(node, made.__getitem__)
    first.output([made[n] for n in edge])
    made = {n: rest.placeholder(f"prepared_{i}") for i, n in enumerate(edge)}
    made |= {n: rest.placeholder(n.name) for n in holders[weights:]}
    for node in nodes:
        if node not in early and node not in made:
            made[node] = rest.node_copy(node, made.__getitem__)
    return fx.GraphModule(graph, first), fx.GraphModule(graph, rest), kept
